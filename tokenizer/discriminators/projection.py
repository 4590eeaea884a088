"""A discriminator's class condition: a projection onto the class's vector (Miyato & Koyama 2018, arXiv:1802.05637)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codegrid.errors import CodegridError


class Projection(nn.Module):
    """Features [B, D, h, w] and labels int64 [B] -> <v_y, features> / sqrt(D) at each place, [B, 1, h, w].

    It is added to the unconditional logit, psi(features). The vectors start at 0, so classes have no effect at first.
    The division keeps the sum over D channels at the scale of one channel.
    """

    no_decay = True  # the optimizer treats it as a table

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        vectors = self.class_embedding[labels][:, :, None, None]  # [B, D, 1, 1]
        return (vectors * features).sum(1, keepdim=True) * features.shape[1] ** -0.5


def check_labels(is_conditional: bool, labels: Tensor | None, batch: int) -> None:
    """Raises ValueError if labels are missing, not expected, or not [B]."""
    if not is_conditional:
        if labels is not None:
            raise CodegridError(
                "This discriminator is unconditional: it takes no labels.",
                "Leave them out, or set discriminator.conditional.",
            )
    elif labels is None or labels.shape != (batch,) or labels.is_floating_point():
        found = "none" if labels is None else f"{labels.dtype} {list(labels.shape)}"
        raise CodegridError(
            f"This discriminator is class-conditional, and labels are {found}.", f"Give integers of shape [{batch}]."
        )
