"""The terms of stage one against their formulas, the perceptual net against torchmetrics, and the discriminator."""

from __future__ import annotations

import math
import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS

from codegrid.errors import CodegridError
from codegrid.tokenizer.discriminators import PatchGAN, PatchGANConfig
from codegrid.tokenizer.feature_nets.weights import WeightsError
from codegrid.tokenizer.losses import (
    GAN_LOSSES,
    LPIPS,
    TERMS,
    ObjectiveConfig,
    adaptive_weight,
    clamped_ratio,
    dssim_loss,
    gradient_penalty,
    lecam_penalty,
    log_laplace_loss,
    make_distances,
    r1_penalty,
    reconstruction_terms,
    warmup_factor,
)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape) * 2 - 1


# The objective


def test_reconstruction_terms():
    real, fake = images(2, 3, 8, 8), images(2, 3, 8, 8)
    config = ObjectiveConfig(l1_weight=0.3, l2_weight=2.0, perceptual_weight=0.7)
    net = lambda one, other: (other - one).flatten(1).amax(1)  # noqa: E731
    terms = reconstruction_terms(config, {"perceptual": net}, real, fake)
    assert set(terms) == {"l1", "l2", "perceptual"}
    torch.testing.assert_close(terms["l1"], 0.3 * (real - fake).abs().sum() / real.numel())
    torch.testing.assert_close(terms["l2"], 2.0 * ((real - fake) ** 2).sum() / real.numel())
    torch.testing.assert_close(terms["perceptual"], 0.7 * net(real, fake).mean())
    only = reconstruction_terms(ObjectiveConfig(l1_weight=0.0, l2_weight=1.0, perceptual_weight=0.0), {}, real, fake)
    assert set(only) == {"l2"}


def test_smooth_l1_is_quadratic_and_then_linear():
    real, fake = images(2, 3, 8, 8), images(2, 3, 8, 8)
    config = ObjectiveConfig(l1_weight=0.0, smooth_l1_weight=3.0, smooth_l1_beta=0.4, perceptual_weight=0.0)
    errors = (real - fake).abs().flatten().tolist()
    assert min(errors) < 0.4 < max(errors)
    expected = [error**2 / 0.8 if error < 0.4 else error - 0.2 for error in errors]
    terms = reconstruction_terms(config, {}, real, fake)
    assert set(terms) == {"smooth_l1"}
    assert terms["smooth_l1"].item() == pytest.approx(3 * sum(expected) / len(expected), rel=1e-5)


def test_log_laplace_is_the_likelihood_at_its_best_scale():
    real, fake = images(3, 1, 8, 8), images(3, 1, 8, 8)
    fake[2] = real[2] + 0.1 * fake[2]
    scales = torch.linspace(0.01, 1.5, 3000)[:, None, None, None]
    best = []
    for x, y in zip(real, fake, strict=True):
        best.append(-torch.distributions.Laplace(y, scales).log_prob(x).flatten(1).mean(1).max())
    config = ObjectiveConfig(l1_weight=0.0, log_laplace_weight=2.0, perceptual_weight=0.0)
    terms = reconstruction_terms(config, {}, real, fake)
    assert set(terms) == {"log_laplace"}
    torch.testing.assert_close(terms["log_laplace"], 2 * torch.stack(best).mean(), rtol=1e-4, atol=1e-4)


def test_log_laplace_has_a_gradient_of_each_images_own_and_a_bound():
    real = images(2, 1, 4, 4)
    signs = torch.where(images(2, 1, 4, 4) > 0, 1.0, -1.0)
    errors = torch.tensor([0.5, 0.05]).view(2, 1, 1, 1)
    fake = (real + errors * signs).requires_grad_()
    log_laplace_loss(real, fake).backward()
    torch.testing.assert_close(fake.grad, signs / errors / fake.numel(), rtol=1e-4, atol=1e-6)
    exact = real.clone().requires_grad_()
    loss = log_laplace_loss(real, exact)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2 / 255), rel=1e-5)
    assert exact.grad.isfinite().all()


