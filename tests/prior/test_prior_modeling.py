import json
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from codegrid.errors import CodegridError
from codegrid.prior import PriorConfig, PriorObjective, SequenceConfig, load_prior, make_prior, prior_loss, save_prior

SEQUENCE = SequenceConfig(16, (3, 3), class_names=("a", "b"))
CONFIG = PriorConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture
def model():
    return make_prior(CONFIG, SEQUENCE)


@pytest.fixture
def folder(model, tmp_path):
    save_prior(model, SEQUENCE, tmp_path / "prior")
    return tmp_path / "prior"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_model_is_shaped_by_its_configs(model):
    config = model.config
    assert (config.vocab_size, config.max_position_embeddings) == (19, 10)
    assert config.intermediate_size == 128  # 8/3 of 32 is 85.3
    assert PriorConfig(hidden_size=768).intermediate_size is None
    assert make_prior(PriorConfig(48, 1, 2), SEQUENCE).config.intermediate_size == 128  # exactly 8/3: nothing is added
    assert config.eos_token_id is None
    assert config.bos_token_id is None
    assert model.training
    weights = model.model.layers[0].mlp.down_proj.weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 30}, "num_attention_heads 4"),
        ({"hidden_size": 12}, "even whole number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"attention_dropout": 1.0}, "attention_dropout"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"positions": "none"}, "'rotary', 'rotary_2d' and 'learned'"),
        ({"positions": "learned", "num_key_value_heads": 2}, "every head has keys of its own"),
        ({"positions": "learned", "qk_norm": True}, "no architecture here has both"),
        (
            {"positions": "rotary_2d", "hidden_size": 24},
            "6 dimensions a head; positions on the grid need a multiple of 4",
        ),
        ({"architecture": "mamba"}, "'auto' or one of llama, grid_llama, qwen3, gpt2"),
        ({"architecture": "gpt2", "positions": "rotary_2d"}, "Leave out positions"),
        ({"architecture": "llama", "qk_norm": True}, "Leave out positions"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000. Give at most 1024"),
        ({"hidden_size": 4 * 10**12}, "hidden_size is 4000000000000. Give at most"),
    ],
)
def test_wrong_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        PriorConfig(**{"hidden_size": 32, "num_attention_heads": 4, **changes})


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"qk_norm": True}, {"positions": "learned"}])
def test_a_saved_prior_is_the_same_model_with_and_without_this_project(tmp_path, changes):
    model = make_prior(PriorConfig(32, 2, 4, **changes), SEQUENCE).eval()
    save_prior(model, SEQUENCE, tmp_path)
    loaded, sequence = load_prior(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sequence == SEQUENCE
    assert not loaded.training
    tokens = torch.randint(0, SEQUENCE.vocab_size, (3, 10))
    expected = model(tokens).logits
    # Rotary frequencies are no part of the file: a model built on the meta device must have made them again.
    if changes.get("positions") != "learned":
        assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    for other in (loaded, stock):
        assert torch.equal(other(tokens).logits, expected)


def test_generate_gives_all_codes_and_only_codes(folder):
    stock = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # make class tokens and null by far the most likely
        stock.lm_head.weight[16:] = 10 * stock.lm_head.weight[16:].abs()
    tokens = stock.generate(torch.tensor([[SEQUENCE.class_token(1)]] * 20))
    assert tokens.shape == (20, 1 + SEQUENCE.length)
    assert tokens[:, 1:].max() < 16
    saved = json.loads((folder / "generation_config.json").read_text())
    assert saved["do_sample"] is True
    assert saved["top_k"] == 0


def test_another_dtype_keeps_exact_rotary_frequencies(folder, model):
    loaded, _ = load_prior(folder, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_no_weights_may_be_missing_left_over_or_of_another_shape(folder):
    path = folder / "model.safetensors"
    good = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    short = {key: value for key, value in good.items() if key != name}
    for weights, message in [
        (short, "missing_keys"),
        ({**good, "model.extra": torch.zeros(2)}, "unexpected_keys"),
        ({**good, name: torch.zeros(3, 32)}, "mismatched_keys.*up_proj"),
    ]:
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            load_prior(folder)


def test_other_architectures_and_vocabularies_are_refused(folder):
    edit(folder / "config.json", architectures=["EvilForCausalLM"])
    with pytest.raises(ValueError, match=r"EvilForCausalLM.*LlamaForCausalLM"):
        load_prior(folder)
    edit(folder / "config.json", architectures=["LlamaForCausalLM"], vocab_size=20)
    with pytest.raises(ValueError, match=r"vocab_size 20, sequence_config\.json 19 .16 codes, 2 classes"):
        load_prior(folder)
    edit(folder / "config.json", vocab_size=19, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ValueError, match="quantization_config"):
        load_prior(folder)
    edit(folder / "config.json", quantization_config=None)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter"):
        load_prior(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000. It has to be a whole number"),
        ("config.json", {"num_attention_heads": 10**12}, "num_attention_heads"),
        ("config.json", {"hidden_size": -1}, "hidden_size -1"),
        ("config.json", {"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ("config.json", {"vocab_size": 10**12}, "vocab_size"),
        ("sequence_config.json", {"codebook_size": 10**12}, "codebook_size is 1000000000000. Give at most"),
        ("sequence_config.json", {"grid_shape": [10**12, 1]}, "at most 1048576"),
        ("sequence_config.json", {"depth": 10**12}, "at most 1048576"),
        ("sequence_config.json", {"class_names": 10**12}, "class_names is 1000000000000. Give a list"),
        ("sequence_config.json", {"class_names": [str(c) for c in range(10**6 + 1)]}, "at most 1000000"),
    ],
)
def test_made_up_sizes_are_refused_before_any_work(folder, name, changes, message):
    edit(folder / name, **changes)
    began = time.monotonic()
    with pytest.raises(CodegridError, match=message):
        load_prior(folder)
    assert time.monotonic() - began < 5


def test_a_model_of_another_vocabulary_is_not_saved(model, tmp_path):
    with pytest.raises(ValueError, match="different priors"):
        save_prior(model, SequenceConfig(17, (3, 3)), tmp_path)
    with pytest.raises(ValueError, match="not as LlamaModel"):
        save_prior(model.model, SEQUENCE, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../prior2/model.safetensors", "/tmp/x.safetensors", "a\\b.safetensors", "model.bin"])
def test_a_shard_index_must_stay_in_its_folder(folder, name):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ValueError, match=r"Only \.safetensors files in the same folder"):
        load_prior(folder)


def test_shards_are_loaded(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    SEQUENCE.save(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded, _ = load_prior(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_pickles_are_not_read(folder, model):
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="Only safetensors"):
        load_prior(folder)


def test_a_folder_that_is_no_prior_is_refused_with_a_sentence(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="it is no prior"):
        load_prior(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_prior(tmp_path / "nowhere")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_prior(folder)


def test_transformers_loads_a_prior_where_this_project_is_not(folder):
    code = """
import sys
for name in ("prior", "tokenizer", "pipelines"):
    sys.modules[name] = None  # an import of it fails
import torch
from transformers import AutoModelForCausalLM
with torch.no_grad():
    print(AutoModelForCausalLM.from_pretrained(sys.argv[1])(torch.tensor([[16, 1, 2]])).logits.flatten().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    model, _ = load_prior(folder)
    with torch.no_grad():
        expected = model(torch.tensor([[16, 1, 2]])).logits.flatten()
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected)


def test_an_adapter_of_peft_is_trained_on_it_and_merged(folder, tmp_path):
    peft = pytest.importorskip("peft")
    model, sequence = load_prior(folder)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).train()
    with pytest.raises(CodegridError, match="holds other layers"):
        PriorObjective(adapted.base_model.model, 16, checkpointing=True)
    codes, labels = torch.randint(0, 16, (4, 9)), torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(5):
        losses.append(prior_loss(adapted.base_model.model, codes, labels, None, sequence))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    merged = adapted.merge_and_unload()
    save_prior(merged, sequence, tmp_path / "merged")
    loaded, _ = load_prior(tmp_path / "merged")
    after = prior_loss(loaded, codes, labels, None, sequence)
    torch.testing.assert_close(after, prior_loss(merged.eval(), codes, labels, None, sequence))
