"""Row "half precision": a cast tokenizer, prior or pipeline works in every step, and what it makes says so.

Saving, loading, `dtype`, `torch_dtype`, `device_map` and `to`: tests/pipelines/test_casting.py.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import prior_run, tokenizer_run, write_pictures

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence, load_tokenizer
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.data.records import DataConfig, PicturesConfig
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.prior.codes import CodesError, read_manifest
from codegrid.prior.modeling import save_prior

SAVED = Path(__file__).parents[1] / "saved_by_be0a219"
SEED = 8
DRAWN = str(np.random.default_rng(SEED).choice(["bfloat16", "float16"]))


def cast(folder: Path, dtype: str) -> Path:
    load_tokenizer(SAVED / "tokenizer", dtype=dtype).save_pretrained(folder)
    return folder


def config(tokenizer: Path, pictures: Path, codes: Path, **changes) -> TokenizationConfig:
    return TokenizationConfig(str(tokenizer), DataConfig(str(pictures)), str(codes), device="cpu", **changes)


@pytest.mark.parametrize("dtype", ["float64", DRAWN])
def test_codes_of_a_cast_tokenizer_say_so(tmp_path, capsys, dtype):
    pictures = write_pictures(tmp_path / "pictures", 20)
    half = cast(tmp_path / "half", dtype)
    codes = tokenize_dataset(config(half, pictures, tmp_path / "codes"))
    assert f"The tokenizer's weights are {dtype}" in capsys.readouterr().out
    manifest = read_manifest(codes)
    assert (manifest.precision, manifest.policy["weights"]) == (dtype, dtype)
    assert manifest.tokenizer_fingerprint == load_tokenizer(SAVED / "tokenizer").fingerprint()
    for tokenizer in (half, SAVED / "tokenizer"):  # of the weights before the cast, too
        verify_codes(
            VerificationConfig(
                str(codes), str(tokenizer), PicturesConfig(str(pictures)), num_samples=0, max_differing=0
            )
        )
    run = train_prior(prior_run(tmp_path / "prior", codes, tokenizer=str(SAVED / "tokenizer")))
    pipe = make_pipeline(str(half), str(run), str(tmp_path / "pipe"))
    assert ImageGenerationPipeline.from_pretrained(pipe).tokenizer.dtype == getattr(torch, dtype)


def test_codes_in_float32_are_not_gone_on_with_in_half(tmp_path):
    """Both tokenizers have one fingerprint."""
    pictures = write_pictures(tmp_path / "pictures", 5)
    for name in ("cat", "dog"):
        (pictures / name / "004.png").unlink()
    codes = tokenize_dataset(config(SAVED / "tokenizer", pictures, tmp_path / "codes"))
    assert "weights" not in read_manifest(codes).policy
    write_pictures(tmp_path / "pictures", 5)
    with pytest.raises(OutputError, match="weights was float32, is bfloat16"):
        tokenize_dataset(config(cast(tmp_path / "half", "bfloat16"), pictures, codes))
    plan = codes / ".plan.json"  # of a version that did not ask
    plan.write_text(json.dumps({key: value for key, value in json.loads(plan.read_text()).items() if key != "weights"}))
    tokenize_dataset(config(SAVED / "tokenizer", pictures, codes))
    assert read_manifest(codes).num_rows == 10


def test_a_cast_tokenizer_does_not_accuse_the_codes(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", 60)
    codes = tokenize_dataset(config(SAVED / "tokenizer", pictures, tmp_path / "codes"))
    half = cast(tmp_path / "half", "bfloat16")
    with pytest.raises(CodesError, match=r"whose weights are bfloat16.*made in float32.*that it was cast from"):
        verify_codes(
            VerificationConfig(str(codes), str(half), PicturesConfig(str(pictures)), num_samples=0, max_differing=0)
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", f"{DRAWN}"])
def test_parts_of_two_dtypes_work_together(tmp_path, dtype):
    pipe = ImageGenerationPipeline.from_pretrained(SAVED / "pipeline")
    mixed = ImageGenerationPipeline.from_pretrained(SAVED / "pipeline")
    (mixed.tokenizer if dtype == DRAWN else mixed.prior).to(getattr(torch, dtype))
    again = ImageGenerationPipeline.from_pretrained(mixed.save_pretrained(tmp_path / "mixed"))
    assert {again.tokenizer.dtype, again.prior.dtype} == {torch.float32, getattr(torch, dtype)}
    for each in (mixed, again):
        output = each(num_images=2, seed=SEED, progress=False, output_type="pt")
        assert output.images.dtype == torch.float32
        assert bool(output.images.isfinite().all())
        assert each.encode(output.images.clamp(-1, 1)).shape == output.codes.shape
        assert each.log_likelihood(output.codes).dtype == torch.float64
    assert again.tokenizer.fingerprint() == pipe.tokenizer.fingerprint()


def test_training_goes_on_in_float32_from_half(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", 12)
    half = cast(tmp_path / "half", DRAWN)
    start = load_tokenizer(half).config
    parts = {"quantizer": start.quantizer_config, "preprocessing": start.preprocessing_config}
    changes = {**parts, "backbone": asdict(start.backbone_config), "init_from": str(half)}
    run = train_tokenizer(tokenizer_run(tmp_path / "on", pictures, **changes))
    tokenizer = load_tokenizer(run)
    assert tokenizer.dtype == torch.float32
    assert tokenizer.fingerprint() != load_tokenizer(half).fingerprint()
    assert tokenizer.config.cast_from is None
    codes = tokenize_dataset(config(run, pictures, tmp_path / "codes"))
    prior, sequence = load_prior_and_sequence(train_prior(prior_run(tmp_path / "prior", codes)), dtype=DRAWN)
    save_prior(prior, sequence, tmp_path / "half prior")
    assert load_prior_and_sequence(tmp_path / "half prior")[0].dtype == getattr(torch, DRAWN)
    run = train_prior(prior_run(tmp_path / "prior on", codes, init_from=str(tmp_path / "half prior")))
    assert load_prior_and_sequence(run)[0].dtype == torch.float32


@pytest.mark.parametrize("load", [load_tokenizer, load_prior_and_sequence, ImageGenerationPipeline.from_pretrained])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "fp8"}, "dtype is fp8"),
        ({"dtype": 16}, "dtype is 16"),
        ({"torch_dtype": "fp16"}, "dtype is fp16"),
        ({"dtype": "complex64"}, "dtype is complex64"),
        ({"dtype": "float8_e4m3fn"}, "dtype is float8_e4m3fn"),
        ({"device_map": "cuda:x"}, "device_map is 'cuda:x'"),
        ({"device_map": {"": "cpu", "prior": "cpu"}}, "device_map is"),
        ({"load_in_8bit": True}, "Unknown arguments load_in_8bit"),
    ],
)
def test_what_is_no_dtype_and_no_device_is_one_sentence(load, options, words):
    folder = {"load_tokenizer": "tokenizer", "load_prior_and_sequence": "prior"}.get(load.__name__, "pipeline")
    with pytest.raises(CodegridError, match=words):
        load(SAVED / folder, **options)
