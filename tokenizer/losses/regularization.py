"""Terms that keep a discriminator smooth, by its gradients on images or by its logits.

Here a patch discriminator's verdict on an image is the mean of its patches' logits, as in the losses themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from codegrid.tokenizer.moving import to_device

Judge = Callable[[Tensor], Tensor]


def gradient_penalty(judge: Judge, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """E[(|grad D(x)|_2 - 1)^2], x between a real and a fake image (Gulrajani 2017, https://arxiv.org/abs/1704.00028).

    Args:
        judge: images -> logits, [B, ...].
        real: [B, C, H, W].
        fake: [B, C, H, W], paired with `real`.
        generator: a CPU generator; draws the share of the real image in each x.
    """
    share = to_device(torch.rand(len(real), 1, 1, 1, generator=generator), real.device)
    between = share * real.float() + (1 - share) * fake.float()
    return (_gradients(judge, between).norm(dim=1) - 1).square().mean()


def r1_penalty(judge: Judge, real: Tensor) -> Tensor:
    """1/2 E[|grad D(x)|_2^2] on real images [B, C, H, W] (Mescheder 2018, https://arxiv.org/abs/1801.04406, eq. 9)."""
    return 0.5 * _gradients(judge, real).square().sum(1).mean()


def lecam_penalty(real_logits: Tensor, fake_logits: Tensor, mean_real: Tensor, mean_fake: Tensor) -> Tensor:
    """E[(D(x) - a_F)^2] + E[(D(x_hat) - a_R)^2] (Tseng 2021, https://arxiv.org/abs/2104.03310).

    a_R and a_F are the EMAs of the real and the fake logits, scalars without a gradient.
    """
    return (real_logits - mean_fake).square().mean() + (fake_logits - mean_real).square().mean()


def _gradients(judge: Judge, images: Tensor) -> Tensor:
    """Gradient of each image's verdict with respect to the image, with its graph: [B, C * H * W].

    It is float32 under any autocast, because it is differentiated once more.
    """
    images = images.detach().float().requires_grad_()
    with torch.autocast(images.device.type, enabled=False):
        verdicts = judge(images).flatten(1).mean(1)  # [B]
    (gradients,) = torch.autograd.grad(verdicts.sum(), images, create_graph=True)
    return gradients.flatten(1)
