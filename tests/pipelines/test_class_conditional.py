"""A class-conditional tokenizer through all commands: the labels reach decoder and discriminator, by their names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.classes import decoder_classes
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.evaluation.reconstruct import reconstruct
from codegrid.pipelines.evaluation.reconstruction import evaluate_reconstruction
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer import train as train_tokenizer
from codegrid.prior import SequenceConfig
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.discriminators import PatchGANConfig, StyleGANConfig
from codegrid.tokenizer.metrics import psnr

NAMES = ("gradient", "noise", "stripes")
ADVERSARIAL = {
    "adversarial_weight": 0.5,
    "adversarial_start": 1,
    "adversarial_warmup": 0,
    "lecam_weight": 0.1,
    "r1_weight": 1.0,
    "gradient_penalty_weight": 1.0,
    "discriminator": PatchGANConfig(ndf=8, n_layers=1, conditional=True),
}


@pytest.fixture(scope="module")
def conditional(tokenizer_config, tmp_path_factory):
    """The folder of a class-conditional tokenizer whose classes make a difference."""
    config = tokenizer_config(
        tmp_path_factory.mktemp("conditional") / "run", max_steps=4, class_conditional=True, objective=ADVERSARIAL
    )
    folder = train_tokenizer.train_tokenizer(config)
    model = VQModel.from_pretrained(folder)
    learned = [p for name, p in model.named_parameters() if name.endswith("modulation")]
    assert all(parameter.any() for parameter in learned)  # the labels came in
    with torch.no_grad():
        for parameter in learned:
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


def test_training_takes_the_classes_of_the_data(conditional, read_metrics):
    config = VQModel.from_pretrained(conditional).config
    assert config.class_names == NAMES
    line = [line for line in read_metrics(conditional) if line["kind"] == "train"][-1]
    assert {"adversarial", "discriminator", "gradient_penalty", "r1", "lecam"} <= set(line)
    checkpoint = next((conditional / "checkpoints").iterdir())
    assert "labels" in (conditional / "README.md").read_text()
    assert checkpoint.name == "step-000000004"


@pytest.mark.parametrize("conditional_decoder", [True, False])
def test_a_run_that_was_broken_off_equals_one_that_was_not(tokenizer_config, tmp_path, at_step, conditional_decoder):
    discriminator = StyleGANConfig(channels=4, max_channels=8, num_blocks=2, conditional=True)
    changes = {
        "max_steps": 4,
        "save_every": 1,
        "gradient_accumulation_steps": 2,
        "class_conditional": conditional_decoder,
        "objective": {**ADVERSARIAL, "discriminator": discriminator},
    }
    whole = train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "whole", **changes))
    config = tokenizer_config(tmp_path / "broken", **changes)

    def break_off():
        raise InterruptedError

    at_step(train_tokenizer, "train_step", 2, break_off)
    with pytest.raises(InterruptedError):
        train_tokenizer.train_tokenizer(config)
    broken = train_tokenizer.train_tokenizer(config)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert VQModel.from_pretrained(broken).config.num_classes == (3 if conditional_decoder else 0)


def test_scores_and_pictures_go_by_the_labels(conditional, pictures, tmp_path):
    model, source = VQModel.from_pretrained(conditional).eval(), open_images(DataConfig(str(pictures)))
    scores = evaluate_reconstruction(model, source, make_accelerator("cpu", "no"), batch_size=5)
    (batch,) = prepared_batches(model, iter(source), 100)
    labels = torch.tensor([NAMES.index(record.source_id.split("/")[0]) for record in batch.records])
    with torch.no_grad():
        made, wrong = (model(batch.images, chosen).reconstruction for chosen in (labels, (labels + 1) % 3))
    as_saved = lambda pixels: (((pixels.clamp(-1, 1) + 1) * 127.5).round() / 127.5) - 1  # noqa: E731
    assert scores.psnr != pytest.approx(psnr(batch.images, as_saved(wrong)).mean().item(), abs=1e-3)
    assert scores.psnr == pytest.approx(psnr(batch.images, as_saved(made)).mean().item(), abs=1e-2)
    folder = reconstruct(str(conditional), DataConfig(str(pictures)), str(tmp_path / "out"), num_pictures=4)
    assert json.loads((folder / "scores.json").read_text())["psnr"] == pytest.approx(scores.psnr, rel=1e-4)


def test_generation_decodes_each_class_as_itself(conditional, pictures, prior_config, tmp_path):
    codes = tokenize_dataset(
        TokenizationConfig(str(conditional), DataConfig(str(pictures)), str(tmp_path / "codes"), device="cpu")
    )
    prior = train_prior(prior_config(tmp_path / "prior", codes=str(codes), tokenizer=str(conditional)))
    pipe = ImageGenerationPipeline.from_pretrained(make_pipeline(str(conditional), str(prior), tmp_path / "pipe"))
    output = pipe(
        ["stripes", 0, "noise"], num_images_per_label=2, seed=0, batch_size=4, output_type="pt", progress=False
    )
    assert output.labels == [2, 2, 0, 0, 1, 1]
    expected = pipe.tokenizer.decode(output.codes, torch.tensor(output.labels)).clamp(-1, 1)
    torch.testing.assert_close(output.images, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pipe.decode(output.codes, output.labels), output.images, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="class-conditional, and no labels are given"):
        pipe.decode(output.codes)
    # The prior's classes are found by name, whatever their order; a prior that has none cannot be decoded.
    other = replace(pipe.sequence, class_names=("stripes", "noise", "gradient"))
    renamed = ImageGenerationPipeline(pipe.tokenizer, pipe.prior, other)
    torch.testing.assert_close(renamed.decode(output.codes, [0, 0, 2, 2, 1, 1]), output.images, rtol=1e-4, atol=1e-4)
    none = SequenceConfig(pipe.sequence.codebook_size, pipe.sequence.grid_shape)
    with pytest.raises(LoadingError, match=r"class-conditional \(3 classes\), and the prior has no classes"):
        ImageGenerationPipeline(pipe.tokenizer, pipe.prior, none)
    with pytest.raises(LoadingError, match="does not know 'waves' of the prior"):
        ImageGenerationPipeline(pipe.tokenizer, pipe.prior, replace(other, class_names=("noise", "stripes", "waves")))


def test_data_without_its_classes_is_refused(conditional, pictures, tokenizer_config, tmp_path):
    unlabelled = DataConfig(str(pictures), label_column="none")
    for use in (
        lambda: reconstruct(str(conditional), unlabelled, str(tmp_path / "out")),
        lambda: tokenize_dataset(
            TokenizationConfig(str(conditional), unlabelled, str(tmp_path / "codes"), device="cpu")
        ),
    ):
        with pytest.raises(DataError, match=r"class-conditional \(3 classes\), and .* has no classes"):
            use()
    for changes in ({"class_conditional": True}, {"objective": ADVERSARIAL}):
        with pytest.raises(DataError, match=r"there are no labels, and .*conditional is set"):
            train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "run", data=unlabelled, **changes))
    assert not Path(tmp_path / "codes").exists()
    config = VQModel.from_pretrained(conditional).config
    assert decoder_classes(config, ["stripes", "gradient"], "data") == (2, 0)
    with pytest.raises(DataError, match="does not know 'waves' of data; its classes are gradient, noise, stripes"):
        decoder_classes(config, ["noise", "waves"], "data")
