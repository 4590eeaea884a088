"""The contract that every quantizer keeps, over the registry; then what is particular to one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import MultivariateNormal, kl_divergence
from vector_quantize_pytorch import VectorQuantize

from codegrid.tokenizer.quantizers import (
    QUANTIZERS,
    BinarySphericalQuantizerConfig,
    FiniteScalarQuantizerConfig,
    HierarchicalQuantizerConfig,
    LookupFreeQuantizerConfig,
    VectorQuantizerConfig,
    make_quantizer,
)
from codegrid.tokenizer.quantizers.grouped import GroupedQuantizerConfig
from codegrid.tokenizer.quantizers.gumbel import GumbelConfig
from codegrid.tokenizer.quantizers.index_backpropagation import IBQConfig
from codegrid.tokenizer.quantizers.residual import ResidualQuantizerConfig
from codegrid.tokenizer.quantizers.simvq import SimVQConfig
from codegrid.tokenizer.quantizers.vector import isotropy_loss

CONFIGS = [
    VectorQuantizerConfig(codebook_size=32, code_dim=4),
    VectorQuantizerConfig(codebook_size=32, code_dim=4, l2_normalize=False),
    ResidualQuantizerConfig(depth=3, inner=VectorQuantizerConfig(codebook_size=32, code_dim=4, l2_normalize=False)),
    ResidualQuantizerConfig(
        depth=3, shared=True, inner=VectorQuantizerConfig(codebook_size=32, code_dim=4, l2_normalize=False)
    ),
    ResidualQuantizerConfig(depth=3, inner=FiniteScalarQuantizerConfig(levels=(3, 4, 5, 6))),
    ResidualQuantizerConfig(depth=3, inner=LookupFreeQuantizerConfig(num_bits=4)),
    ResidualQuantizerConfig(depth=3, inner=SimVQConfig(codebook_size=32, code_dim=4)),
    GroupedQuantizerConfig(groups=2, inner=VectorQuantizerConfig(codebook_size=32, code_dim=2)),
    GroupedQuantizerConfig(groups=2, inner=FiniteScalarQuantizerConfig(levels=(5, 4))),
    GroupedQuantizerConfig(groups=2, inner=BinarySphericalQuantizerConfig(num_bits=2)),
    GroupedQuantizerConfig(groups=2, inner=IBQConfig(codebook_size=32, code_dim=2)),
    HierarchicalQuantizerConfig(
        channels=4, norm_groups=2, inner=VectorQuantizerConfig(codebook_size=32, code_dim=3, codebook_update="ema")
    ),
    HierarchicalQuantizerConfig(channels=4, norm_groups=2, inner=FiniteScalarQuantizerConfig(levels=(4, 4))),
    VectorQuantizerConfig(codebook_size=32, code_dim=4, l2_normalize=False, gradient="rotation"),
    VectorQuantizerConfig(codebook_size=32, code_dim=4, entropy_weight=0.1),
    VectorQuantizerConfig(codebook_size=32, code_dim=4, codebook_update="ema"),
    VectorQuantizerConfig(codebook_size=32, code_dim=4, codebook_update="ema", l2_normalize=False),
    VectorQuantizerConfig(codebook_size=32, code_dim=4, codebook_init="kmeans"),
    SimVQConfig(codebook_size=32, code_dim=4),
    IBQConfig(codebook_size=32, code_dim=4),
    GumbelConfig(codebook_size=32, code_dim=4),
    GumbelConfig(codebook_size=32, code_dim=4, straight_through=False),
    FiniteScalarQuantizerConfig(levels=(3, 4, 5, 6)),
    LookupFreeQuantizerConfig(num_bits=4),
    BinarySphericalQuantizerConfig(num_bits=4),
]
# Those that move dead codes.
REVIVING = [config for config in CONFIGS if config.type == "vq"]


def test_every_quantizer_of_the_registry_is_tested():
    assert {config.type for config in CONFIGS} == set(QUANTIZERS)


@pytest.fixture(params=CONFIGS, ids=[f"{config.type}-{number}" for number, config in enumerate(CONFIGS)])
def quantizer(request):
    torch.manual_seed(0)
    return make_quantizer(request.param)


def features(requires_grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 8, 6, generator=generator).requires_grad_(requires_grad)


def test_shapes_and_range(quantizer):
    output = quantizer(features())
    assert output.features.shape == (3, 4, 8, 6)
    depth, stride = quantizer.config.depth, quantizer.config.stride
    grid = (3, 8 // stride, 6 // stride)
    assert output.codes.shape == (grid if depth == 1 else (*grid, depth))
    assert output.codes.dtype == torch.int64
    assert 0 <= output.codes.min() <= output.codes.max() < quantizer.config.codebook_size
    assert all(loss.dim() == 0 and loss.isfinite() for loss in output.losses.values())
    # Errors are not negative. An entropy term is a difference of two entropies.
    assert all(loss >= 0 for name, loss in output.losses.items() if name != "entropy")


def test_codes_to_features_is_the_evaluated_output(quantizer):
    quantizer.eval()
    output = quantizer(features())
    assert torch.equal(quantizer.codes_to_features(output.codes), output.features)
    assert torch.equal(quantizer.encode(features()), output.codes)


def test_gradients_reach_the_encoder_and_the_codebook(quantizer):
    quantizer.train()
    z = features(requires_grad=True)
    output = quantizer(z)
    (output.features.square().sum() + sum(output.losses.values())).backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in quantizer.parameters())


def test_distances_are_there_where_they_are_promised_and_their_smallest_is_the_codes(quantizer):
    z = features(requires_grad=True)
    if not quantizer.config.has_distances:
        with pytest.raises(NotImplementedError):
            quantizer.distances(z)
        return
    with torch.autocast("cpu", torch.bfloat16):
        distances = quantizer.eval().distances(z)
    codes = quantizer.encode(z)
    assert distances.shape == (codes.numel(), quantizer.config.codebook_size)
    assert torch.equal(distances.argmin(1), codes.flatten())
    scaled = torch.nn.functional.normalize(z, dim=1) if getattr(quantizer.config, "l2_normalize", False) else z
    expected = (scaled - quantizer.codes_to_features(codes)).square().sum(1).flatten()
    torch.testing.assert_close(distances.amin(1), expected, rtol=1e-4, atol=1e-5)
    distances.sum().backward()
    assert all(each.grad.abs().sum() > 0 for each in (z, *quantizer.parameters()))


def test_bf16_features_and_autocast_change_no_code(quantizer):
    """Distances run in float32: a codebook of many close codes would be mixed up in bf16."""
    quantizer.eval()  # in training codes may be drawn
    z = features().bfloat16()
    expected = quantizer.encode(z.float())
    assert torch.equal(quantizer.encode(z), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(z)
        assert torch.equal(output.codes, expected)
    assert output.features.dtype == torch.float32


def test_state_dict_round_trip(quantizer):
    other = make_quantizer(quantizer.config)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.encode(features()), quantizer.encode(features()))


@pytest.mark.parametrize("quantizer", REVIVING, indirect=True)
def test_revival_moves_the_unused_codes_onto_features_and_is_the_same_for_the_same_draw(quantizer):
    rows = features().permute(0, 2, 3, 1).reshape(-1, 4)
    twin = make_quantizer(quantizer.config)
    twin.load_state_dict(quantizer.state_dict())
    codes = torch.zeros(90, dtype=torch.int64)  # only code 0 is used
    for step in range(400):
        moved = quantizer.revive(codes, rows, torch.Generator().manual_seed(step))
        twin.revive(codes, rows, torch.Generator().manual_seed(step))
        if step > 0 and moved:
            break
    moved = moved["embedding.weight"]
    assert sorted(moved.tolist()) == list(range(1, 32))
    assert torch.equal(quantizer.embedding.weight, twin.embedding.weight)
    taken = (quantizer.embedding.weight[moved][:, None] == rows).all(-1).any(1)  # each is one of the features
    assert taken.all()


@pytest.mark.parametrize("quantizer", [c for c in REVIVING if c.codebook_init == "data"], indirect=True)
def test_the_first_revival_places_the_whole_codebook_on_the_features(quantizer):
    rows = features().permute(0, 2, 3, 1).reshape(-1, 4)
    moved = quantizer.revive(torch.arange(32), rows, torch.Generator().manual_seed(0))
    assert moved["embedding.weight"].tolist() == list(range(32))
    assert (quantizer.embedding.weight[:, None] == rows).all(-1).any(1).all()


def test_revivals_candidates_of_a_large_batch_are_from_every_column_of_the_grid():
    columns = torch.arange(16.0).expand(8, 4, 64, 16)  # [B, D, h, w]
    candidates = make_quantizer(CONFIGS[0]).candidates(columns)
    assert 900 < len(candidates) <= 1024
    assert torch.bincount(candidates[:, 0].long(), minlength=16).min() > 40


@pytest.mark.parametrize("quantizer", REVIVING, indirect=True)
def test_revival_leaves_used_codes_alone(quantizer):
    codes = torch.arange(32).repeat(4)
    quantizer.revive(codes, torch.randn(8, 4), torch.Generator())  # the first call places them
    before = quantizer.embedding.weight.clone()
    for step in range(300):
        assert quantizer.revive(codes, torch.randn(8, 4), torch.Generator().manual_seed(step)) == {}
    assert torch.equal(quantizer.embedding.weight, before)


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_codes_and_losses_equal_vector_quantize_pytorch(l2_normalize):
    """An independent implementation, with the same codebook and both terms of weight 1 and 0.25."""
    config = VectorQuantizerConfig(codebook_size=32, code_dim=4, l2_normalize=l2_normalize)
    ours = make_quantizer(config).train()
    theirs = VectorQuantize(
        dim=4, codebook_size=32, use_cosine_sim=l2_normalize,
        commitment_weight=0.0,
    ).train()  # fmt: skip
    codebook = ours.embedding.weight.detach()
    theirs._codebook.embed.data = (F.normalize(codebook) if l2_normalize else codebook)[None].clone()
    z = features()
    rows = z.permute(0, 2, 3, 1).reshape(3, 48, 4)
    quantized, codes, _ = theirs.eval()(rows)
    output = ours.eval()(z)
    assert torch.equal(output.codes.reshape(3, 48), codes)
    assert torch.allclose(output.features.permute(0, 2, 3, 1).reshape(3, 48, 4), quantized, atol=1e-5)
    placed = F.normalize(rows, dim=-1) if l2_normalize else rows
    error = F.mse_loss(quantized, placed)
    assert torch.allclose(output.losses["codebook"], error, atol=1e-5)
    assert torch.allclose(output.losses["commitment"], 0.25 * error, atol=1e-5)


def test_the_commitment_weight_is_on_the_encoders_side():
    config = VectorQuantizerConfig(
        codebook_size=8, code_dim=4, l2_normalize=False, codebook_weight=0, commitment_weight=1
    )
    quantizer = make_quantizer(config)
    z = features(requires_grad=True)
    quantizer(z).losses["commitment"].backward()
    assert z.grad.abs().sum() > 0
    assert quantizer.embedding.weight.grad is None or quantizer.embedding.weight.grad.abs().sum() == 0


def test_the_isotropy_loss_equals_the_divergence_of_two_gaussians():
    features = torch.randn(4, 3, 5, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 0.3
    rows = features.movedim(1, -1).reshape(-1, 3)
    of_batch = MultivariateNormal(rows.mean(0), torch.cov(rows.T, correction=0))
    standard = MultivariateNormal(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(isotropy_loss(features), kl_divergence(of_batch, standard), rtol=1e-4, atol=1e-5)


def test_the_isotropy_loss_opens_a_collapsed_dimension():
    features = torch.randn(2, 4, 8, 8)
    features[:, 0] *= 1e-3
    features.requires_grad_()
    isotropy_loss(features).backward()
    assert features.grad.isfinite().all()
    grown = features.detach() - 1e-3 * features.grad / features.grad.norm()
    assert grown[:, 0].std() > features[:, 0].std()


@pytest.mark.parametrize("shape", [(1, 16, 2, 2), (1, 4, 2, 2), (1, 16, 1, 1)])
def test_the_isotropy_loss_of_fewer_rows_than_dimensions_has_its_gradient(shape):
    """Of its equation in float64. Where a dimension goes is then not its own affair: four rows span three of sixteen,
    and what spreads too far in those three shrinks in each of the sixteen."""
    features = torch.randn(shape)
    features[:, 0] *= 1e-3
    exact = features.double().requires_grad_()
    rows = exact.movedim(1, -1).flatten(0, -2)  # [N, D]
    mean, covariance = rows.mean(0), torch.cov(rows.T, correction=0)
    floor = 1e-6 * torch.eye(shape[1], dtype=torch.float64)
    expected = 0.5 * (covariance.trace() - torch.logdet(covariance + floor) - shape[1] + mean.square().sum())
    expected.backward()
    features.requires_grad_()
    loss = isotropy_loss(features)
    loss.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(features.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)


def test_isotropy_is_a_term_of_training_alone_and_not_for_the_sphere():
    config = VectorQuantizerConfig(codebook_size=16, code_dim=3, l2_normalize=False, isotropy_weight=0.5)
    quantizer = make_quantizer(config)
    features = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(quantizer(features).losses["isotropy"], 0.5 * isotropy_loss(features))
    assert "isotropy" not in quantizer.eval()(features).losses
    with pytest.raises(ValueError, match="l2_normalize"):
        VectorQuantizerConfig(codebook_size=16, code_dim=3, l2_normalize=True, isotropy_weight=0.5)
