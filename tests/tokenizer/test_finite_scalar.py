"""Finite scalar quantization: the grid, its codes, its gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel
from vector_quantize_pytorch import FSQ

from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.quantizers import FiniteScalarQuantizerConfig, make_quantizer

GRIDS = [(8, 5, 5, 5), (3, 4, 7), (8, 6, 5), (2000,)]


def make(levels):
    return make_quantizer(FiniteScalarQuantizerConfig(levels=levels))


def features(levels, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(3, len(levels), 9, 11, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("levels", GRIDS[:3])
def test_codes_and_features_equal_vector_quantize_pytorch(levels, scale):
    theirs = FSQ(list(levels))
    z = features(levels, scale)
    quantized, codes = theirs(z)
    output = make(levels).eval()(z)
    assert torch.equal(output.codes, codes.long())
    torch.testing.assert_close(output.features, quantized, rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", GRIDS[:3])
def test_the_gradient_equals_vector_quantize_pytorchs(levels):
    ours, theirs = features(levels).requires_grad_(), features(levels).requires_grad_()
    towards = torch.randn(ours.shape)
    make(levels).train()(ours).features.backward(towards)
    FSQ(list(levels)).train()(theirs)[0].backward(towards)
    assert ours.grad.abs().min() > 0
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", GRIDS)
def test_every_code_is_a_point_of_the_grid_and_is_reached(levels):
    """Codes are counted with the first channel fastest; the features that fall on each are got by inverting the bound.

    (What comes out is not what goes in: tanh would squeeze the quantized features a second time.)
    """
    quantizer = make(levels).eval()
    axes = [torch.arange(size) - size // 2 for size in levels]
    points = torch.cartesian_prod(*reversed(axes)).reshape(-1, len(levels)).flip(1).double()  # [K, D]
    sizes = torch.tensor(levels).double()
    codes = torch.arange(len(points)).view(1, -1, 1)
    found = quantizer.codes_to_features(codes)[0, :, :, 0].T
    torch.testing.assert_close(found.double(), points / (sizes // 2), rtol=0, atol=1e-6)
    half_span, offset = (sizes - 1) * 1.001 / 2, (1 - sizes % 2) / 2
    inputs = torch.atanh((points + offset) / half_span) - torch.atanh(offset / half_span)  # [K, D]
    assert torch.equal(quantizer.encode(inputs.T.float()[None, :, :, None]), codes)


@pytest.mark.parametrize("levels", GRIDS)
def test_the_ends_and_nan_stay_within_the_codebook(levels):
    quantizer = make(levels).eval()
    far = torch.full((1, len(levels), 1, 1), 1e4)
    assert quantizer.encode(-far).item() == 0
    assert quantizer.encode(far).item() == quantizer.config.codebook_size - 1
    assert 0 <= quantizer.encode(far * torch.nan).item() < quantizer.config.codebook_size


def test_zero_stays_zero():
    assert torch.equal(make((8, 5, 6)).eval()(torch.zeros(1, 3, 1, 1)).features, torch.zeros(1, 3, 1, 1))


def test_there_is_nothing_to_learn_or_to_revive():
    quantizer = make((8, 5))
    assert not quantizer.state_dict()
    assert quantizer(features((8, 5))).losses == {}
    assert quantizer.revive(torch.zeros(4, dtype=torch.int64), torch.zeros(4, 2), torch.Generator()) == {}


def test_the_codebook_follows_from_the_levels():
    config = FiniteScalarQuantizerConfig(levels=(8, 6, 5))
    assert (config.codebook_size, config.code_dim) == (240, 3)


@pytest.mark.parametrize(
    ("levels", "message"),
    [((), r"quantizer\.levels is \[\]"), ((8, 2), "at least 3 levels"), ((2**16, 2**16), "4294967296")],
)
def test_levels_that_cannot_be_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        FiniteScalarQuantizerConfig(levels=levels)


@pytest.mark.parametrize(
    "quantizer", [{"type": "fsq", "levels": [7, 5]}, {"type": "residual", "inner": {"type": "fsq"}}]
)
def test_the_levels_are_made_once_and_come_back_with_the_model(quantizer, tmp_path, monkeypatch):
    """They are buffers that are not saved, which transformers would give back without their values."""
    backbone = {"resolution": 8, "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "norm_groups": 4, "z_channels": 8}
    config = VQModelConfig(backbone=backbone, quantizer=quantizer, preprocessing={"image_size": 8})
    model = VQModel(config).eval()
    assert not any(key.endswith((".levels", "place_values")) for key in model.state_dict())
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    for loaded in (VQModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        buffers = dict(loaded.named_buffers())
        assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
        assert torch.equal(loaded.encode(images), model.encode(images))
        assert loaded.fingerprint() == model.fingerprint()
    if quantizer["type"] == "fsq":
        codes = model.encode(images)
        monkeypatch.setattr(torch, "tensor", lambda *args, **options: pytest.fail("a constant was made anew"))
        model.quantize(torch.randn(2, 2, 4, 4))
        model.quantize.codes_to_features(codes)
