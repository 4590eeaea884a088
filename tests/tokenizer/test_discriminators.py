"""The contract that every discriminator keeps, over the registry; then what is StyleGAN's own."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViTConfig, ViTModel

from codegrid.tokenizer.discriminators import (
    DISCRIMINATORS,
    DinoConfig,
    PatchGANConfig,
    StyleGANConfig,
    make_discriminator,
)
from codegrid.tokenizer.discriminators.projection import Projection
from codegrid.tokenizer.discriminators.stylegan import blur_down, minibatch_stddev
from codegrid.tokenizer.feature_nets.weights import WeightsError
from codegrid.tokenizer.losses import gradient_penalty, r1_penalty

CLASSES = 3
_FOLDER = tempfile.TemporaryDirectory(prefix="codegrid-vit-")  # removed when the process ends


def tiny_vit(seed: int) -> str:
    """The folder of a vision transformer of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8))
    model.save_pretrained(f"{_FOLDER.name}/{seed}")
    return f"{_FOLDER.name}/{seed}"


DINO = DinoConfig(net=tiny_vit(0), layers=("1", "2"), image_size=32, channels=8)
# With whether an image's logits are free of the other images.
CASES = [
    (PatchGANConfig(ndf=8, n_layers=2), True),
    (PatchGANConfig(ndf=8, n_layers=2, norm="batch"), False),
    (PatchGANConfig(ndf=8, n_layers=2, conditional=True), True),
    (StyleGANConfig(channels=8, max_channels=16, num_blocks=2), False),
    (StyleGANConfig(channels=8, max_channels=16, num_blocks=2, stddev_group=1), True),
    (StyleGANConfig(channels=8, max_channels=16, num_blocks=2, stddev_group=1, conditional=True), True),
    (DINO, True),
    (replace(DINO, conditional=True, image_size=0), True),
]
CONFIGS = [config for config, _ in CASES]


def make(config, channels: int = 3) -> nn.Module:
    return make_discriminator(config, channels, CLASSES if config.conditional else 0)


def labels_for(config, batch: int) -> torch.Tensor | None:
    return torch.arange(batch) % CLASSES if config.conditional else None


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape) * 2 - 1


def test_every_discriminator_of_the_registry_is_tested():
    assert {config.type for config in CONFIGS} == set(DISCRIMINATORS)
    assert {config.type for config in CONFIGS if config.conditional} == set(DISCRIMINATORS)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 16), (3, 33, 20)])
def test_verdicts_are_finite_and_gradients_reach_images_and_weights(config, channels, height, width):
    net = make(config, channels)
    pixels = images(6, channels, height, width).requires_grad_()
    logits = net(pixels, labels_for(config, 6))
    assert logits.shape[:2] == (6, 1)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert (pixels.grad.flatten(1).abs().amax(1) > 0).all()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize(("config", "alone"), CASES)
def test_whether_an_image_is_judged_by_itself(config, alone):
    net, labels = make(config), labels_for(config, 4)
    assert net.judges_alone == alone
    pixels = images(4, 3, 16, 16)
    others = torch.cat([pixels[:1], 0.1 * images(3, 3, 16, 16)])
    assert torch.allclose(net(pixels, labels)[0], net(others, labels)[0], atol=1e-6) == alone


@pytest.mark.parametrize("config", CONFIGS)
def test_penalties_are_differentiated_twice(config):
    net, labels = make(config), labels_for(config, 4)
    real, fake = images(4, 3, 16, 16), images(4, 3, 16, 16)
    judge = lambda pixels: net(pixels, labels)  # noqa: E731
    for penalty in (r1_penalty(judge, real), gradient_penalty(judge, real, fake, torch.Generator().manual_seed(0))):
        gradients = torch.autograd.grad(penalty, list(net.parameters()), allow_unused=True)
        known = [gradient for gradient in gradients if gradient is not None]
        assert all(gradient.isfinite().all() for gradient in known)
        assert any(gradient.any() for gradient in known)


