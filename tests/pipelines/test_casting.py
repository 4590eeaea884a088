"""Half precision and moving: a cast model is what it was cast from, in its fingerprint, when saved and when loaded."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import LoadingError, load_prior_and_sequence, load_tokenizer
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.tokenizer import VQModel

DRAWN = np.random.default_rng(12).permutation(["bfloat16", "float16", "float64", "float32"]).tolist()


@pytest.mark.parametrize("dtypes", [["bfloat16"], ["float16", "float32"], ["float32"], DRAWN])
def test_a_cast_tokenizer_keeps_its_fingerprint(tiny_vqmodel, tmp_path, dtypes):
    before = tiny_vqmodel.fingerprint()
    for name in dtypes:
        tiny_vqmodel.to(getattr(torch, name))
        assert tiny_vqmodel.fingerprint() == before
    assert copy.deepcopy(tiny_vqmodel).fingerprint() == before
    tiny_vqmodel.save_pretrained(tmp_path / "cast")
    again = VQModel.from_pretrained(tmp_path / "cast")
    assert (again.dtype, again.fingerprint()) == (getattr(torch, dtypes[-1]), before)
    for way in (again.float, again.half, again.bfloat16, again.double):
        assert way().fingerprint() == before
    again.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").fingerprint() == before


def test_config_json_of_a_model_that_was_not_cast_says_nothing(tiny_vqmodel, tmp_path):
    tiny_vqmodel.to("cpu").save_pretrained(tmp_path)
    assert "cast_from" not in json.loads((tmp_path / "config.json").read_text())


def test_weights_that_change_after_a_cast_have_their_own(tiny_vqmodel, tmp_path):
    before = tiny_vqmodel.fingerprint()
    tiny_vqmodel.bfloat16()
    with torch.no_grad():
        next(tiny_vqmodel.parameters()).mul_(1.5)
    after = tiny_vqmodel.fingerprint()
    assert after != before
    tiny_vqmodel.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint() == after
    assert tiny_vqmodel.float().fingerprint() == after


def test_dtype_while_loading(tokenizer_folder):
    stored = load_tokenizer(tokenizer_folder)
    for options in ({"dtype": torch.bfloat16}, {"dtype": "float16"}, {"torch_dtype": "torch.bfloat16"}):
        for load in (VQModel.from_pretrained, load_tokenizer):
            model = load(tokenizer_folder, **options)
            assert model.dtype != torch.float32
            assert model.fingerprint() == stored.fingerprint()
    assert VQModel.from_pretrained(tokenizer_folder, dtype="auto").dtype == torch.float32
    for options, message in [
        ({"dtype": "int8"}, "dtype is int8"),
        ({"dtype": torch.int64}, r"dtype is torch\.int64"),
        ({"dtype": "bf16"}, "dtype is bf16"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "two names"),
    ]:
        for load in (VQModel.from_pretrained, load_tokenizer, load_prior_and_sequence):
            with pytest.raises(CodegridError, match=message):
                load(tokenizer_folder, **options)


@pytest.mark.parametrize("arguments", [(torch.bfloat16,), ("cpu", torch.float16), (torch.float64,)])
def test_a_cast_pipeline_is_saved_and_loaded(pipeline_folder, tmp_path, arguments):
    pipe = ImageGenerationPipeline.from_pretrained(pipeline_folder)
    wanted = pipe.tokenizer.fingerprint()
    assert pipe.to(*arguments) is pipe
    assert pipe.dtype == pipe.tokenizer.dtype == arguments[-1]
    output = pipe("noise", num_images_per_label=2, seed=0, progress=False, output_type="pt")
    assert torch.isfinite(output.images).all()
    assert pipe.encode(output.images).shape == output.codes.shape
    again = ImageGenerationPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "cast"))
    assert (again.dtype, again.tokenizer.fingerprint()) == (arguments[-1], wanted)
    same = again("noise", num_images_per_label=2, seed=0, progress=False, output_type="codes")
    assert torch.equal(same.codes, output.codes)
    pushed = ImageGenerationPipeline.from_pretrained(again.save_pretrained(tmp_path / "cast"), dtype="float32")
    assert pushed.dtype == torch.float32


def test_to_and_device_map(pipeline_folder):
    load = ImageGenerationPipeline.from_pretrained
    for device_map in ("cpu", {"": "cpu"}, torch.device("cpu")):
        pipe = load(pipeline_folder, device_map=device_map, torch_dtype="bfloat16")
        assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert load(pipeline_folder, device_map="auto").device.type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(CodegridError, match=r"dtype is torch\.int32"):
        load(pipeline_folder).to(torch.int32)
    for device_map in ("balanced", {"tokenizer": "cpu", "prior": "cpu"}):
        with pytest.raises(CodegridError, match=r"device_map is .*one device"):
            load(pipeline_folder, device_map=device_map)
    with pytest.raises(CodegridError, match="Unknown arguments cach_dir"):
        load(pipeline_folder, cach_dir="x")


@pytest.fixture
def cached(pipeline_folder, tmp_path):
    """A cache of downloads that holds the pipeline as me/pipe."""
    folder = tmp_path / "cache" / "models--me--pipe"
    (folder / "refs").mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(pipeline_folder, folder / "snapshots" / ("0" * 40))
    return folder


def test_a_cache_and_no_connection(cached, pipeline_folder):
    options = {"cache_dir": cached.parent, "local_files_only": True}
    pipe = ImageGenerationPipeline.from_pretrained("me/pipe", **options)
    assert pipe.tokenizer.fingerprint() == load_tokenizer(pipeline_folder / "tokenizer").fingerprint()
    assert load_tokenizer("me/pipe", subfolder="tokenizer", **options).fingerprint() == pipe.tokenizer.fingerprint()
    assert load_prior_and_sequence("me/pipe", subfolder="prior", **options)[1] == pipe.sequence
    with pytest.raises(LoadingError, match="neither a folder here nor a repository"):
        ImageGenerationPipeline.from_pretrained("me/other", **options)


FILES = ["model_index.json", "prior/model.safetensors", "tokenizer/config.json", "prior/sequence_config.json"]


@pytest.mark.parametrize("missing", [*FILES[:3], FILES[int(np.random.default_rng(4).integers(4))], "tokenizer"])
def test_half_a_download_is_called_so(cached, missing):
    path = cached / "snapshots" / ("0" * 40) / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (cached / "blobs" / "abc.incomplete").write_bytes(b"half")
    with pytest.raises(LoadingError, match=r"the download is not whole: .*force_download") as caught:
        ImageGenerationPipeline.from_pretrained("me/pipe", cache_dir=cached.parent, local_files_only=True)
    assert Path(missing).as_posix() in str(caught.value)


def test_a_prior_trained_without_dropping_classes_has_no_null_class(prior_config, tokenizer_folder, tmp_path):
    prior = train_prior(prior_config(tmp_path / "prior", class_dropout=0.0, num_samples=3))
    _, sequence = load_prior_and_sequence(prior)
    assert sequence.null_class is False
    pipe = ImageGenerationPipeline.from_pretrained(
        make_pipeline(str(tokenizer_folder), str(prior), str(tmp_path / "pipe"))
    )
    assert pipe.sampling.guidance_scale == 1.0
    assert len(pipe("noise", seed=0, progress=False).images) == 1
    with pytest.raises(CodegridError, match="no null class to lead away from"):
        pipe("noise", guidance_scale=2.0, seed=0, progress=False)
