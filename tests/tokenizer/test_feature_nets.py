"""Frozen nets: features of every kind, input conventions, and the figures published with the weights of shared/."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from codegrid.tokenizer.feature_nets import DEFAULT_LAYERS, INPUTS, EfficientNetLite0, FeatureNet
from codegrid.tokenizer.feature_nets.convolutional import _in_torchvisions_names, convolutional_features
from codegrid.tokenizer.feature_nets.hidden_states import HiddenStates
from codegrid.tokenizer.feature_nets.weights import WeightsError

SHARED = next(
    (folder / "shared/weights" for folder in Path(__file__).resolve().parents if (folder / "shared/weights").is_dir()),
    Path("/work/shared/weights"),
)
SQUEEZENET, LITE0 = SHARED / "squeezenet1_1_caffe.safetensors", SHARED / "efficientnet_lite0.safetensors"
needs_shared = pytest.mark.skipif(not SQUEEZENET.exists(), reason="needs the weights of shared/")
TINY = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape) * 2 - 1


def save_random(name: str, path: Path) -> Path:
    model = EfficientNetLite0() if name == "efficientnet_lite0" else torchvision.models.get_model(name, weights=None)
    save_file(model.state_dict(), path)
    return path


def self_check_image(side: int) -> torch.Tensor:
    """The picture of shared/weights/README.md: float [1, 3, side, side] in 0 to 255."""
    y, x, c = np.mgrid[0:side, 0:side, 0:3]
    pixels = (x * 3 + y * 5 + c * 70 + (x * y) // 16) % 256
    return torch.from_numpy(pixels).float().permute(2, 0, 1)[None]


# torchvision's


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "efficientnet_lite0"])
def test_features_are_those_of_hooks_on_the_whole_net(name, tmp_path):
    path = save_random(name, tmp_path / "net.safetensors")
    whole = EfficientNetLite0() if name == "efficientnet_lite0" else torchvision.models.get_model(name, weights=None)
    whole.load_state_dict(load_file(path))
    net, seen = FeatureNet(name, str(path)), {}
    for module in whole.eval().modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    for layer in DEFAULT_LAYERS[name]:  # a module that is called twice counts with its last call
        whole.get_submodule(layer).register_forward_hook(lambda m, i, o, layer=layer: seen.__setitem__(layer, o))
    pixels = images(2, 3, 64, 64)
    with torch.no_grad():
        whole(net.normalized(pixels))
    found = net(pixels)
    assert len(found) == len(DEFAULT_LAYERS[name])
    for layer, features in zip(DEFAULT_LAYERS[name], found, strict=True):
        torch.testing.assert_close(features, seen[layer])
    assert [f.shape[2] for f in found] == sorted((f.shape[2] for f in found), reverse=True)


def test_a_file_without_the_counters_of_batch_norm_is_read(tmp_path):
    """torchvision's older files have none (`num_batches_tracked`): only training reads them."""
    path, older = save_random("resnet18", tmp_path / "net.safetensors"), tmp_path / "older.safetensors"
    weights = load_file(path)
    kept = {key: tensor for key, tensor in weights.items() if not key.endswith("num_batches_tracked")}
    assert len(kept) == len(weights) - 20
    save_file(kept, older)
    pixels = images(1, 3, 64, 64)
    for one, other in zip(*(FeatureNet("resnet18", str(file))(pixels) for file in (path, older)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", sorted(DEFAULT_LAYERS))
def test_the_default_layers_of_every_net_exist_and_the_rest_is_not_computed(name, monkeypatch):
    """Shapes alone, without storage: the halvings of the side that the layers should stand at."""
    monkeypatch.setattr("codegrid.tokenizer.feature_nets.convolutional.read_weights", lambda path, option: {})
    monkeypatch.setattr("codegrid.tokenizer.feature_nets.convolutional.load_renamed", lambda *args: None)
    net, layers, _ = convolutional_features(name, "file", (), "net", "")
    found = net(torch.empty(1, 3, 128, 128, device="meta"))
    sides = [found[layer].shape[2] for layer in layers]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] >= 31
    assert sides[-1] >= 4
    assert not any("classifier" in key or "fc" in key for key in net.state_dict())


def test_inputs_follow_the_conventions(tmp_path):
    pixels = images(2, 3, 32, 32)
    path = str(save_random("squeezenet1_1", tmp_path / "net.safetensors"))
    rgb = (pixels + 1) / 2
    imagenet = FeatureNet("squeezenet1_1", path).normalized(pixels)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(imagenet, (rgb - mean.view(3, 1, 1)) / std.view(3, 1, 1), rtol=1e-4, atol=1e-5)
    caffe = FeatureNet("squeezenet1_1", path, convention="caffe").normalized(pixels)
    torch.testing.assert_close(caffe[:, 0], 255 * rgb[:, 2] - 103.939, rtol=1e-4, atol=1e-4)  # blue comes first
    torch.testing.assert_close(caffe[:, 2], 255 * rgb[:, 0] - 123.68, rtol=1e-4, atol=1e-4)
    lite = FeatureNet("squeezenet1_1", path, convention="lite").normalized(pixels)
    torch.testing.assert_close(lite, (255 * rgb - 127) / 128, rtol=1e-4, atol=1e-5)
    assert set(INPUTS) == {"imagenet", "caffe", "lite"}


def test_it_is_frozen_and_grey_counts_as_colour(tmp_path):
    net = FeatureNet("squeezenet1_1", str(save_random("squeezenet1_1", tmp_path / "net.safetensors")))
    nn.ModuleList([net]).train()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    grey = images(1, 1, 32, 32)
    for one, other in zip(net(grey), net(grey.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(one, other)


def test_no_random_number_is_drawn(tmp_path):
    path = str(save_random("squeezenet1_1", tmp_path / "net.safetensors"))
    ViTModel(ViTConfig(**TINY, image_size=16, patch_size=4)).save_pretrained(tmp_path / "vit")
    before = torch.get_rng_state()
    FeatureNet("squeezenet1_1", path)
    FeatureNet(str(tmp_path / "vit"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"net": "sqeeze"}, ValueError, r"feature\.net is 'sqeeze'. Give a classifier of torchvision"),
        ({"net": "resnet18", "layers": ("layer9",)}, ValueError, r"no layer 'layer9'\. Set feature\.layers"),
        ({"net": "mnasnet1_0"}, ValueError, r"no default layers\. Set feature\.layers"),
        ({"net": "resnet18", "weights": "no.pth"}, FileNotFoundError, r"no\.pth do not exist\. .* by feature\.weights"),
        ({"net": "efficientnet_lite0"}, FileNotFoundError, r"Pass a local file as feature\.weights"),
        ({"net": "nobody/nothing"}, WeightsError, r"feature\.net 'nobody/nothing' is neither a folder"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(values, error, message):
    with pytest.raises(error, match=message):
        FeatureNet(**values, option="feature")


def test_weights_of_another_net_are_refused(tmp_path):
    path = save_random("squeezenet1_1", tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"does not hold torchvision's weights of 'resnet18'.* first is conv1\.weight"):
        FeatureNet("resnet18", str(path))


def test_files_without_batch_counters_are_read(tmp_path):
    """torchvision's older files, resnet18's among them, were written before BatchNorm counted."""
    path = save_random("resnet18", tmp_path / "net.safetensors")
    expected, pixels = FeatureNet("resnet18", str(path)), images(1, 3, 32, 32)
    save_file({key: tensor for key, tensor in load_file(path).items() if "num_batches" not in key}, path)
    found = FeatureNet("resnet18", str(path))
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    for one, other in zip(found(pixels), expected(pixels), strict=True):
        torch.testing.assert_close(one, other)  # oneDNN's sums depend on where the weights lie in memory
    without = {key: tensor for key, tensor in load_file(path).items() if key != "bn1.running_mean"}
    save_file(without, path)
    with pytest.raises(ValueError, match=r"1 tensors are missing or of another shape, the first is bn1\.running_mean"):
        FeatureNet("resnet18", str(path))


def test_errors_say_whose_weights_they_are(monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **options: 1 / 0)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **options: 1 / 0)
    with pytest.raises(WeightsError, match=r"^torchvision's weights of 'resnet18' could not be downloaded"):
        FeatureNet("resnet18")
    with pytest.raises(ValueError, match=r"^The weights no\.pth do not exist"):
        FeatureNet("resnet18", "no.pth")


# transformers'


@pytest.mark.parametrize("kind", ["vit", "dinov2", "convnext"])
def test_hidden_states_become_maps(kind, tmp_path):
    if kind == "convnext":
        model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=4))
    elif kind == "vit":
        model = ViTModel(ViTConfig(**TINY, image_size=16, patch_size=4))
    else:
        model = Dinov2Model(Dinov2Config(**TINY, image_size=16, patch_size=4))
    model.eval().save_pretrained(tmp_path)
    net = HiddenStates(tmp_path, (1, 2), "net")
    pixels = images(2, 3, 16, 24)
    with torch.no_grad():
        options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
        states = model(pixels, output_hidden_states=True, **options).hidden_states
        found = net(pixels)
    for block, features in zip((1, 2), found, strict=True):
        if kind == "convnext":
            torch.testing.assert_close(features, states[block])
            continue
        assert features.shape == (2, 16, 4, 6)
        for row, column in ((0, 0), (1, 2), (3, 5)):  # token 0 is the class's
            expected = states[block][:, 1 + 6 * row + column]
            torch.testing.assert_close(features[:, :, row, column], expected, rtol=1e-4, atol=1e-5)


def test_a_folder_of_transformers(tmp_path):
    ViTModel(ViTConfig(**TINY, image_size=16, patch_size=4)).save_pretrained(tmp_path)
    net = FeatureNet(str(tmp_path))
    assert net.layers == ("1", "2", "3", "4")
    assert net(images(1, 3, 17, 31))[0].shape == (1, 16, 4, 8)  # resized to multiples of the patch
    torch.testing.assert_close(net.normalized(torch.ones(1, 3, 1, 1))[0, 0], torch.tensor([[(1 - 0.485) / 0.229]]))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    assert FeatureNet(str(tmp_path)).normalized(torch.full((1, 3, 1, 1), 0.25)).flatten().tolist() == [0.25] * 3
    with pytest.raises(ValueError, match=r"asks for the blocks \(5,\), and .* has the blocks 1 to 4"):
        FeatureNet(str(tmp_path), layers=("5",))
    with pytest.raises(ValueError, match=r"numbers of blocks"):
        FeatureNet(str(tmp_path), layers=("layer1",))


def test_folders_without_all_weights_are_refused(tmp_path):
    ViTModel(ViTConfig(**TINY, image_size=16, patch_size=4)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"feature\.net: .* lacks 1 weights, the first is layernorm\.weight"):
        FeatureNet(str(tmp_path), option="feature")
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"feature\.net: .* holds no model"):
        FeatureNet(str(tmp_path), option="feature")


