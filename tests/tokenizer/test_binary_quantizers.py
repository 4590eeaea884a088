"""Lookup-free and binary spherical quantization: their codes, and the entropies against sums over all codes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import LFQ

from codegrid.tokenizer.quantizers import BinarySphericalQuantizerConfig, LookupFreeQuantizerConfig, make_quantizer
from codegrid.tokenizer.quantizers.binary import entropies

KINDS = [LookupFreeQuantizerConfig, BinarySphericalQuantizerConfig]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=["lfq", "bsq"])


def features(bits: int = 5) -> torch.Tensor:
    return torch.randn(2, bits, 3, 4, generator=torch.Generator().manual_seed(0))


def assignment(quantizer, z: torch.Tensor) -> torch.Tensor:
    """softmax(-tau |z - e|^2) over all codes, in float64: [B, D, h, w] -> [N, K]."""
    config = quantizer.config
    codebook = quantizer.codes_to_features(torch.arange(config.codebook_size).view(1, -1, 1))[0, :, :, 0].T.double()
    rows = z.double().permute(0, 2, 3, 1).flatten(0, 2)
    if config.type == "bsq":
        rows = F.normalize(rows, dim=1)
    return torch.softmax(-config.inv_temperature * torch.cdist(rows, codebook).square(), dim=1)


def entropy(shares: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(shares).sum(-1)


@each_kind
@pytest.mark.parametrize("bits", [1, 5, 16])
def test_every_code_comes_back_from_its_features(kind, bits):
    quantizer = make_quantizer(kind(num_bits=bits))
    codes = torch.arange(2**bits).view(1, -1, 1)
    vectors = quantizer.codes_to_features(codes)
    assert torch.equal(quantizer.encode(vectors), codes)
    size = 1 if kind is LookupFreeQuantizerConfig else bits**-0.5
    torch.testing.assert_close(vectors.abs(), torch.full_like(vectors, size))
    assert ((vectors[0, 0, :, 0] > 0) == (torch.arange(2**bits) % 2 == 1)).all()  # the first channel is the lowest bit


@each_kind
def test_the_largest_codes_fit(kind):
    quantizer = make_quantizer(kind(num_bits=31))
    codes = torch.tensor([0, 2**31 - 1, 2**30]).view(1, 3, 1)
    assert torch.equal(quantizer.encode(quantizer.codes_to_features(codes)), codes)


@each_kind
@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_codes_features_and_losses_equal_vector_quantize_pytorch(kind, tau):
    """Theirs takes the first channel for the highest bit, ours, as the paper, for the lowest: it gets them reversed.

    Theirs takes the exact entropy of the batch's mean, over all codes; ours, of one feature only, is the same.
    """
    config = kind(num_bits=5, commitment_weight=0.3, entropy_weight=0.2, diversity_weight=0.7, inv_temperature=tau)
    theirs = LFQ(
        dim=5, spherical=config.type == "bsq",
        commitment_loss_weight=0.3, entropy_loss_weight=0.2, diversity_gamma=0.7,
    ).train()  # fmt: skip
    ours = make_quantizer(config).train()
    z = features()
    (quantized, codes, _), parts = theirs(z.flip(1), inv_temperature=tau, return_loss_breakdown=True)
    output = ours(z)
    assert torch.equal(output.codes, codes.long())
    torch.testing.assert_close(output.features, quantized.flip(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(output.losses["commitment"], 0.3 * parts.commitment, rtol=0, atol=1e-5)
    without_the_batch = make_quantizer(replace(config, diversity_weight=0.0)).train()(z)
    torch.testing.assert_close(without_the_batch.losses["entropy"], 0.2 * parts.per_sample_entropy, rtol=0, atol=1e-5)
    for index in range(3):
        one = z[:1, :, :1, index : index + 1]
        loss = theirs(one.flip(1), inv_temperature=tau).entropy_aux_loss
        torch.testing.assert_close(sum(ours(one).losses.values()), loss, rtol=0, atol=1e-5)


@each_kind
@pytest.mark.parametrize("tau", [0.1, 1.0, 100.0])
def test_the_entropies_are_those_of_a_softmax_over_all_codes(kind, tau):
    weights = {"entropy_weight": 1.0, "inv_temperature": tau}
    quantizer = make_quantizer(kind(num_bits=5, diversity_weight=1.0, **weights)).train()
    of_each = make_quantizer(kind(num_bits=5, diversity_weight=0.0, **weights)).train()(features()).losses["entropy"]
    of_batch = of_each - quantizer(features()).losses["entropy"]
    shares = assignment(quantizer, features())  # [N, K]
    torch.testing.assert_close(of_each.double(), entropy(shares).mean(), rtol=1e-4, atol=1e-5)
    exact = entropy(shares.mean(0))
    if kind is LookupFreeQuantizerConfig:
        torch.testing.assert_close(of_batch.double(), exact, rtol=1e-4, atol=1e-5)
        return
    # BSQ's: the product of the marginals, bit by bit; it cannot lie below the exact one.
    bits = quantizer.codes_to_features(torch.arange(32).view(1, -1, 1))[0, :, :, 0].T > 0  # [K, D]
    marginals = shares.mean(0) @ bits.double()  # [D]
    expected = entropy(torch.stack([marginals, 1 - marginals], dim=-1)).sum()
    torch.testing.assert_close(of_batch.double(), expected, rtol=1e-4, atol=1e-4)
    assert of_batch > exact - 1e-4


@pytest.mark.parametrize("bits", [1, 9, 10, 11, 13, 31])
def test_groups_of_bits_have_their_joint_entropy_and_its_gradient(bits):
    """Against a sum over all codes of each group, in float64, with the gradient of the whole."""
    logits = (3 * torch.randn(2, bits, 2, 3)).requires_grad_()
    _, found = entropies(logits, 10)
    of_one = torch.sigmoid(logits.double()).movedim(1, -1).flatten(0, 2)  # [N, D]
    expected = 0.0
    for group in of_one.tensor_split(-(-bits // 10), dim=1):
        assert group.shape[1] <= 10
        codes = torch.arange(2 ** group.shape[1])[:, None] >> torch.arange(group.shape[1]) & 1  # [K, D]
        shares = torch.where(codes.bool(), group[:, None], 1 - group[:, None]).prod(2)  # [N, K]
        expected = expected - (shares.mean(0) * shares.mean(0).log()).sum()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    one, two = (torch.autograd.grad(value, logits)[0] for value in (found, expected))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_the_diversity_of_lfq_sees_bits_that_always_agree():
    """As vector-quantize-pytorch's, over a batch: three of the five bits agree everywhere."""
    z = features()
    z[:, 1:3] = z[:, :1]
    config = LookupFreeQuantizerConfig(num_bits=5, entropy_weight=1.0, inv_temperature=2.0, commitment_weight=0.0)
    theirs = LFQ(dim=5, commitment_loss_weight=0.0, entropy_loss_weight=1.0, diversity_gamma=1.0).train()
    expected = theirs(z.flip(1), inv_temperature=2.0).entropy_aux_loss
    # Theirs has a floor of 1e-5 under the logarithms.
    torch.testing.assert_close(make_quantizer(config).train()(z).losses["entropy"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("joint", [1, 3, 10])
def test_the_entropies_lie_between_none_and_all_bits_and_stay_finite(joint):
    logits = torch.tensor([0.0, 1e4, -1e4]).view(3, 1, 1, 1).expand(3, 4, 1, 1)
    even, high, low = (logits[index : index + 1] for index in range(3))
    assert [value.item() for value in entropies(even, joint)] == pytest.approx([4 * math.log(2)] * 2)
    assert [value.item() for value in entropies(high, joint)] == pytest.approx([0, 0], abs=1e-4)
    of_each, of_batch = entropies(torch.cat([high, low]), joint)
    # The bits agree: all of a group are one fair bit.
    assert (of_each.item(), of_batch.item()) == pytest.approx((0, {1: 4, 3: 2, 10: 1}[joint] * math.log(2)))
    for part in (even, high, low, logits):
        leaf = part.clone().requires_grad_()
        sum(entropies(leaf, joint)).backward()
        assert leaf.grad.isfinite().all()


@each_kind
def test_descent_on_the_entropy_term_spreads_the_bits(kind):
    """Nearly all features start on one code; descent on the term alone makes each bit of them about even."""
    z = (0.1 * features(4) + 0.3).requires_grad_()
    quantizer = make_quantizer(kind(num_bits=4, entropy_weight=1.0, diversity_weight=2.0, inv_temperature=2.0)).train()
    optimizer = torch.optim.Adam([z], lr=0.02)
    assert ((z > 0).float().mean((0, 2, 3)) > 0.9).all()
    for _ in range(300):
        optimizer.zero_grad()
        quantizer(z).losses["entropy"].backward()
        optimizer.step()
    share = (z > 0).float().mean((0, 2, 3))  # [D]
    assert ((share > 0.3) & (share < 0.7)).all()


@each_kind
def test_entropy_is_a_term_of_training_alone(kind):
    quantizer = make_quantizer(kind(num_bits=5))
    assert set(quantizer.train()(features()).losses) == {"commitment", "entropy"}
    assert set(quantizer.eval()(features()).losses) == {"commitment"}
    assert set(make_quantizer(kind(num_bits=5, entropy_weight=0.0)).train()(features()).losses) == {"commitment"}


@each_kind
def test_eighteen_bits_take_the_memory_of_the_features_not_of_the_codebook(kind):
    """One array of every feature's share of every code would be 2 GB; none saved for the backward pass is near it.

    The joint entropy of nine bits is a product of the shares of 2^5 and of 2^4 codes.
    """
    largest = 0

    def saved(tensor):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    z = torch.randn(8, 18, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        output = make_quantizer(kind(num_bits=18)).train()(z)
    (output.features.square().sum() + sum(output.losses.values())).backward()
    assert largest == (2048 * 2**5 if kind is LookupFreeQuantizerConfig else z.numel())
    assert output.codes.max() > 2**17
    assert z.grad.isfinite().all()


@each_kind
def test_zero_and_nan_have_codes_too(kind):
    z = torch.tensor([0.0, torch.nan]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    assert make_quantizer(kind(num_bits=3)).encode(z).flatten().tolist() == [0, 0]


@each_kind
def test_there_is_nothing_to_learn_or_to_revive(kind):
    quantizer = make_quantizer(kind(num_bits=3))
    assert not quantizer.state_dict()
    assert quantizer.revive(torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3), torch.Generator()) == {}


@each_kind
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_bits": 0}, r"quantizer\.num_bits is 0"),
        ({"num_bits": 32}, r"quantizer\.num_bits is 32"),
        ({"entropy_weight": -1.0}, r"quantizer\.entropy_weight is -1"),
        ({"inv_temperature": 0.0}, r"quantizer\.inv_temperature is 0"),
    ],
)
def test_configs_that_cannot_be_are_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)
