"""Index backpropagation: the gradient passes through the choice, to every code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical

from codegrid.tokenizer.quantizers import make_quantizer
from codegrid.tokenizer.quantizers.index_backpropagation import IBQConfig


def features() -> torch.Tensor:
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1))


def ibq(**options):
    torch.manual_seed(0)
    return make_quantizer(IBQConfig(**{"codebook_size": 32, "code_dim": 4, **options}))


def test_codes_start_from_a_standard_normal_distribution_as_the_authors_do():
    codes = ibq(codebook_size=4096).embedding.weight.detach()
    assert abs(codes.mean()) < 0.05
    assert codes.std() == pytest.approx(1.0, abs=0.05)


def test_the_gradient_is_that_of_the_mean_under_the_softmax_at_the_chosen_code():
    """d (p^T C) = dp^T C + onehot^T dC, dp the softmax's Jacobian: written out row by row, in float64."""
    quantizer = ibq()
    z = features().requires_grad_()
    upstream = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(2))
    output = quantizer(z)
    of_z, of_codes = torch.autograd.grad((output.features * upstream).sum(), [z, quantizer.embedding.weight])
    codebook = quantizer.embedding.weight.detach().double()
    expected_z, expected_codes = [], torch.zeros_like(codebook)
    for row, above in zip(*(x.detach().double().movedim(1, -1).reshape(-1, 4) for x in (z, upstream)), strict=True):
        p = (codebook @ row).softmax(0)
        of_logits = (torch.diag(p) - torch.outer(p, p)) @ codebook @ above  # [K]
        expected_z.append(codebook.T @ of_logits)
        expected_codes += torch.outer(of_logits, row)
        expected_codes[(codebook @ row).argmax()] += above
    expected_z = torch.stack(expected_z).view(3, 5, 6, 4).movedim(-1, 1)
    torch.testing.assert_close(of_z.double(), expected_z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_codes.double(), expected_codes, rtol=1e-4, atol=1e-4)
    assert (of_codes.abs().sum(1) > 0).all()  # every code, chosen or not
    assert len(output.codes.unique()) < 32


def test_codes_and_losses_follow_the_paper():
    quantizer = ibq(index_weight=1.0, commitment_weight=0.5, codebook_weight=0.25, entropy_weight=0.1)
    output = quantizer(features())
    rows = features().movedim(1, -1).reshape(-1, 4)
    logits = rows @ quantizer.embedding.weight.detach().T
    assert torch.equal(output.codes.flatten(), logits.argmax(1))
    chosen = quantizer.embedding.weight.detach()[logits.argmax(1)]
    torch.testing.assert_close(output.features.movedim(1, -1).reshape(-1, 4), chosen)
    error = F.mse_loss(rows, chosen)
    p = Categorical(logits=logits / 0.01)
    entropy = p.entropy().mean() - Categorical(probs=p.probs.mean(0)).entropy()
    expected = {"index": error, "commitment": 0.5 * error, "codebook": 0.25 * error, "entropy": 0.1 * entropy}
    assert set(output.losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(output.losses[name], value, rtol=1e-4, atol=1e-5)


def test_evaluation_and_weight_0_leave_the_entropy_out():
    assert "entropy" not in ibq().eval()(features()).losses
    assert "entropy" not in ibq(entropy_weight=0.0)(features()).losses


@pytest.mark.parametrize("name", ["codebook_size", "entropy_temperature"])
def test_a_field_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match=rf"quantizer\.{name} is 0"):
        IBQConfig(**{name: 0})
