"""taming's GPT against what its own code gave (golden/, by scripts/import_parity.py), and what has no null class."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from codegrid.pipelines.importing.parity import PIXEL_TOLERANCE, random_weights
from codegrid.prior import SequenceConfig, load_prior, sample_codes, save_prior, to_tokens
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.importers import convert_prior, guess_prior_family


def golden(name):
    """Tokens [6, 16], taming's logits [6, 16, 64], its settings, and the weights made again from names and shapes."""
    with safe_open(Path(__file__).parent / "golden" / f"{name}.safetensors", framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
        weights = random_weights({key: tuple(shape) for key, shape in shapes.items()})
        settings = json.loads(file.metadata()["settings"])
        return file.get_tensor("tokens"), file.get_tensor("logits"), settings, weights


CLASSES, FREE = golden("taming-gpt"), golden("taming-gpt-unconditional")


@torch.no_grad()
@pytest.mark.parametrize(("recorded", "classes"), [(CLASSES, 5), (FREE, 0)])
def test_logits_are_those_of_tamings_own_code(recorded, classes, tmp_path):
    tokens, logits, settings, weights = recorded
    assert guess_prior_family(weights) == "taming-gpt"
    beside = {"transformer.blocks.0.attn.mask": torch.ones(1, 1, 24, 24), "first_stage_model.loss.x": torch.ones(1)}
    model, sequence = convert_prior("taming-gpt", weights | beside, 4, settings=settings)
    assert (sequence.codebook_size, sequence.num_classes, sequence.length) == (64, classes, 16)
    assert sequence.null_class is (classes == 0)
    save_prior(model, sequence, tmp_path)
    loaded, read = load_prior(tmp_path)
    assert read == sequence
    bound = PIXEL_TOLERANCE * (logits.max() - logits.min())
    for other in (loaded, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(other) is GPT2LMHeadModel
        assert (other(tokens).logits[..., :64] - logits).abs().max() <= bound
    decoder = Decoder(read_weights(loaded, 64, 16), len(tokens))
    steps = torch.stack([decoder.step(column) for column in tokens.unbind(1)], dim=1)
    torch.testing.assert_close(steps, logits, atol=1e-4, rtol=1e-4)


def test_tokens_of_classes_and_of_the_start_have_the_rows_of_codes():
    theirs = CLASSES[3]["transformer.tok_emb.weight"]
    rows = convert_prior("taming-gpt", CLASSES[3], 4, settings=CLASSES[2])[0].transformer.wte.weight
    assert torch.equal(rows, torch.cat([theirs, theirs[:5], torch.zeros(1, 64)]))
    rows = convert_prior("taming-gpt", FREE[3], 4, settings=FREE[2])[0].transformer.wte.weight
    assert torch.equal(rows, torch.cat([theirs, theirs[3:4]]))


def test_the_first_stage_beside_it_tells_how_many_codes_there_are():
    """taming's vocabulary may have more tokens than there are codes."""
    weights = CLASSES[3] | {"first_stage_model.quantize.embedding.weight": torch.ones(60, 4)}
    model, sequence = convert_prior("taming-gpt", weights, 4, settings=CLASSES[2])
    assert (sequence.codebook_size, model.config.vocab_size) == (60, 66)
    assert torch.equal(model.lm_head.weight[:60], CLASSES[3]["transformer.head.weight"][:60])
    weights |= {"first_stage_model.quantize.used": torch.arange(0, 60, 2)}
    assert convert_prior("taming-gpt", weights, 4, settings=CLASSES[2])[1].codebook_size == 30
    weights = CLASSES[3] | {"first_stage_model.quantize.embedding.weight": torch.ones(70, 4)}
    with pytest.raises(ValueError, match="64 rows, too few for code, class or start token 69"):
        convert_prior("taming-gpt", weights, 4, settings=CLASSES[2])


def test_positions_are_as_many_as_the_grid_needs():
    """Trained on longer sequences, or on exactly these: taming never feeds the last code, serving engines count it."""
    theirs = CLASSES[3]["transformer.pos_emb"][0]  # [24, D]
    rows = convert_prior("taming-gpt", CLASSES[3], 4, settings=CLASSES[2])[0].transformer.wpe.weight
    assert torch.equal(rows, theirs[:17])
    weights = CLASSES[3] | {"transformer.pos_emb": theirs[None, :16]}
    rows = convert_prior("taming-gpt", weights, 4, settings=CLASSES[2])[0].transformer.wpe.weight
    assert torch.equal(rows[:16], theirs[:16])
    assert not rows[16].any()
    with pytest.raises(ValueError, match="24 positions, too few for 5 x 5 codes"):
        convert_prior("taming-gpt", CLASSES[3], 5, settings=CLASSES[2])


def changed(**params):
    settings = copy.deepcopy(CLASSES[2])
    settings["model"]["params"] |= params
    return settings


COORDINATES = {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 64}}
NETWORK = CLASSES[2]["model"]["params"]["transformer_config"]["params"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "tell neither its heads nor what its first token means. Give its yaml"),
        ({"model": {"params": {"ddconfig": {}}}}, "no model.params.transformer_config"),
        (changed(cond_stage_key="coord", cond_stage_config=COORDINATES), r"conditioned on 'coord' \(.*CoordStage\)"),
        (changed(cond_stage_config="__is_first_stage__"), r"conditioned on .*\(__is_first_stage__\)"),
        (changed(cond_stage_config={"target": "x.Labelator"}), "n_classes is None"),
        (changed(transformer_config={"params": NETWORK | {"n_layer": 3}}), r"n_layer 3 \(the weights: 2\)"),
        (changed(transformer_config={"params": NETWORK | {"n_unmasked": 16}}), "n_unmasked is 16"),
    ],
)
def test_settings_of_another_kind_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        convert_prior("taming-gpt", CLASSES[3], 4, settings=settings)