def test_dssim_leads_to_the_picture_and_refuses_one_that_is_smaller_than_its_window():
    real, fake = images(2, 3, 16, 16), images(2, 3, 16, 16).requires_grad_()
    optimizer = torch.optim.Adam([fake], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        dssim_loss(real, fake).backward()
        optimizer.step()
    assert dssim_loss(real, fake).item() < 0.05 < dssim_loss(real, images(2, 3, 16, 16)).item()
    assert dssim_loss(real, real).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(CodegridError, match="a side of 10"):
        dssim_loss(real[..., :10], real[..., :10])


def test_terms_are_computed_in_float32():
    real, fake = images(2, 3, 8, 8), images(2, 3, 8, 8)
    config = ObjectiveConfig(perceptual_weight=0.0)
    term = reconstruction_terms(config, {}, real, fake.bfloat16())["l1"]
    assert term.dtype == torch.float32
    torch.testing.assert_close(term, F.l1_loss(fake.bfloat16().float(), real))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"l1_weight": -1.0}, r"objective\.l1_weight is -1\.0"),
        ({"adaptive_weight_max": -1.0}, r"objective\.adaptive_weight_max"),
        ({"adversarial_start": -1}, r"objective\.adversarial_start is -1"),
        ({"gan_loss": "wasserstein"}, r"objective\.gradient_penalty_weight \(10 is published\)"),
        ({"r1_every": 0}, r"objective\.r1_every is 0"),
        ({"lecam_decay": 1.0}, r"objective\.lecam_decay is 1\.0"),
        ({"smooth_l1_weight": -1.0}, r"objective\.smooth_l1_weight"),
        ({"smooth_l1_beta": 0.0}, r"objective\.smooth_l1_beta is 0\.0"),
        ({"l1_weight": 0.0, "perceptual_weight": 0.0}, "Every reconstruction term is off"),
        ({"l1_start": 5, "perceptual_start": 1}, "No reconstruction term counts at step 0"),
        ({"lecam_start": -1}, r"objective\.lecam_start is -1"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**values)


@pytest.mark.parametrize("term", TERMS)
def test_every_term_has_a_weight_and_a_start(term):
    config = ObjectiveConfig(**{"l1_weight": 1.0, f"{term}_weight": 1.0, f"{term}_start": 0 if term == "l1" else 7})
    assert config.is_active(term, 7)
    assert config.is_active(term, 6) == (term == "l1")
    assert not ObjectiveConfig(**{"l2_weight": 1.0, f"{term}_weight": 0.0}).is_active(term, 10**6) or term == "l2"


@pytest.mark.parametrize("term", ["l1", "l2", "smooth_l1", "log_laplace", "dssim", "perceptual", "feature_distance"])
def test_a_term_is_not_computed_before_its_start(term):
    base = "l2" if term == "l1" else "l1"
    weights = {"perceptual_weight": 0.0, f"{base}_weight": 1.0, f"{term}_weight": 1.0}
    config, runs = ObjectiveConfig(**weights, **{f"{term}_start": 3}), []

    def net(real, fake):
        runs.append(real)
        return (real - fake).flatten(1).square().mean(1)

    nets = {term: net} if term in ("perceptual", "feature_distance") else {}
    real, fake = images(2, 3, 12, 12), images(2, 3, 12, 12)
    assert term not in reconstruction_terms(config, nets, real, fake, 2)
    assert not runs
    assert term in reconstruction_terms(config, nets, real, fake, 3)
    assert len(runs) == len(nets)


def test_no_perceptual_net_where_its_weight_is_0():
    assert make_distances(ObjectiveConfig(perceptual_weight=0.0)) == {}


# The adversarial terms


def test_hinge():
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[-2.0, 0.5], [-1.0, 3.0]])
    of_discriminator, of_generator = GAN_LOSSES["hinge"]
    # real: 0, .5, 2, 0 -> mean .625; fake: 0, 1.5, 0, 4 -> mean 1.375
    assert of_discriminator(real, fake).item() == pytest.approx(0.5 * (0.625 + 1.375))
    assert of_discriminator(torch.tensor([5.0]), torch.tensor([-5.0])).item() == 0
    assert of_generator(fake).item() == pytest.approx(-0.125)


