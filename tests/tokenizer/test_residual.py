"""What is particular to residual quantization; the contract is tested over the registry in test_quantizers.py."""

from __future__ import annotations

import pytest
import torch
from vector_quantize_pytorch import ResidualFSQ, ResidualLFQ, ResidualVQ

from codegrid.tokenizer.quantizers import (
    BinarySphericalQuantizerConfig,
    FiniteScalarQuantizerConfig,
    LookupFreeQuantizerConfig,
    ResidualQuantizerConfig,
    SimVQConfig,
    VectorQuantizerConfig,
    make_quantizer,
)
from codegrid.tokenizer.quantizers.vector import isotropy_loss

LEVELS = (8, 5, 4, 3)
PLAIN = VectorQuantizerConfig(codebook_size=16, code_dim=4, l2_normalize=False)


def make(inner: VectorQuantizerConfig = PLAIN, **fields):
    return make_quantizer(ResidualQuantizerConfig(**{"depth": 3, **fields}, inner=inner))


def codebooks(quantizer) -> torch.Tensor:
    """[depth, K, D]"""
    levels = [level.embedding.weight.detach() for level in quantizer.levels]
    return torch.stack(levels * (quantizer.config.depth // len(levels)))


def partial_sums(quantizer, codes: torch.Tensor) -> torch.Tensor:
    """Codes [B, h, w, depth] -> features after 1, 2, ... levels [depth, B, D, h, w], read off the codebooks."""
    chosen = [book[codes[..., index]] for index, book in enumerate(codebooks(quantizer))]
    return torch.stack(chosen).cumsum(0).movedim(-1, 2)


@pytest.mark.parametrize("shared", [False, True])
def test_codes_are_the_nearest_of_what_is_left_and_features_their_sum(shared):
    quantizer, z = make(shared=shared).eval(), torch.randn(2, 4, 3, 5)
    output = quantizer(z)
    left = z.double()
    for index, book in enumerate(codebooks(quantizer).double()):
        rows = left.movedim(1, -1).reshape(-1, 4)
        nearest = torch.cdist(rows, book).argmin(1)
        assert torch.equal(output.codes[..., index].flatten(), nearest)
        left = left - book[nearest].view(2, 3, 5, 4).movedim(-1, 1)
    torch.testing.assert_close(output.features, partial_sums(quantizer, output.codes)[-1])


@pytest.mark.parametrize("shared", [False, True])
def test_the_error_does_not_grow_with_the_level_where_a_code_is_zero(shared):
    quantizer, z = make(shared=shared, depth=6), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        for level in quantizer.levels:
            level.embedding.weight[5] = 0
    errors = (partial_sums(quantizer, quantizer.encode(z)) - z).square().sum(2)  # [depth, B, h, w]
    assert (errors[1:] <= errors[:-1] + 1e-5).all()
    assert errors[-1].mean() < errors[0].mean()


def test_the_codes_of_fewer_levels_are_a_prefix():
    deep, flat, z = make(depth=4), make(depth=2), torch.randn(2, 4, 3, 3)
    flat.load_state_dict({name: tensor for name, tensor in deep.state_dict().items() if int(name.split(".")[1]) < 2})
    assert torch.equal(deep.encode(z)[..., :2], flat.encode(z))


@pytest.mark.parametrize("shared", [False, True])
def test_codes_and_features_equal_vector_quantize_pytorch(shared):
    ours = make(shared=shared).eval()
    theirs = ResidualVQ(dim=4, codebook_size=16, num_quantizers=3, shared_codebook=shared).eval()
    for layer, book in zip(theirs.layers, codebooks(ours), strict=True):
        layer._codebook.embed.data = book[None].clone()
    z = torch.randn(2, 4, 6, 6)
    quantized, codes, _ = theirs(z.flatten(2).mT)
    output = ours(z)
    assert torch.equal(output.codes.flatten(1, 2), codes)
    torch.testing.assert_close(output.features.flatten(2).mT, quantized, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
def test_codes_and_features_of_scalar_levels_equal_vector_quantize_pytorch(scale):
    ours = make(FiniteScalarQuantizerConfig(levels=LEVELS)).eval()
    theirs = ResidualFSQ(levels=list(LEVELS), num_quantizers=3).eval()
    z = scale * torch.randn(2, 4, 16, 16)
    quantized, codes = theirs(z.flatten(2).mT)
    output = ours(z)
    assert torch.equal(output.codes.flatten(1, 2), codes.long())
    torch.testing.assert_close(output.features.flatten(2).mT, quantized, rtol=0, atol=1e-6)


def test_scalar_levels_make_one_even_grid_and_the_gradient_is_that_of_the_bounded_features():
    """Three levels of 4 steps round as one of 64 does, in a direct count."""
    z = 2 * torch.randn(3, 1, 20, 20, requires_grad=True)
    quantizer = make(FiniteScalarQuantizerConfig(levels=(4,)))
    bounded = torch.tanh(z.double() / (4 / 3)) * (4 / 3)
    step = 2 / 3 / 16
    expected = (torch.floor(bounded / step).clamp(-32, 31) + 0.5) * step  # 64 cells side by side around zero
    output = quantizer(z)
    torch.testing.assert_close(output.features.double(), expected, rtol=0, atol=1e-6)
    (found,) = torch.autograd.grad(output.features.sum(), z, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(bounded.sum(), z)[0])
    assert len(output.codes.flatten(0, 2).unique(dim=0)) > 50


def test_codes_features_and_losses_of_bits_equal_vector_quantize_pytorch():
    """Theirs takes the first channel for the highest bit: it gets them reversed."""
    config = LookupFreeQuantizerConfig(
        num_bits=4, commitment_weight=0.3, entropy_weight=0.2, diversity_weight=0.0, inv_temperature=100.0
    )
    theirs = ResidualLFQ(
        dim=4, codebook_size=16, num_quantizers=3,
        commitment_loss_weight=0.3, entropy_loss_weight=0.2, diversity_gamma=0.0,
    ).train()  # fmt: skip
    z = torch.randn(2, 4, 6, 6)
    quantized, codes, losses = theirs(z.flatten(2).mT.flip(-1))
    output = make(config).train()(z)
    assert torch.equal(output.codes.flatten(1, 2), codes.long())
    torch.testing.assert_close(output.features.flatten(2).mT.flip(-1), quantized, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.losses["commitment"] + output.losses["entropy"], losses.mean(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("inner", "calls"),
    [
        (PLAIN, 0),
        (SimVQConfig(codebook_size=16, code_dim=4), 0),
        (FiniteScalarQuantizerConfig(levels=LEVELS), 1),
        (LookupFreeQuantizerConfig(num_bits=4), 1),
    ],
)
def test_each_level_looks_its_codes_up_once_in_training(inner, calls, monkeypatch):
    quantizer, made = make(inner).train(), []
    for level in quantizer.levels:
        look_up = level.codes_to_features
        monkeypatch.setattr(level, "codes_to_features", lambda codes, f=look_up: made.append(1) or f(codes))
    quantizer(torch.randn(2, 4, 3, 3))
    assert len(made) == calls * len(quantizer.levels)


def test_losses_are_means_over_the_levels_of_the_distance_to_the_sum_so_far():
    quantizer, z = make(), torch.randn(2, 4, 3, 3, requires_grad=True)
    output = quantizer(z)
    sums = partial_sums(quantizer, output.codes)
    expected = (z - sums).square().mean((1, 2, 3, 4)).mean()
    torch.testing.assert_close(output.losses["commitment"], 0.25 * expected)
    torch.testing.assert_close(output.losses["codebook"], expected.detach())
    (gradient,) = torch.autograd.grad(output.losses["commitment"], z, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(0.25 * expected, z)[0])
    (gradient,) = torch.autograd.grad(output.features.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))


def test_isotropy_is_of_the_features_and_not_of_what_is_left():
    inner = VectorQuantizerConfig(codebook_size=16, code_dim=4, l2_normalize=False, isotropy_weight=0.5)
    z = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(make(inner)(z).losses["isotropy"], 0.5 * isotropy_loss(z))
    with pytest.raises(ValueError, match=r"isotropy_weight is 0\.5.*quantizer\.shared"):
        make(inner, shared=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 1}, r"quantizer\.depth is 1. Give at least 2.*type 'vq'"),
        ({"inner": VectorQuantizerConfig()}, r"quantizer\.inner\.l2_normalize is True.*sphere"),
        ({"inner": BinarySphericalQuantizerConfig()}, r"quantizer\.inner\.type is 'bsq'.*'vq', 'simvq', 'fsq', 'lfq'"),
        ({"inner": FiniteScalarQuantizerConfig(), "shared": True}, "'fsq' has no codebook that levels could share"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ResidualQuantizerConfig(**fields)


def test_the_first_revival_places_each_level_on_what_the_levels_before_leave():
    quantizer, rows = make(), torch.randn(200, 4)
    moved = quantizer.revive(quantizer.encode(rows[:, :, None, None]), rows, torch.Generator())
    assert {name: len(found) for name, found in moved.items()} == {f"levels.{i}.embedding.weight": 16 for i in range(3)}
    left = rows.double()
    for book in codebooks(quantizer).double():
        distance = torch.cdist(book, left)  # [K, N]
        assert (distance.min(1).values < 1e-4).all()
        assert (book.norm(dim=1) > 1e-3).all()  # no code is wasted on what a level has taken up whole
        left = left - book[torch.cdist(left, book).argmin(1)]


def test_each_level_revives_what_lies_unused_at_it():
    quantizer, rows = make(), torch.randn(200, 4)
    codes = torch.arange(16).repeat(4)[:, None].repeat(1, 3)  # [N, depth]
    codes[:, 1] = 3
    for step in range(100):
        moved = quantizer.revive(codes, rows, torch.Generator().manual_seed(step))
        if step > 0 and moved:
            break
    assert list(moved) == ["levels.1.embedding.weight"]
    assert moved["levels.1.embedding.weight"].tolist() == [code for code in range(16) if code != 3]


def test_fewer_candidates_than_levels_are_enough():
    quantizer = make()
    quantizer.revive(torch.zeros(1, 3, dtype=torch.int64), torch.randn(1, 4), torch.Generator())
    assert all(level.embedding.weight.isfinite().all() for level in quantizer.levels)


def test_a_shared_codebook_counts_the_use_at_all_levels():
    quantizer, rows = make(shared=True), torch.randn(200, 4)
    assert sorted(quantizer.state_dict()) == ["levels.0.embedding.weight", "levels.0.usage"]
    codes = torch.arange(15).view(5, 3).repeat(4, 1)  # each level uses five codes of its own, and none uses code 15
    for step in range(100):
        moved = quantizer.revive(codes, rows, torch.Generator().manual_seed(step))
        if step > 0 and moved:
            break
    assert {name: found.tolist() for name, found in moved.items()} == {"levels.0.embedding.weight": [15]}
