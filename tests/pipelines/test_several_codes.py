"""Several codes a position, from the pictures to generated images, and what training does for each level."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.training.ema import EMA
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.step import make_learners, train_step
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.prior import to_codes, to_tokens
from codegrid.prior.codes import open_codes
from codegrid.tokenizer import VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.quantizers import (
    GroupedQuantizerConfig,
    HierarchicalQuantizerConfig,
    LookupFreeQuantizerConfig,
    ResidualQuantizerConfig,
)

QUANTIZERS = {
    "residual": ResidualQuantizerConfig(
        depth=3, inner=VectorQuantizerConfig(codebook_size=16, code_dim=4, l2_normalize=False)
    ),
    "grouped": GroupedQuantizerConfig(groups=3, inner=VectorQuantizerConfig(codebook_size=16, code_dim=2)),
    "hierarchical": HierarchicalQuantizerConfig(
        channels=8, inner=VectorQuantizerConfig(codebook_size=16, code_dim=4, codebook_init="kmeans")
    ),
}
# Rows, columns and codes a position of each for the tests' 4x4 features.
SHAPES = {"residual": (4, 4, 3), "grouped": (4, 4, 3), "hierarchical": (2, 2, 5)}


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_the_whole_way(kind, tokenizer_config, prior_config, pictures, tmp_path, capsys):
    config = replace(tokenizer_config(tmp_path / "tokenizer"), quantizer=QUANTIZERS[kind])
    model = load_tokenizer(train_tokenizer(config))
    shape = SHAPES[kind]
    length, depth = math.prod(shape), shape[-1]
    name = "x".join(map(str, shape))
    assert f"{length} tokens ({name}) of 16 codes" in capsys.readouterr().out
    assert f"into {name} codes of 16 ({kind})" in (tmp_path / "tokenizer" / "README.md").read_text()

    data = DataConfig(str(pictures))
    folder = tokenize_dataset(TokenizationConfig(config.output_dir, data, str(tmp_path / "codes"), device="cpu"))
    assert f"rows of {length} codes" in capsys.readouterr().out
    codes = open_codes(str(folder))
    sequence = codes.manifest.sequence_config()
    assert (*sequence.grid_shape, sequence.depth) == shape
    assert (sequence.length, sequence.codebook_size) == (length, 16)
    assert sequence.order == ("grids" if kind == "hierarchical" else "positions")
    (batch,) = prepared_batches(model, iter(open_images(data)), 64)
    encoded = model.encode(batch.images)  # [N, h, w, depth]
    rows = torch.from_numpy(codes.codes(np.arange(18)))  # [N, h w depth]
    assert torch.equal(rows[:, :depth], encoded[:, 0, 0])  # all codes of the first position come first
    assert torch.equal(rows[:, depth : 2 * depth], encoded[:, 0, 1])
    found = to_codes(to_tokens(rows, torch.from_numpy(codes.labels), None, sequence)[:, 1:], sequence)
    assert torch.equal(found, encoded)
    assert torch.equal(model.decode(found), model(batch.images).reconstruction)

    prior = train_prior(prior_config(tmp_path / "prior", codes=str(folder), tokenizer=config.output_dir))
    pipe = ImageGenerationPipeline.from_pretrained(make_pipeline(config.output_dir, str(prior), tmp_path / "pipe"))
    output = pipe(num_images=4, seed=0, output_type="pt", progress=False)
    assert output.codes.shape == (4, *shape)
    assert torch.equal(output.images, model.decode(output.codes).clamp(-1, 1))


def test_each_level_that_was_revived_starts_anew(tokenizer_config, tmp_path, monkeypatch):
    """Its rows of the average are the new ones, and the optimizer's moments are zero there and nowhere else."""
    config = replace(tokenizer_config(tmp_path / "run", max_steps=100), quantizer=QUANTIZERS["residual"])
    model = VQModel(
        VQModelConfig(backbone=config.backbone, quantizer=config.quantizer, preprocessing=config.preprocessing)
    )
    accelerator = make_accelerator("cpu", "no")
    learners = make_learners(
        model, config.objective, config.optimizer, config.discriminator_optimizer, 0.9, accelerator
    )
    batch = [torch.rand(4, 3, 16, 16) * 2 - 1]
    train_step(learners, config, batch, 0, accelerator)  # places all codes
    moved = {}
    copy_rows = EMA.copy_rows
    monkeypatch.setattr(
        EMA, "copy_rows", lambda ema, name, rows: (moved.update({name: rows}), copy_rows(ema, name, rows))
    )
    model.quantize.levels[1].usage[3:5] = -1  # dead, whatever the batch uses
    model.quantize.levels[2].usage[7] = -1
    monkeypatch.setattr(
        learners.ema, "update", lambda step, skipped: None
    )  # or the average would move after the revival
    values = train_step(learners, config, batch, 1, accelerator)
    assert values["code_counts"].shape == (3 * 16,)
    assert values["code_counts"].view(3, 16).sum(1).tolist() == [64, 64, 64]
    assert len(moved) == 2
    for level, dead in ((1, [3, 4]), (2, [7])):
        name = f"quantize.levels.{level}.embedding.weight"
        rows = moved[name]
        assert rows.tolist() == dead
        assert torch.equal(learners.ema.weights[name][rows], model.get_parameter(name)[rows])
        for slot in ("exp_avg", "exp_avg_sq"):
            moments = learners.model.optimizer.state[model.get_parameter(name)][slot]
            assert (moments[rows] == 0).all()
            assert (moments != 0).any()


def test_four_million_codes_take_no_room_in_a_checkpoint(tokenizer_config, tmp_path, read_metrics):
    """Of the 2^22 codes of 22 bits, a step's window names those that occurred: a count for each would be 34 MB."""
    config = tokenizer_config(tmp_path / "run", max_steps=2, log_every=2, save_every=1, keep_last=2)
    config = replace(config, quantizer=LookupFreeQuantizerConfig(num_bits=22))
    folder = train_tokenizer(config)
    (file,) = (folder / "checkpoints" / "step-000000001").glob("window*.safetensors")
    window = load_file(file)["0/code_counts"]
    assert window.shape[1] == 2
    assert int(window[:, 1].sum()) == config.batch_size * 16
    (line,) = [line for line in read_metrics(folder) if line["kind"] == "train" and line["step"] == 2]
    assert 0 < line["code_usage"] <= 2 * config.batch_size * 16 / 2**22