@pytest.mark.parametrize("name", ["vanilla", "non_saturating"])
def test_cross_entropy_is_torchs_own(name):
    real, fake = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    of_discriminator, of_generator = GAN_LOSSES[name]
    entropy = F.binary_cross_entropy_with_logits
    expected = 0.5 * (entropy(real, torch.ones_like(real)) + entropy(fake, torch.zeros_like(fake)))
    torch.testing.assert_close(of_discriminator(real, fake), expected)
    expected = -fake.mean() if name == "vanilla" else entropy(fake, torch.ones_like(fake))
    torch.testing.assert_close(of_generator(fake), expected)
    assert of_discriminator(torch.tensor([1e4]), torch.tensor([-1e4])).item() == 0  # nothing overflows


def test_least_squares_and_wasserstein():
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-2.0, 1.0]])
    of_discriminator, of_generator = GAN_LOSSES["least_squares"]
    assert of_discriminator(real, fake).item() == pytest.approx(0.5 * ((1 + 0.25) / 2 + (4 + 1) / 2))
    assert of_generator(fake).item() == pytest.approx(0.5 * 9 / 2)
    of_discriminator, of_generator = GAN_LOSSES["wasserstein"]
    assert of_discriminator(real, fake).item() == pytest.approx(-0.5 - 1.25)
    assert of_generator(fake).item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_both_sides_pull_the_logits_apart(name):
    """The discriminator wants real logits up and fake ones down, the generator fake ones up."""
    real, fake = torch.zeros(3, requires_grad=True), torch.full((3,), 0.1, requires_grad=True)
    of_discriminator, of_generator = GAN_LOSSES[name]
    by_real, by_fake = torch.autograd.grad(of_discriminator(real, fake), (real, fake))
    (by_generator,) = torch.autograd.grad(of_generator(fake), fake)
    assert (by_real < 0).all()
    assert (by_fake > 0).all()
    assert (by_generator < 0).all()


def test_gradient_penalties_of_a_net_whose_gradients_are_known():
    """D(x) = sum of a x^2 / 2 over 4 patches, whose mean has the gradient a x / 4."""
    a = torch.tensor(2.0, requires_grad=True)
    judge = lambda x: (a / 2 * x.square()).sum(1).unfold(1, 2, 2).unfold(2, 2, 2).sum((3, 4))  # noqa: E731
    real, fake = images(3, 2, 4, 4), images(3, 2, 4, 4)
    share = torch.rand(3, 1, 1, 1, generator=torch.Generator().manual_seed(5))
    between = share * real + (1 - share) * fake
    lengths = between.flatten(1).square().sum(1).sqrt() * 2 / 4
    penalty = gradient_penalty(judge, real, fake, torch.Generator().manual_seed(5))
    torch.testing.assert_close(penalty, (lengths - 1).square().mean())
    (slope,) = torch.autograd.grad(penalty, a)  # d/da mean (a |x| / 4 - 1)^2
    torch.testing.assert_close(slope, (2 * (lengths - 1) * lengths / 2).mean())
    penalty = r1_penalty(judge, real)
    torch.testing.assert_close(penalty, 0.5 * (real * 2 / 4).square().sum() / 3)
    (slope,) = torch.autograd.grad(penalty, a)
    torch.testing.assert_close(slope, 2 * penalty.detach() / 2)


def test_r1_of_a_patchgan_equals_finite_differences():
    net = PatchGAN(PatchGANConfig(ndf=4, n_layers=1), 1).double()
    judge = lambda x: net(x.double())  # noqa: E731
    real = images(2, 1, 8, 8)
    squares, width = 0.0, 1e-3
    for place in range(64):
        step = torch.zeros(64).index_fill_(0, torch.tensor(place), width).view(1, 1, 8, 8)
        slope = (judge(real + step) - judge(real - step)).flatten(1).mean(1) / (2 * width)  # [B]
        squares += slope.square().mean().item()
    assert r1_penalty(judge, real).item() == pytest.approx(squares / 2, rel=1e-3)


