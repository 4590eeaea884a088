"""vector-quantize-pytorch's modules beside ours: each fits its twin, keeps the contract, and is trained as ours is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import vector_quantize_pytorch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.comparison import compare_quantizers
from codegrid.pipelines.comparison.twins import TWINS, TwinConfig, compared, plain, register_twins
from codegrid.pipelines.comparison.variants import VARIANTS
from codegrid.pipelines.data.records import DataConfig
from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.quantizers import QUANTIZERS


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Twins are known only where they are asked for: other tests run over the registry."""
    yield
    QUANTIZERS.pop(TwinConfig.type, None)


def features(config: TwinConfig) -> torch.Tensor:
    return torch.randn(3, config.code_dim, 4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()


def test_what_is_trained_beside_ours_stands_behind_it():
    assert set(TWINS) <= set(VARIANTS)
    rows = list(compared())
    assert rows[:5] == ["vq", "vq-plain", "vq-theirs", "vq-sphere", "vq-sphere-theirs"]  # the sphere has no isotropy
    assert [name for name in rows if name in VARIANTS] == list(VARIANTS)
    assert {name for name in rows if name.endswith("-theirs")} == {f"{name}-theirs" for name in TWINS}
    beside = [name.removesuffix("-plain") for name in rows if name.endswith("-plain")]
    assert beside == ["vq", "vq-ema", "vq-rotation", "vq-kmeans", "residual-vq"]


def test_plain_rows_are_ours_without_the_isotropy_term_and_nothing_else():
    assert VARIANTS["vq"].isotropy_weight == VARIANTS["residual-vq"].inner.isotropy_weight == 0.003
    rows = compared()
    assert rows["vq-plain"] == replace(VARIANTS["vq"], isotropy_weight=0.0)
    inner = replace(VARIANTS["residual-vq"].inner, isotropy_weight=0.0)
    assert rows["residual-vq-plain"] == replace(VARIANTS["residual-vq"], inner=inner)
    assert plain(VARIANTS["fsq"]) == VARIANTS["fsq"]


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_the_codes_and_the_channels_of_ours(name):
    ours, theirs = VARIANTS[name], TWINS[name]
    for field in ("codebook_size", "code_dim", "depth", "stride"):
        assert getattr(theirs, field) == getattr(ours, field), field
    quantizer = theirs.build().train()
    output = quantizer(features(theirs))
    assert output.codes.shape == ((3, 4, 5) if ours.depth == 1 else (3, 4, 5, ours.depth))
    assert 0 <= output.codes.min() <= output.codes.max() < theirs.codebook_size


@pytest.mark.parametrize("name", TWINS)
def test_what_it_gives_is_what_their_module_gives(name):
    torch.manual_seed(0)
    quantizer = TWINS[name].build().eval()
    z = features(TWINS[name]).detach()
    found, indices, *_ = quantizer.module(z.flatten(2).transpose(1, 2))
    output = quantizer(z)
    torch.testing.assert_close(output.features[2, :, 3, 1], found[2, 3 * 5 + 1])  # position (3, 1) of five columns
    mine = output.codes[2, 3, 1].flatten().tolist()
    theirs = indices[:, 2, 3 * 5 + 1] if indices.dim() == 4 else indices[2, 3 * 5 + 1]
    assert mine == theirs.flatten().tolist()
    torch.testing.assert_close(quantizer.codes_to_features(output.codes), output.features)
    assert torch.equal(quantizer.encode(z), output.codes)


@pytest.mark.parametrize("name", TWINS)
def test_it_learns_in_training_and_stays_in_encoding(name):
    torch.manual_seed(0)
    quantizer, z = TWINS[name].build().train(), features(TWINS[name])
    quantizer.encode(z)  # k-means places its table on the first features that it sees
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.encode(z)
    assert quantizer.module.training
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    output = quantizer(z)
    (output.features.square().sum() + sum(output.losses.values())).backward()
    assert z.grad.abs().sum() > 0
    learned = [parameter.grad for parameter in quantizer.parameters()]
    moved = [key for key, value in quantizer.state_dict().items() if not torch.equal(value, before[key])]
    scalar = TWINS[name].module in ("FSQ", "LFQ", "ResidualFSQ")
    assert scalar or (all(grad.abs().sum() > 0 for grad in learned) if learned else moved)


@pytest.mark.parametrize("name", ["vq", "vq-sphere", "fsq", "lfq", "residual-fsq", "grouped"])
def test_a_tokenizer_of_a_twin_is_saved_and_loaded(name, tokenizer_config, tmp_path):
    register_twins()
    torch.manual_seed(0)
    config = tokenizer_config(tmp_path)
    model = VQModel(VQModelConfig(backbone=config.backbone, quantizer=TWINS[name])).eval()
    images = torch.rand(2, config.backbone.in_channels, 16, 16) * 2 - 1
    expected = model(images)  # before anything was trained: their start is in the file too
    model.save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(str(tmp_path / "saved"))
    assert torch.equal(loaded(images).codes, expected.codes)
    torch.testing.assert_close(loaded.decode(expected.codes), expected.reconstruction)


def test_they_are_trained_beside_ours(pictures: Path, tmp_path: Path):
    data = DataConfig(str(pictures), validation_fraction=0.1)
    settings = {"data": data, "output_dir": str(tmp_path / "out"), "steps": 2, "num_pictures": 2}
    folder = compare_quantizers(**settings, only=("fsq", "ibq", "residual-vq"), beside=True)
    rows = {row["name"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}
    expected = ["ibq", "fsq", "fsq-theirs", "residual-vq", "residual-vq-plain", "residual-vq-theirs"]
    assert list(rows) == expected
    table = (folder / "comparison.md").read_text()
    assert all(f"| `{name}` | {row['scores']['psnr']:.2f} |" in table for name, row in rows.items())
    # FSQ has no weights and one formula: with the same network, data and order both trainings are the same.
    assert rows["fsq-theirs"]["scores"]["psnr"] == pytest.approx(rows["fsq"]["scores"]["psnr"], abs=0.01)
    assert rows["residual-vq-theirs"]["scores"]["psnr"] != rows["residual-vq"]["scores"]["psnr"]
    sheet = Image.open(folder / "reconstructions.png")
    assert sheet.height == 4 * 66 + 2  # originals and ours
    # One of theirs alone is added; without them later, their rows stay.
    compare_quantizers(**settings, only=("simvq-theirs",), beside=True)
    with pytest.raises(CodegridError, match="only has simvq-theirs, which is no quantizer"):
        compare_quantizers(**settings, only=("simvq-theirs",))
    compare_quantizers(**settings, only=("fsq",))
    table = (folder / "comparison.md").read_text()
    assert "| `fsq-theirs` |" in table
    assert "| `simvq-theirs` |" in table
    assert "| `simvq` |" not in table


def test_without_the_package_it_says_what_to_install(pictures: Path, tmp_path: Path, monkeypatch):
    assert vector_quantize_pytorch is not None
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    data = DataConfig(str(pictures), validation_fraction=0.1)
    with pytest.raises(CodegridError, match="vector-quantize-pytorch, which is not installed") as caught:
        compare_quantizers(data=data, output_dir=str(tmp_path / "out"), steps=2, only=("fsq",), beside=True)
    assert "pip install vector-quantize-pytorch" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert TwinConfig.type not in QUANTIZERS
