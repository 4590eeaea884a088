"""The contract that every discriminator keeps, over the registry; then what is StyleGAN's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tokenizer.discriminators import DISCRIMINATORS, PatchGANConfig, StyleGANConfig, make_discriminator
from tokenizer.discriminators.stylegan import blur_down, minibatch_stddev

CONFIGS = [
    PatchGANConfig(ndf=8, n_layers=2),
    PatchGANConfig(ndf=8, n_layers=2, norm="batch"),
    StyleGANConfig(channels=8, max_channels=16, num_blocks=2),
    StyleGANConfig(channels=8, max_channels=16, num_blocks=2, stddev_group=1),
]


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape) * 2 - 1


def test_every_discriminator_of_the_registry_is_tested():
    assert {config.type for config in CONFIGS} == set(DISCRIMINATORS)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 16), (3, 33, 20)])
def test_verdicts_are_finite_and_gradients_reach_images_and_weights(config, channels, height, width):
    net = make_discriminator(config, channels)
    pixels = images(6, channels, height, width).requires_grad_()
    logits = net(pixels)
    assert logits.shape[:2] == (6, 1)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert (pixels.grad.flatten(1).abs().amax(1) > 0).all()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize(("config", "alone"), zip(CONFIGS, (True, False, False, True), strict=True))
def test_whether_an_image_is_judged_by_itself(config, alone):
    net = make_discriminator(config, 3)
    assert net.judges_alone == alone
    pixels = images(4, 3, 16, 16)
    others = torch.cat([pixels[:1], 0.1 * images(3, 3, 16, 16)])
    assert torch.allclose(net(pixels)[0], net(others)[0], atol=1e-6) == alone


@pytest.mark.parametrize("config", CONFIGS)
def test_weights_round_trip(config):
    one, other = make_discriminator(config, 3), make_discriminator(config, 3)
    other.load_state_dict(one.state_dict())
    pixels = images(4, 3, 16, 16)
    assert torch.equal(one(pixels), other(pixels))
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