def test_lecam():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    penalty = lecam_penalty(real, fake, torch.tensor(2.0), torch.tensor(-0.5))
    assert penalty.item() == pytest.approx((1.5**2 + 3.5**2) / 2 + (3**2 + 2**2) / 2)


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    layer = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    inputs = torch.tensor([1.0, -2.0])
    outputs = layer @ inputs  # [-3, -5]
    reconstruction_loss, adversarial_loss = 3 * outputs[0] + 4 * outputs[1], outputs.square().sum()
    at_outputs = (torch.autograd.grad(loss, outputs)[0] for loss in (reconstruction_loss, adversarial_loss))
    numerator, denominator = adaptive_weight(outputs, *at_outputs, layer)
    # d(a . W x) / dW = a x^T, whose norm is |a| |x|
    assert numerator.item() == pytest.approx(5 * 5**0.5)
    assert denominator.item() == pytest.approx((6**2 + 10**2) ** 0.5 * 5**0.5)
    outputs.sum().backward()  # the layer's graph is still there
    assert layer.grad is not None
    ratio = clamped_ratio(numerator, denominator, 1e4)
    assert ratio.item() == pytest.approx(5 * 5**0.5 / ((6**2 + 10**2) ** 0.5 * 5**0.5 + 1e-4))


def test_the_ratio_is_bounded_and_carries_no_gradient():
    one = torch.tensor(1.0, requires_grad=True)
    assert clamped_ratio(one, torch.tensor(0.0), 1e6).item() == pytest.approx(1e4)
    assert clamped_ratio(one, torch.tensor(0.0), 50.0).item() == 50.0
    assert clamped_ratio(torch.tensor(0.0), one, 50.0).item() == 0.0
    assert not clamped_ratio(one, one, 50.0).requires_grad


def test_warm_up():
    assert [warmup_factor(step, 3, 3) for step in range(8)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert warmup_factor(0, 0, 0) == 1
    assert (warmup_factor(4, 5, 0), warmup_factor(5, 5, 0)) == (0, 1)


# The perceptual net, its trunk of random weights


def random_trunk(name: str) -> nn.Module:
    """The features of a torchvision classifier with random weights (its classifier is large and plays no part)."""
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None)
    features = model.features.to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in features.parameters():
        nn.init.normal_(parameter, std=0.05)
    return features