@pytest.mark.parametrize("config", [config for config in CONFIGS if config.conditional])
def test_the_class_plays_a_part_once_it_is_learned(config):
    net, pixels, labels = make(config), images(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    plain = make(replace(config, conditional=False))
    state = {name: value for name, value in net.state_dict().items() if "class_embedding" not in name}
    plain.load_state_dict(state)  # the same names and shapes
    torch.testing.assert_close(net(pixels, labels), plain(pixels))  # at the start
    vectors = [parameter for name, parameter in net.named_parameters() if "class_embedding" in name]
    with torch.no_grad():
        for parameter in vectors:
            parameter.normal_()
    assert (net(pixels, labels) - net(pixels, (labels + 1) % CLASSES)).flatten(1).abs().amax(1).min() > 1e-4
    # Each image's verdict goes by its own label.
    torch.testing.assert_close(net(pixels.flip(0), labels.flip(0)), net(pixels, labels).flip(0))


@pytest.mark.parametrize("config", CONFIGS)
def test_labels_that_do_not_fit_are_refused(config):
    net, pixels = make(config), images(2, 3, 16, 16)
    if not config.conditional:
        with pytest.raises(ValueError, match="takes no labels"):
            net(pixels, torch.zeros(2, dtype=torch.int64))
        return
    for labels in (None, torch.zeros(3, dtype=torch.int64), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"labels are .* Give integers of shape \[2\]"):
            net(pixels, labels)
    with pytest.raises(ValueError, match=r"objective\.discriminator\.conditional is set, and the data has no classes"):
        make_discriminator(config, 3)


def test_the_projection_is_its_formula():
    projection, features, labels = Projection(3, 5), images(2, 5, 2, 4), torch.tensor([2, 0])
    assert not projection(features, labels).any()
    with torch.no_grad():
        projection.class_embedding.normal_()
    found = projection(features, labels)
    assert found.shape == (2, 1, 2, 4)
    for image in range(2):
        for row in range(2):
            for column in range(4):
                product = projection.class_embedding[labels[image]] @ features[image, :, row, column] / 5**0.5
                torch.testing.assert_close(found[image, 0, row, column], product)


@pytest.mark.parametrize("config", CONFIGS)
def test_weights_round_trip(config):
    one, other = make(config), make(config)
    other.load_state_dict(one.state_dict())
    pixels, labels = images(4, 3, 16, 16), labels_for(config, 4)
    assert torch.equal(one(pixels, labels), other(pixels, labels))
    assert not list(one.buffers())  # ranks would write into them between two forward passes of one step


def test_the_blur_is_the_binomial_kernels():
    features = images(2, 3, 8, 10)
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (line[:, None] * line).expand(3, 1, 4, 4)
    expected = F.conv2d(F.pad(features, (1, 1, 1, 1), mode="replicate"), kernel, stride=2, groups=3)
    torch.testing.assert_close(blur_down(features), expected)


def test_minibatch_stddev_of_groups():
    features = images(6, 5, 4, 3)
    found = minibatch_stddev(features, 4)  # groups of 3, the largest number up to 4 that divides 6
    assert found.shape == (6, 1, 4, 3)
    for first in (0, 3):
        expected = torch.from_numpy(features[first : first + 3].numpy().std(0)).mean()
        torch.testing.assert_close(found[first : first + 3], expected.expand(3, 1, 4, 3), rtol=1e-4, atol=1e-5)
    assert minibatch_stddev(features, 1).abs().max() < 1e-3


def test_a_discriminator_of_no_blocks_is_refused():
    with pytest.raises(ValueError, match=r"discriminator\.num_blocks is 0"):
        StyleGANConfig(num_blocks=0)


# Of the frozen net's own


def test_the_frozen_net_is_neither_trained_nor_saved_but_known():
    net = make(DINO).train()
    assert not net.frozen.training
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"heads"}
    assert not any(parameter.requires_grad for parameter in net.frozen.parameters())
    state = net.state_dict()
    assert {name.split(".")[0] for name in state} == {"heads", "_extra_state"}
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())  # safetensors takes nothing else
    other = make(replace(DINO, net=tiny_vit(1)))
    with pytest.raises(ValueError, match=r"another frozen net than .*objective\.discriminator\.net"):
        other.load_state_dict(state)
    net.double()
    assert next(net.frozen.parameters()).dtype == torch.float64  # it moves with the heads
    assert net(images(2, 3, 16, 16).double()).dtype == torch.float64


def test_the_heads_see_every_place_of_every_block():
    net, pixels = make(DINO), images(2, 3, 16, 24)
    logits = net(pixels)
    assert logits.shape == (2, 1, 1, 2 * 4 * 4)  # two blocks, 32 / 8 patches a side
    resized = F.interpolate(pixels, (32, 32), mode="bilinear", antialias=True, align_corners=False)
    first, second = net.frozen(resized)
    for block, (head, features) in enumerate(zip(net.heads, (first, second), strict=True)):
        expected = head(features, None).flatten(1)
        torch.testing.assert_close(logits[:, 0, 0, 16 * block : 16 * block + 16], expected)
    net.requires_grad_(False)  # as in the generator's pass
    pixels.requires_grad_()
    net(pixels).sum().backward()
    assert pixels.grad.any()


def test_a_frozen_net_that_cannot_be_had_is_named():
    with pytest.raises(
        WeightsError, match=r"objective\.discriminator\.net 'facebook/dinov2-small' is neither a folder"
    ):
        make(DinoConfig())
    with pytest.raises(ValueError, match=r"the images have 4 channels"):
        make(DINO, 4)
    with pytest.raises(ValueError, match=r"discriminator\.image_size is -1"):
        DinoConfig(image_size=-1)
