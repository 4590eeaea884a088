"""What commit be0a219 saved (tests/saved_by_be0a219/make.sh) is still read, sampled from and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence, load_tokenizer
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.data.records import DataConfig, PicturesConfig
from codegrid.pipelines.training.prior.presets import small64_prior
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.presets import small64_tokenizer
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.prior.codes import open_codes
from codegrid.tokenizer.fields import from_dict

SAVED = Path(__file__).parent / "saved_by_be0a219"
TOKENIZER_FINGERPRINT = "2dd92afa6e3ed299a85ff36b9ab40f929cc7580eb38f7eb02784b4385af4a3b5"


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be changed, as the working directory: the runs name their data and codes relative to it."""
    folder = shutil.copytree(SAVED, tmp_path / "saved")
    monkeypatch.chdir(folder)
    return folder


def test_a_tokenizer_and_its_codes(saved):
    assert load_tokenizer(saved / "tokenizer").fingerprint() == TOKENIZER_FINGERPRINT
    codes = open_codes(saved / "codes")
    assert (len(codes), codes.manifest.tokenizer_fingerprint) == (24, TOKENIZER_FINGERPRINT)
    assert codes.manifest.class_names == ("disc", "square")
    # Of another processor, codes that are equally near may be others.
    verify_codes(
        VerificationConfig(
            "codes", tokenizer="tokenizer", data=PicturesConfig("images"), num_samples=0, max_differing=0.05
        )
    )


def test_a_prior(saved):
    model, sequence = load_prior_and_sequence(saved / "prior")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sequence.tokenizer_fingerprint == TOKENIZER_FINGERPRINT
    assert sequence.can_be_guided


def test_a_pipeline_gives_its_samples(saved):
    index = json.loads((saved / "pipeline" / "model_index.json").read_text())
    assert (index["tokenizer"], index["prior"]) == (["tokenizer", "VQModel"], ["transformers", "LlamaForCausalLM"])
    pipe = ImageGenerationPipeline.from_pretrained("pipeline")
    assert pipe.sampling.guidance_scale == 2.0
    images = pipe(num_images=4, seed=3, progress=False).images
    for path, image in zip(sorted((saved / "samples").glob("0*.png")), images, strict=True):
        assert np.abs(np.asarray(Image.open(path), float) - np.asarray(image, float)).mean() < 1.0


def test_a_pipeline_of_a_grid_llama_by_its_former_name(saved):
    """Its library was called "prior"."""
    index = saved / "pipeline" / "model_index.json"
    index.write_text(
        index.read_text().replace('"transformers",\n    "LlamaForCausalLM"', '"prior",\n    "GridLlamaForCausalLM"')
    )
    config = saved / "pipeline" / "prior" / "config.json"
    values = json.loads(config.read_text())
    values.update(architectures=["GridLlamaForCausalLM"], model_type="codegrid_grid_llama", grid_width=2)
    config.write_text(json.dumps(values))
    pipe = ImageGenerationPipeline.from_pretrained("pipeline")
    assert type(pipe.prior).__name__ == "GridLlamaForCausalLM"


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_a_run_is_gone_on_with(saved, stage, capsys):
    folder = saved / stage
    config = json.loads((folder / "training_config.json").read_text())
    assert config.pop("stage") == stage
    before = (folder / "metrics.jsonl").read_text().splitlines()
    exported = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    for name in exported:
        (folder / name).unlink()
    preset, train = {"tokenizer": (small64_tokenizer, train_tokenizer), "prior": (small64_prior, train_prior)}[stage]
    train(from_dict(type(preset("x", "y")), config, where=stage))
    assert f"Resuming {stage} after step 2." in capsys.readouterr().out
    after = (folder / "metrics.jsonl").read_text().splitlines()
    assert after[:2] == before[:2]
    assert [json.loads(line)["step"] for line in after] == [json.loads(line)["step"] for line in before]
    assert {file.name for file in folder.glob("*.safetensors")} == set(exported)
    assert all(torch.isfinite(torch.tensor(json.loads(line).get("grad_norm", 0.0))) for line in after)


def test_data_config_of_a_run_is_read():
    values = json.loads((SAVED / "tokenizer" / "training_config.json").read_text())["data"]
    assert from_dict(DataConfig, values, where="data").source == "images"