def test_a_folders_own_code_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    values = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(WeightsError, match="holds no model"):
        HiddenStates(tmp_path, None, "net")
    assert not asked
    assert not (tmp_path / "ran").exists()


def test_the_identity_follows_the_weights(tmp_path):
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        folder = tmp_path / str(len(found))
        ViTModel(ViTConfig(**TINY, image_size=16, patch_size=4)).save_pretrained(folder)
        found.append(FeatureNet(str(folder)).identity())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# The weights of shared/, against the figures of their README


@needs_shared
def test_squeezenet_under_its_caffe_names():
    net = FeatureNet("squeezenet1_1", str(SQUEEZENET), layers=("features.1", "features.12", "classifier"))
    assert net.is_bgr  # by the layout of the names
    pixels = self_check_image(227) / 127.5 - 1
    first, last, scores = net(pixels)
    assert first.shape[1] == 64
    assert last.shape[1] == 512
    whole = torchvision.models.squeezenet1_1(weights=None).eval()
    whole.load_state_dict(_in_torchvisions_names("squeezenet1_1", load_file(SQUEEZENET))[0])
    with torch.no_grad():
        # torchvision's has a ReLU behind conv10, which the published figures have not
        logits = whole.classifier[1](whole.features(net.normalized(pixels))).mean((2, 3))[0]
        torch.testing.assert_close(scores, whole(net.normalized(pixels)).view_as(scores), rtol=1e-4, atol=1e-4)
    assert logits[:5].tolist() == pytest.approx([8.3138, 5.0227, 4.1309, 1.8354, 9.7751], abs=1e-3)
    assert int(logits.argmax()) == 879


@needs_shared
def test_efficientnet_lite0():
    net = FeatureNet("efficientnet_lite0", str(LITE0), layers=("fc",))
    pixels = self_check_image(224) / 127.5 - 1
    logits = net(pixels)[0][0]
    assert logits[:5].tolist() == pytest.approx([0.3157, -2.3620, -1.3805, -1.4222, -1.0316], abs=1e-3)
    assert int(logits.argmax()) == 506
    weights = {key.replace("._", ".").lstrip("_"): tensor for key, tensor in load_file(LITE0).items()}
    whole = EfficientNetLite0().eval()
    whole.load_state_dict(weights)
    with torch.no_grad():
        pooled = whole.pooled(net.normalized(pixels))[0]
    assert pooled[0].item() == pytest.approx(1.6605, abs=1e-3)
    assert pooled.sum().item() == pytest.approx(281.025, abs=0.05)