def test_what_is_no_whole_checkpoint_is_refused_by_name():
    _, _, settings, weights = CLASSES
    cut = {key: value for key, value in weights.items() if key != "transformer.blocks.1.attn.key.weight"}
    expected = r"missing: transformer\.h\.1\.attn\.c_attn\.weight; not known: transformer\.blocks\.1\.attn\.query"
    with pytest.raises(ValueError, match=expected):
        convert_prior("taming-gpt", cut, 4, settings=settings)
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        convert_prior("taming-gpt", {k: v for k, v in weights.items() if "head" not in k}, 4, settings=settings)
    with pytest.raises(ValueError, match="2 class names were given; the checkpoint has 5"):
        convert_prior("taming-gpt", weights, 4, ("a", "b"), settings=settings)
    with pytest.raises(ValueError, match="2 class names were given; the checkpoint is unconditional"):
        convert_prior("taming-gpt", weights, 4, ("a", "b"), settings=FREE[2])
    with pytest.raises(ValueError, match=r"not the weights of LlamaGen's.* use the family taming-gpt"):
        convert_prior("llamagen-gpt", weights, 4)
    order = {"permuter.forward_shuffle_idx": torch.arange(16).flip(0)}
    with pytest.raises(ValueError, match=r"another order than row by row \(its permuter, first 15, 14, 13, 12"):
        convert_prior("taming-gpt", weights | order, 4, settings=settings)
    order = {"permuter.forward_shuffle_idx": torch.arange(16)}
    convert_prior("taming-gpt", weights | order, 4, settings=settings)


def test_without_a_null_class_there_is_neither_guidance_nor_an_image_of_no_class(tmp_path):
    model, sequence = convert_prior("taming-gpt", CLASSES[3], 4, settings=CLASSES[2])
    assert not sequence.can_be_guided
    assert sample_codes(model, sequence, [0, 4], seeds=[1, 2]).shape == (2, 16)
    with pytest.raises(ValueError, match=r"guidance_scale is 2\.0, but this prior has no null class"):
        sample_codes(model, sequence, [0], seeds=[1], guidance_scale=2.0)
    with pytest.raises(ValueError, match="no null class, and no labels are given"):
        sample_codes(model, sequence, seeds=[1])
    with pytest.raises(ValueError, match="no null class, and drop is given"):
        to_tokens(torch.zeros(1, 16, dtype=torch.int64), torch.tensor([1]), torch.tensor([True]), sequence)
    with pytest.raises(ValueError, match="null_class is False"):
        SequenceConfig(64, (4, 4), null_class=False)
    # Priors that were saved before the field was there have one.
    path = sequence.save(tmp_path)
    older = {key: value for key, value in json.loads(path.read_text()).items() if key != "null_class"}
    path.write_text(json.dumps(older))
    assert SequenceConfig.load(tmp_path).can_be_guided