def save_trunk(name: str, path: Path) -> Path:
    torch.save({f"features.{key}": tensor for key, tensor in random_trunk(name).state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """torchvision's AlexNet of random weights, as a .pth file."""
    return save_trunk("alexnet", tmp_path_factory.mktemp("trunk") / "alexnet.pth")


@pytest.fixture(scope="module")
def lpips(trunk):
    return LPIPS("alex", trunk)


@pytest.mark.parametrize(
    ("net", "name"),
    [
        ("alex", "alexnet"),
        ("vgg", "vgg16"),
        ("squeeze", "squeezenet1_1"),
    ],
)
def test_every_trunk_loads(net, name, tmp_path):
    one, other = images(1, 3, 32, 32), images(1, 3, 32, 32)
    assert LPIPS(net, save_trunk(name, tmp_path / "trunk.pth"))(one, other).item() > 0


def test_distance(lpips):
    one, other = images(3, 3, 32, 40), images(3, 3, 32, 40)
    distance = lpips(one, other)
    assert distance.shape == (3,)
    assert distance.dtype == torch.float32
    assert (distance > 0).all()
    assert (lpips(one, one) == 0).all()
    closer = lpips(one, 0.5 * one + 0.5 * other)
    assert (closer < distance).all()
    torch.testing.assert_close(lpips(one[:1], other[:1]), distance[:1])  # each by itself


def test_it_is_torchmetrics_own(lpips, trunk):
    theirs, features = _LPIPS(net="alex", pnet_rand=True), random_trunk("alexnet")
    layers = [layer for number in range(1, 6) for layer in getattr(theirs.net, f"slice{number}")]
    for layer, source in zip(layers, features, strict=False):  # all but the last pooling
        layer.load_state_dict(source.state_dict())
    one, other = images(2, 3, 48, 48), images(2, 3, 48, 48)
    torch.testing.assert_close(lpips(one, other), theirs.eval()(one, other).detach().flatten())


def test_it_stays_frozen_and_in_evaluation(lpips):
    parent = nn.ModuleList([lpips]).train()
    assert parent.training
    assert not any(module.training for module in lpips.modules())
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    one, other = images(1, 3, 32, 32), images(1, 3, 32, 32)
    assert torch.equal(lpips(one, other), lpips(one, other))  # no dropout


def test_the_gradient_reaches_the_second_image(lpips):
    one, other = images(2, 3, 32, 32), images(2, 3, 32, 32).requires_grad_()
    lpips(one, other).sum().backward()
    assert (other.grad.flatten(1).abs().amax(1) > 0).all()


def test_one_channel_counts_as_grey(lpips):
    one, other = images(2, 1, 32, 32), images(2, 1, 32, 32)
    torch.testing.assert_close(lpips(one, other), lpips(one.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)))


def test_it_computes_in_float32_under_autocast(lpips):
    one, other = images(1, 3, 32, 32), images(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lpips(one, other), lpips(one.float(), other.float()))


def test_small_images_are_refused(lpips):
    with pytest.raises(ValueError, match="at least 32 pixels a side, not 31x40"):
        lpips(images(1, 3, 31, 40), images(1, 3, 31, 40))


def test_safetensors_and_pth_are_the_same(lpips, trunk, tmp_path):
    save_file(torch.load(trunk, weights_only=True), tmp_path / "trunk.safetensors")
    one, other = images(1, 3, 32, 32), images(1, 3, 32, 32)
    assert torch.equal(LPIPS("alex", tmp_path / "trunk.safetensors")(one, other), lpips(one, other))
    config = ObjectiveConfig(perceptual_net="alex", perceptual_weights=str(trunk))
    assert torch.equal(make_distances(config)["perceptual"](one, other), lpips(one, other))


def test_files_that_are_not_the_trunk_are_refused(trunk, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.pth do not exist\. .* by objective\.perceptual_weights"):
        LPIPS("alex", tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="does not hold torchvision's weights of 'vgg'"):
        LPIPS("vgg", trunk)
    weights = torch.load(trunk, weights_only=True)
    weights["features.3.weight"] = torch.zeros(2, 2)
    save_file(weights, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors are missing or of another shape, .* features\.3\.weight"):
        LPIPS("alex", tmp_path / "odd.safetensors")


def test_no_download_says_how_to_get_the_file(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(WeightsError, match="no route to host") as error:
        LPIPS("squeeze")
    for part in ("squeezenet1_1", str(tmp_path / "hub" / "checkpoints"), "https://", "objective.perceptual_weight 0"):
        assert part in str(error.value)


# The discriminator


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize(("layers", "channels", "side"), [(1, 1, 14), (2, 3, 6), (3, 3, 2)])
def test_patchgan_gives_a_verdict_a_patch(norm, layers, channels, side):
    net = PatchGAN(PatchGANConfig(ndf=8, n_layers=layers, norm=norm), channels)
    pixels = images(2, channels, 32, 32).requires_grad_()
    verdicts = net(pixels)
    assert verdicts.shape == (2, 1, side, side)
    verdicts.square().sum().backward()
    assert (pixels.grad.flatten(1).abs().amax(1) > 0).all()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules()) == (norm == "batch")
    assert any(isinstance(module, nn.GroupNorm) for module in net.modules()) == (norm == "group")


@pytest.mark.parametrize(("norm", "alone"), [("group", True), ("none", True), ("batch", False)])
def test_whether_an_image_is_judged_by_itself(norm, alone):
    net = PatchGAN(PatchGANConfig(ndf=8, n_layers=2, norm=norm), 3)
    pixels = images(4, 3, 32, 32)
    others = torch.cat([pixels[:1], 0.1 * images(3, 3, 32, 32)])
    assert torch.allclose(net(pixels)[0], net(others)[0], atol=1e-6) == alone


def test_the_size_of_a_verdicts_patch():
    """Three layers see 70 x 70 pixels: what changes one verdict lies within."""
    net = PatchGAN(PatchGANConfig(ndf=4, n_layers=3, norm="none"), 1)
    pixels = images(1, 1, 128, 128).requires_grad_()
    net(pixels)[0, 0, 7, 7].backward()
    rows, columns = pixels.grad[0, 0].abs().nonzero().unbind(1)
    assert int(rows.max() - rows.min()) + 1 == 70
    assert int(columns.max() - columns.min()) + 1 == 70


def test_patchgan_of_no_layers_is_refused():
    with pytest.raises(ValueError, match=r"discriminator\.n_layers 0. Give at least 1"):
        PatchGANConfig(n_layers=0)
