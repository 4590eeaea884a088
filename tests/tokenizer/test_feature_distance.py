"""The feature distance against its formula, and in the objective."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1
from transformers import ViTConfig, ViTModel

from codegrid.tokenizer.losses import FeatureDistance, FeatureDistanceConfig, ObjectiveConfig, make_distances


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape) * 2 - 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    save_file(squeezenet1_1(weights=None).state_dict(), path)
    return str(path)


def make(weights: str, **values) -> FeatureDistance:
    return FeatureDistance(FeatureDistanceConfig(net="squeezenet1_1", weights=weights, **values))


@pytest.mark.parametrize("normalize", [True, False])
def test_it_is_the_formula(weights, normalize):
    distance = make(weights, normalize=normalize, layers=("features.1", "features.7"), layer_weights=(0.3, 2.0))
    one, other = images(2, 3, 32, 40), images(2, 3, 32, 40)
    expected = [0.0, 0.0]
    for weight, f, g in zip((0.3, 2.0), distance.net(one), distance.net(other), strict=True):
        depth, height, width = f.shape[1:]
        for index in range(2):
            total = 0.0
            for row in range(height):
                for column in range(width):
                    a, b = f[index, :, row, column].double(), g[index, :, row, column].double()
                    if normalize:
                        a, b = a / a.norm().clamp(min=1e-5), b / b.norm().clamp(min=1e-5)
                    total += float((a - b).square().sum()) / (1 if normalize else depth)
            expected[index] += weight * total / (height * width)
    assert distance(one, other).tolist() == pytest.approx(expected, rel=1e-4)


def test_layers_weigh_alike_by_default(weights):
    one, other = images(1, 3, 32, 32), images(1, 3, 32, 32)
    whole = make(weights)
    layers = whole.net.layers
    single = [make(weights, layers=(layer,))(one, other) for layer in layers]
    torch.testing.assert_close(whole(one, other), sum(single) / len(layers))


def test_it_is_a_distance_whose_gradient_reaches_the_reconstruction(weights):
    distance = make(weights)
    one, other = images(3, 3, 32, 32), images(3, 3, 32, 32).requires_grad_()
    found = distance(one, other)
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    assert (distance(one, one) == 0).all()
    assert (distance(one, 0.5 * (one + other)) < found).all()
    found.sum().backward()
    assert other.grad.isfinite().all()
    assert (other.grad.flatten(1).abs().amax(1) > 0).all()
    black = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)  # features may be all zero there
    distance(one[:1], black).sum().backward()
    assert black.grad.isfinite().all()


def test_it_computes_in_float32_under_autocast(weights):
    distance, one, other = make(weights), images(1, 3, 32, 32), images(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance(one, other), distance(one.float(), other.float()))


def test_a_vision_transformer_by_its_folder(tmp_path):
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**tiny, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    distance = FeatureDistance(FeatureDistanceConfig(net=str(tmp_path), layers=("2",)))
    one, other = images(2, 3, 32, 32), images(2, 3, 32, 32)
    assert (distance(one, other) > 0).all()
    assert (distance(one, one) == 0).all()


def test_in_the_objective(weights):
    config = ObjectiveConfig(
        perceptual_weight=0.0,
        feature_distance_weight=2.0,
        feature_distance=FeatureDistanceConfig(net="squeezenet1_1", weights=weights),
    )
    assert list(make_distances(config)) == ["feature_distance"]
    assert math.isfinite(make_distances(config)["feature_distance"](images(1, 3, 32, 32), images(1, 3, 32, 32)).item())


def test_what_makes_no_sense_is_refused(weights):
    with pytest.raises(ValueError, match=r"feature_distance\.layer_weights has 1 weights for 2 layers"):
        FeatureDistanceConfig(layers=("features.1", "features.4"), layer_weights=(1.0,))
    with pytest.raises(ValueError, match=r"layer_weights has 1 weights for 7 layers"):
        make(weights, layer_weights=(1.0,))
    with pytest.raises(ValueError, match=r"Give 0 or more"):
        FeatureDistanceConfig(layer_weights=(-1.0,))
    with pytest.raises(ValueError, match=r"at least 32 pixels a side, not 16x40"):
        make(weights)(images(1, 3, 16, 40), images(1, 3, 16, 40))
    with pytest.raises(FileNotFoundError, match=r"objective\.feature_distance\.weights"):
        FeatureDistance(FeatureDistanceConfig(net="vgg16", weights="missing.pth"))
