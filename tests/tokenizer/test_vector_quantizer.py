"""The options of the vector quantizer: the rotation trick's gradient, the entropy term, the codebook of means."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from codegrid.tokenizer.quantizers import VectorQuantizerConfig, make_quantizer, vector
from codegrid.tokenizer.quantizers.entropy import entropy_loss
from codegrid.tokenizer.quantizers.gradients import rotation


def features(batch: int = 3, dim: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, dim, 5, 6, generator=torch.Generator().manual_seed(seed))


def vector_quantizer(**options):
    torch.manual_seed(0)
    return make_quantizer(VectorQuantizerConfig(**{"codebook_size": 32, "code_dim": 4, **options}))


def turn(z: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """The rotation [D, D] in the plane of z and e that takes the one's direction to the other's, from its angle."""
    u = z / z.norm()
    v = e - (e @ u) * u
    v = v / v.norm()
    angle = torch.acos(z @ e / (z.norm() * e.norm()))
    outer = torch.outer
    within = outer(u, u) + outer(v, v)
    quarter = outer(v, u) - outer(u, v)
    return torch.eye(len(z), dtype=z.dtype) + (math.cos(angle) - 1) * within + math.sin(angle) * quarter


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_the_rotations_jacobian_is_that_of_the_paper(dim):
    """Fifty et al. 2024: d e / d z = |e| / |z| R."""
    generator = torch.Generator().manual_seed(dim)
    z, e = torch.randn(2, dim, dtype=torch.float64, generator=generator)
    expected = e.norm() / z.norm() * turn(z, e)
    torch.testing.assert_close(turn(z, e) @ (z / z.norm()), e / e.norm())
    jacobian = torch.autograd.functional.jacobian(lambda x: rotation(x[None, :, None, None], _grid(e)).flatten(), z)
    torch.testing.assert_close(jacobian, expected)


def _grid(row: torch.Tensor) -> torch.Tensor:
    return row[None, :, None, None]


def test_the_rotation_equals_vector_quantize_pytorch():
    gradients = []
    e, weights = features(seed=2), features(seed=3)
    for rotate in (rotation, lambda z, e: rotate_to(z.movedim(1, -1), e.movedim(1, -1)).movedim(-1, 1)):
        z = features().requires_grad_()
        output = rotate(z, e)
        torch.testing.assert_close(output, e, rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad((output * weights).sum(), z)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_a_feature_that_is_zero_or_opposite_its_code_still_gives_the_code_and_a_finite_gradient():
    e = torch.tensor([1.0, 2.0, -2.0])
    for z in (torch.zeros(3), -e, e):
        z.requires_grad_()
        output = rotation(_grid(z), _grid(e)).flatten()
        torch.testing.assert_close(output, e)
        assert torch.autograd.grad(output.sum(), z)[0].isfinite().all()
        z.requires_grad_(False)


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_the_quantizer_rotates_in_training_and_gives_the_same_features_as_straight_through(l2_normalize):
    outputs, gradients = [], []
    for gradient in ("straight_through", "rotation"):
        quantizer = vector_quantizer(l2_normalize=l2_normalize, gradient=gradient)
        z = features().requires_grad_()
        output = quantizer(z)
        (grad,) = torch.autograd.grad((output.features * features(seed=2)).sum(), z)
        outputs.append(output)
        gradients.append(grad)
    torch.testing.assert_close(outputs[0].features, outputs[1].features)
    assert torch.equal(outputs[0].codes, outputs[1].codes)
    assert not torch.allclose(*gradients)


def test_the_entropy_loss_equals_the_entropies_of_distributions():
    logits = 3 * torch.randn(50, 7, dtype=torch.float64)
    rows = Categorical(logits=logits)
    expected = rows.entropy().mean() - Categorical(probs=rows.probs.mean(0)).entropy()
    torch.testing.assert_close(entropy_loss(logits), expected)
    torch.testing.assert_close(entropy_loss(1e4 * torch.eye(8)), torch.tensor(-math.log(8)))  # sure, and all used alike


def test_the_entropy_term_is_over_the_distances_and_has_a_finite_gradient_at_low_temperature():
    quantizer = vector_quantizer(l2_normalize=False, entropy_weight=0.3, entropy_temperature=0.01)
    z = features().requires_grad_()
    loss = quantizer(z).losses["entropy"]
    distances = torch.cdist(z.movedim(1, -1).reshape(-1, 4).double(), quantizer.embedding.weight.double()).square()
    p = (-distances / 0.01).softmax(1).clamp_min(1e-300)
    of_rows, of_mean = -(p * p.log()).sum(1).mean(), -(p.mean(0) * p.mean(0).log()).sum()
    torch.testing.assert_close(loss.double(), 0.3 * (of_rows - of_mean), rtol=1e-3, atol=1e-4)
    for gradient in torch.autograd.grad(loss, [z, quantizer.embedding.weight]):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_the_entropy_term_spreads_the_use_of_the_codes():
    quantizer = vector_quantizer(l2_normalize=False, entropy_weight=1.0, entropy_temperature=1.0)
    rows = (0.1 * features()).requires_grad_()
    optimizer = torch.optim.Adam([rows], 0.05)
    before = len(quantizer(rows).codes.unique())
    for _ in range(100):
        optimizer.zero_grad()
        quantizer(rows).losses["entropy"].backward()
        optimizer.step()
    assert len(quantizer(rows).codes.unique()) > before


def test_without_weight_or_in_evaluation_no_entropy_is_computed(monkeypatch):
    monkeypatch.setattr(vector, "squared_distances", None)
    assert "entropy" not in vector_quantizer()(features()).losses
    assert "entropy" not in vector_quantizer(entropy_weight=1.0).eval()(features()).losses


def step(quantizer, z: torch.Tensor) -> torch.Tensor:
    """One step of a codebook of means, as one rank does it; gives the codes."""
    codes = quantizer(z).codes
    quantizer.update(quantizer.statistics(codes, z))
    return codes


def test_the_codebook_of_means_equals_a_direct_loop():
    """van den Oord et al. 2017, eq. 6 to 8, code by code, in float64; two micro-batches are one step."""
    quantizer = vector_quantizer(l2_normalize=False, codebook_update="ema", codebook_decay=0.9)
    size, total = [1.0] * 32, [row.double() for row in quantizer.embedding.weight]
    for number in range(4):
        z = torch.cat([features(seed=number), features(batch=2, seed=10 + number)])
        codes = step(quantizer, z)
        rows = z.movedim(1, -1).reshape(-1, 4).double()
        for code in range(32):
            mine = rows[codes.flatten() == code]
            size[code] = 0.9 * size[code] + 0.1 * len(mine)
            total[code] = 0.9 * total[code] + 0.1 * mine.sum(0)
        n = sum(size)
        expected = [m / ((s + 1e-5) / (n + 32 * 1e-5) * n) for s, m in zip(size, total, strict=True)]
        torch.testing.assert_close(quantizer.embedding.weight.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_the_codebook_of_means_equals_vector_quantize_pytorch(l2_normalize):
    ours = vector_quantizer(l2_normalize=l2_normalize, codebook_update="ema", codebook_decay=0.8, codebook_size=16)
    place = F.normalize if l2_normalize else (lambda rows: rows)
    theirs = VectorQuantize(
        dim=4, codebook_size=16, decay=0.8, threshold_ema_dead_code=0, use_cosine_sim=l2_normalize
    ).train()
    start = place(ours.embedding.weight.detach())
    theirs._codebook.embed.data.copy_(start[None])
    theirs._codebook.embed_avg.data.copy_(start[None])
    for number in range(6):
        z = features(seed=number)
        _, codes, _ = theirs(z.movedim(1, -1).reshape(3, 30, 4))
        assert torch.equal(step(ours, z).view(3, 30), codes)
        torch.testing.assert_close(place(ours.embedding.weight), theirs._codebook.embed[0], rtol=1e-5, atol=1e-5)


def test_the_codebook_of_means_takes_no_gradient_and_has_no_term():
    quantizer = vector_quantizer(codebook_update="ema")
    output = quantizer(features().requires_grad_())
    assert set(output.losses) == {"commitment"}
    (output.features.sum() + output.losses["commitment"]).backward()
    assert not list(quantizer.parameters())
    assert {"cluster_size", "cluster_sum"} <= set(quantizer.state_dict())
    assert {"cluster_size", "cluster_sum"}.isdisjoint(vector_quantizer().state_dict())
    assert vector_quantizer().statistics(output.codes, features()) == {}


def test_a_revived_mean_forgets_the_features_it_had():
    quantizer = vector_quantizer(codebook_update="ema", revive_decay=0.5)
    rows = features().movedim(1, -1).reshape(-1, 4)
    codes = torch.arange(31).repeat(4)  # all but the last
    first = quantizer.revive(codes, rows, torch.Generator().manual_seed(0))
    assert len(first["embedding.weight"]) == 32  # the first places them all
    for number in range(20):
        step(quantizer, features(seed=number))
        moved = quantizer.revive(codes, rows, torch.Generator().manual_seed(number))
        if moved:
            break
    assert moved["embedding.weight"].tolist() == [31]
    assert quantizer.cluster_size[31] == 1
    assert (quantizer.embedding.weight[31] == rows).all(1).any()
    torch.testing.assert_close(quantizer.cluster_sum[31], F.normalize(quantizer.embedding.weight[31], dim=0))
