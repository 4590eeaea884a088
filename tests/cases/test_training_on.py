"""Row "training on": --init-from for tokenizers and priors, with frozen parts, other classes and more steps."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import prior_run, tokenizer_run, write_pictures

from codegrid.errors import CodegridError
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer import Preprocessing, VectorQuantizerConfig, VQModel
from codegrid.tokenizer.quantizers import QUANTIZERS

PARTS = {
    "encoder": ("encoder.", "quant_conv."),
    "quantizer": ("quantize.",),
    "decoder": ("decoder.", "post_quant_conv.", "class_embedding."),
}
QUANTIZER_KINDS = {
    "ema": VectorQuantizerConfig(codebook_size=16, code_dim=4, codebook_update="ema"),
    "vq": VectorQuantizerConfig(codebook_size=16, code_dim=4, entropy_weight=0.1),
    "simvq": QUANTIZERS["simvq"](codebook_size=16, code_dim=4),
    "gumbel": QUANTIZERS["gumbel"](codebook_size=16, code_dim=4),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def trained_on(start: Path, folder: Path, pictures: Path, **changes):
    shape = VQModel.from_pretrained(start).config
    config = tokenizer_run(folder, pictures, quantizer=shape.quantizer_config, init_from=str(start), **changes)
    return train_tokenizer(config)


WRITTEN = [(("encoder", "quantizer"), "ema"), (("quantizer",), "vq"), (("decoder",), "simvq"), (("encoder",), "gumbel")]


@pytest.mark.parametrize("case", [*WRITTEN, 12])
def test_frozen_parts_stay_bit_for_bit_and_the_others_move(case, pictures, tmp_path, capsys):
    if isinstance(case, int):
        draw = random.Random(case)
        case = (tuple(draw.sample(sorted(PARTS), draw.randint(1, 2))), draw.choice(sorted(QUANTIZER_KINDS)))
    frozen, kind = case
    start = train_tokenizer(tokenizer_run(tmp_path / "start", pictures, quantizer=QUANTIZER_KINDS[kind]))
    more = {"max_steps": 3, "ema_decay": 0.9, "gradient_accumulation_steps": 2}
    run = trained_on(start, tmp_path / "run", pictures, freeze=frozen, **more)
    assert f"frozen: {', '.join(frozen)}, as in {start}" in capsys.readouterr().out
    before, after = (load_file(folder / "model.safetensors") for folder in (start, run))
    for part, prefixes in PARTS.items():
        names = [name for name in before if name.startswith(prefixes)]
        assert names or part == "quantizer"
        same = all(torch.equal(before[name], after[name]) for name in names)
        assert same == (part in frozen), (case, part)
    if {"encoder", "quantizer"} <= set(frozen):
        images = torch.rand(3, 3, 16, 16) * 2 - 1
        codes = [VQModel.from_pretrained(folder).encode(images) for folder in (start, run)]
        assert torch.equal(*codes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"freeze": ("encoder",)}, "without init_from"),
        ({"freeze": ("encoder", "quantizer", "decoder"), "init_from": "x"}, "names all parts"),
        ({"freeze": ("codebook",), "init_from": "x"}, "It is made of encoder, quantizer, decoder"),
        ({"freeze": ("decoder",), "init_from": "x", "objective": {"adversarial_weight": 0.5}}, "adaptive_weight"),
    ],
)
def test_what_cannot_be_frozen_is_said_at_once(changes, says, tmp_path):
    with pytest.raises(CodegridError, match=says):
        tokenizer_run(tmp_path / "run", tmp_path, **changes)


def test_nothing_left_to_train_is_said_before_the_folder_is_claimed(pictures, tmp_path):
    quantizer = QUANTIZERS["fsq"](levels=(5, 3))
    start = train_tokenizer(tokenizer_run(tmp_path / "start", pictures, quantizer=quantizer))
    with pytest.raises(CodegridError, match="nothing is left to train"):
        trained_on(start, tmp_path / "run", pictures, freeze=("encoder", "decoder"))
    assert not (tmp_path / "run").exists()


def test_frozen_parts_are_no_setting_that_a_resume_may_change(pictures, tmp_path):
    start = train_tokenizer(tokenizer_run(tmp_path / "start", pictures))
    config = tokenizer_run(tmp_path / "run", pictures, init_from=str(start), freeze=("encoder",), save_every=1)
    train_tokenizer(config)
    train_tokenizer(replace(config, max_steps=3))
    with pytest.raises(CodegridError, match=r"freeze was \['encoder'\], is \[\]"):
        train_tokenizer(replace(config, freeze=()))


@pytest.mark.parametrize("classes", [("dog", "cat"), ("cat", "owl", "dog"), ("owl",), 3])
def test_classes_of_a_tokenizer_are_matched_by_name(classes, pictures, tmp_path):
    if isinstance(classes, int):
        draw = random.Random(classes)
        classes = tuple(draw.sample(["ant", "cat", "dog", "eel", "owl"], draw.randint(1, 5)))
    start = train_tokenizer(tokenizer_run(tmp_path / "start", pictures, class_conditional=True))
    write_pictures(tmp_path / "other", classes=classes)
    tiny = {"max_steps": 1, "class_conditional": True, "freeze": ("decoder",)}
    run = trained_on(start, tmp_path / "run", tmp_path / "other", **tiny)
    before, after = VQModel.from_pretrained(start), VQModel.from_pretrained(run)
    assert after.config.class_names == tuple(sorted(classes))
    old = dict(zip(before.config.class_names, before.class_embedding.weight, strict=True))
    for name, row in zip(after.config.class_names, after.class_embedding.weight, strict=True):
        torch.testing.assert_close(row, old.get(name, before.class_embedding.weight.mean(0)), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "changes", [{"backbone": {"ch": 16}}, {"backbone": {"ch_mult": (1, 2, 2)}}, {"backbone": {"z_channels": 16}}]
)
def test_another_network_is_refused_before_the_folder_is_claimed(changes, pictures, tmp_path):
    start = train_tokenizer(tokenizer_run(tmp_path / "start", pictures))
    with pytest.raises(CodegridError, match=r"backbone and quantizer are not those of the tokenizer .*start"):
        train_tokenizer(tokenizer_run(tmp_path / "run", pictures, init_from=str(start), **changes))
    assert not (tmp_path / "run").exists()


def codes_of(tokenizer: Path, source: Path, folder: Path) -> Path:
    return tokenize_dataset(TokenizationConfig(str(tokenizer), DataConfig(str(source)), str(folder), device="cpu"))


@pytest.mark.parametrize("seed", [6])
def test_a_prior_is_trained_on_with_other_classes_and_not_with_another_grid(seed, pictures, tmp_path, capsys):
    """How weights are carried over: tests/prior/test_transfer.py."""
    draw = random.Random(seed)
    tokenizer = train_tokenizer(tokenizer_run(tmp_path / "tokenizer", pictures))
    start = train_prior(prior_run(tmp_path / "start", codes_of(tokenizer, pictures, tmp_path / "codes")))
    classes = tuple(draw.sample(["ant", "cat", "dog", "eel", "owl"], 3))
    other = codes_of(tokenizer, write_pictures(tmp_path / "other", classes=classes), tmp_path / "others")
    run = train_prior(prior_run(tmp_path / "run", other, init_from=str(start)))
    assert load_prior_and_sequence(run)[1].class_names == tuple(sorted(classes)), seed
    capsys.readouterr()
    train_prior(prior_run(tmp_path / "run", other, init_from=str(start), max_steps=3))
    assert "max_steps was 2, is 3" in capsys.readouterr().out
    finer = tokenizer_run(tmp_path / "finer", pictures, preprocessing=Preprocessing(image_size=8))
    grid = codes_of(train_tokenizer(finer), pictures, tmp_path / "grid")
    with pytest.raises(CodegridError, match="grid"):
        train_prior(prior_run(tmp_path / "refused", grid, init_from=str(start)))
    assert not (tmp_path / "refused").exists()


PRIOR_PARTS = {
    "llama": {
        "embeddings": ("model.embed_tokens.",),
        "blocks": ("model.layers.",),
        "head": ("model.norm.", "lm_head."),
    },
    "gpt2": {
        "embeddings": ("transformer.w",),
        "blocks": ("transformer.h.",),
        "head": ("transformer.ln_f.", "lm_head."),
    },
    "bert": {"embeddings": ("bert.embeddings.",), "blocks": ("bert.encoder.",), "head": ("cls.",)},
}


@pytest.mark.parametrize(
    ("architecture", "frozen"),
    [("llama", ("blocks", "head")), ("llama", ("embeddings",)), ("gpt2", ("blocks",)), ("bert", ("head",)), (9, None)],
)
def test_frozen_parts_of_a_prior_stay_and_the_others_move(architecture, frozen, pictures, tmp_path, capsys):
    if frozen is None:
        draw = random.Random(architecture)
        architecture = draw.choice(sorted(PRIOR_PARTS))
        frozen = tuple(draw.sample(["embeddings", "blocks", "head"], draw.randint(1, 2)))
    tokenizer = train_tokenizer(tokenizer_run(tmp_path / "tokenizer", pictures))
    codes = codes_of(tokenizer, pictures, tmp_path / "codes")
    shape = replace(prior_run(tmp_path, codes).model, architecture=architecture)
    start = train_prior(prior_run(tmp_path / "start", codes, model=shape))
    more = {"init_from": str(start), "freeze": frozen, "ema_decay": 0.9, "max_steps": 3}
    optimizer = replace(prior_run(tmp_path, codes).optimizer, learning_rate=0.01)
    run = train_prior(prior_run(tmp_path / "run", codes, optimizer=optimizer, **more))
    assert f"frozen: {', '.join(frozen)}, as in {start}" in capsys.readouterr().out
    before, after = (load_file(folder / "model.safetensors") for folder in (start, run))
    parts = PRIOR_PARTS[architecture]
    for name in before:
        part = next(part for part, prefixes in parts.items() if name.startswith(prefixes))
        assert torch.equal(before[name], after[name]) or part not in frozen, (architecture, frozen, name)
    for part in set(parts) - set(frozen):
        names = [name for name in before if name.startswith(parts[part])]
        assert any(not torch.equal(before[name], after[name]) for name in names), (architecture, frozen, part)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"freeze": ("blocks",)}, "without init_from"),
        ({"freeze": ("embeddings", "blocks", "head"), "init_from": "x"}, "names all parts"),
        ({"freeze": ("norms",), "init_from": "x"}, "It is made of embeddings, blocks, head"),
    ],
)
def test_what_of_a_prior_cannot_be_frozen_is_said_at_once(changes, says, tmp_path):
    with pytest.raises(CodegridError, match=says):
        prior_run(tmp_path / "run", tmp_path, **changes)
