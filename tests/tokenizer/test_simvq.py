"""SimVQ: its codes are a frozen codebook through a learned layer."""

from __future__ import annotations

import pytest
import torch
from vector_quantize_pytorch import SimVQ as TheirSimVQ

from codegrid.tokenizer.quantizers import make_quantizer
from codegrid.tokenizer.quantizers.simvq import SimVQConfig


def features() -> torch.Tensor:
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1))


def test_codes_losses_and_gradients_equal_vector_quantize_pytorch():
    torch.manual_seed(0)
    ours = make_quantizer(SimVQConfig(codebook_size=32, code_dim=4))
    theirs = TheirSimVQ(dim=4, codebook_size=32, channel_first=True, rotation_trick=False)
    theirs.frozen_codebook.copy_(ours.codebook)
    theirs.code_transform.load_state_dict(ours.projection.state_dict())
    z, twin = features().requires_grad_(), features().requires_grad_()
    output = ours(z)
    quantized, codes, loss = theirs(twin)
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.features, quantized, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sum(output.losses.values()), loss, rtol=1e-5, atol=1e-5)
    (output.features.square().sum() + sum(output.losses.values())).backward()
    (quantized.square().sum() + loss).backward()
    torch.testing.assert_close(z.grad, twin.grad, rtol=1e-5, atol=1e-5)
    gradient = theirs.code_transform.weight.grad
    torch.testing.assert_close(ours.projection.weight.grad, gradient, rtol=1e-5, atol=1e-5)


def test_one_step_moves_every_code_and_not_the_codebook():
    torch.manual_seed(0)
    quantizer = make_quantizer(SimVQConfig(codebook_size=32, code_dim=4))
    every = torch.arange(32).view(1, 4, 8)
    before, codebook = quantizer.codes_to_features(every).detach(), quantizer.codebook.clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    sum(quantizer(features()[:1, :, :1, :1]).losses.values()).backward()  # one feature, one code
    optimizer.step()
    assert (quantizer.codes_to_features(every) != before).any(1).all()
    assert torch.equal(quantizer.codebook, codebook)


@pytest.mark.parametrize("name", ["codebook_size", "code_dim", "codebook_weight"])
def test_what_nothing_could_learn_from_is_refused(name):
    with pytest.raises(ValueError, match=rf"quantizer\.{name} is 0"):
        SimVQConfig(**{name: 0})
