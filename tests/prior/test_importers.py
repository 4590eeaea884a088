"""LlamaGen's GPT against what its own code gave (golden/, by scripts/import_parity.py); rotary positions on a grid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from codegrid.pipelines.importing.parity import PIXEL_TOLERANCE, random_weights
from codegrid.prior import PriorConfig, SequenceConfig, load_prior, make_prior, save_prior
from codegrid.prior.architectures.grid_llama import GridLlamaForCausalLM
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.importers import convert_prior, guess_prior_family

SEQUENCE = SequenceConfig(16, (3, 4), class_names=("a", "b"))


@pytest.fixture(scope="module")
def golden():
    """Tokens [6, 16] and LlamaGen's logits [6, 16, 64], and the weights made again from their names and shapes."""
    path = Path(__file__).parent / "golden" / "llamagen-gpt.safetensors"
    with safe_open(path, framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
        weights = random_weights({key: tuple(shape) for key, shape in shapes.items()})
        return file.get_tensor("tokens"), file.get_tensor("logits"), weights


@torch.no_grad()
def test_logits_are_those_of_llamagens_own_code(golden, tmp_path):
    tokens, logits, weights = golden
    assert guess_prior_family(weights) == "llamagen-gpt"
    model, sequence = convert_prior("llamagen-gpt", weights, 4, heads=4)
    assert (sequence.codebook_size, sequence.num_classes, sequence.length) == (64, 5, 16)
    save_prior(model, sequence, tmp_path)
    model, sequence = load_prior(tmp_path)
    bound = PIXEL_TOLERANCE * (logits.max() - logits.min())
    assert (model(tokens).logits[..., :64] - logits).abs().max() <= bound
    # What sampling reads is the same network, step by step.
    decoder = Decoder(read_weights(model, 64, 16), len(tokens))
    steps = torch.stack([decoder.step(column) for column in tokens.unbind(1)], dim=1)
    torch.testing.assert_close(steps, logits, atol=1e-4, rtol=1e-4)


def test_what_is_no_whole_checkpoint_is_refused_by_name(golden):
    _, _, weights = golden
    cut = {key: value for key, value in weights.items() if key != "layers.1.feed_forward.w2.weight"}
    with pytest.raises(ValueError, match=r"missing: model\.layers\.1\.mlp\.down_proj\.weight"):
        convert_prior("llamagen-gpt", cut, 4, heads=4)
    with pytest.raises(ValueError, match=r"not known: layers\.0\.extra\.weight"):
        convert_prior("llamagen-gpt", {**weights, "layers.0.extra.weight": torch.ones(1)}, 4, heads=4)
    with pytest.raises(ValueError, match="2 layers of width 64 are no published size"):
        convert_prior("llamagen-gpt", weights, 4)
    with pytest.raises(ValueError, match="2 class names were given; the checkpoint has 5"):
        convert_prior("llamagen-gpt", weights, 4, ("a", "b"), 4)
    with pytest.raises(ValueError, match="not the weights of LlamaGen's"):
        convert_prior("llamagen-gpt", {"encoder.conv_in.weight": torch.ones(1)}, 4)
    for key, name in (
        ("cls_embedding.cap_proj.fc1.weight", "text-conditional"),
        ("transformer.class_emb.embedding_table.weight", "IBQ's prior"),
        ("transformer.pre_emb.weight", "Open-MAGVIT2's prior"),
    ):
        with pytest.raises(ValueError, match=name):
            convert_prior("llamagen-gpt", {key: torch.ones(1)}, 4)


@torch.no_grad()
def test_rotary_positions_are_rows_and_columns():
    """Equal steps on the grid give equal scores, by the definition: a score depends on the two differences alone."""
    config = PriorConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, positions="rotary_2d")
    model = make_prior(config, SEQUENCE).eval()
    assert isinstance(model, GridLlamaForCausalLM)
    cos, sin = model.model.rotary_emb(torch.empty(0), torch.arange(13)[None])  # 3 lines of 4, behind the prefix
    assert torch.equal(cos[0, 0], torch.ones(16))
    query, key = torch.randn(2, 16)

    def turned(vector, position):
        half = torch.cat([-vector[8:], vector[:8]])
        return vector * cos[0, position] + half * sin[0, position]

    def score(a, b):
        return turned(query, a) @ turned(key, b)

    # Positions 1 + 4 * row + column: (0,0)->(1,1), (1,2)->(2,3), (0,2)->(1,3).
    torch.testing.assert_close(score(6, 1), score(12, 7))
    torch.testing.assert_close(score(6, 1), score(8, 3))
    assert abs(score(5, 1) - score(2, 1)) > 1e-4  # a line down is not a column to the right


def test_a_zero_prefix_has_no_angle(golden):
    model, _ = convert_prior("llamagen-gpt", golden[2], 4, heads=4)
    cos, sin = model.model.rotary_emb(torch.empty(0), torch.arange(3)[None])
    assert not cos[0, 0].any()
    assert not sin[0, 0].any()
    assert cos[0, 1].all()


@torch.no_grad()
def test_a_prior_on_the_grid_is_saved_and_generates(tmp_path):
    config = PriorConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, positions="rotary_2d")
    model = make_prior(config, SEQUENCE).eval()
    save_prior(model, SEQUENCE, tmp_path)
    loaded, _ = load_prior(tmp_path)
    tokens = torch.randint(0, 16, (2, 12))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    codes = loaded.generate(torch.full((1, 1), SEQUENCE.class_token(1)), do_sample=False)[:, 1:]
    decoder, token = Decoder(read_weights(loaded, 16, 12), 1), torch.tensor([SEQUENCE.class_token(1)])
    for expected in codes[0]:
        token = decoder.step(token).argmax(-1)
        assert token == expected


def test_positions_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="positions is 'absolute'"):
        PriorConfig(positions="absolute")
    with pytest.raises(ValueError, match="6 dimensions a head; positions on the grid need a multiple of 4"):
        PriorConfig(hidden_size=24, num_attention_heads=4, positions="rotary_2d")
    deep = SequenceConfig(16, (3, 3), depth=2)
    with pytest.raises(ValueError, match="2 codes at each"):
        make_prior(PriorConfig(32, 1, 2, positions="rotary_2d"), deep)
