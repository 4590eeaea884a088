"""What every discriminator's config is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn


@dataclass(frozen=True)
class DiscriminatorConfig:
    """What every discriminator's config has.

    Args:
        type: the discriminator's name in the registry.

    Attributes:
        conditional: whether the verdict also goes by the image's class. A field of those that can.
    """

    # The configs that are told apart by their `type`; `register_discriminator` adds to them.
    # (In here `type` is the field, so that the values cannot be annotated as types.)
    registered: ClassVar[dict[str, Any]] = {}

    type: str = ""

    @property
    def conditional(self) -> bool:
        return False

    def build(self, in_channels: int, num_classes: int = 0) -> nn.Module:
        """The discriminator of this config; `make_discriminator` says what it has to be."""
        raise NotImplementedError(f"{type(self).__name__} has no `build`.")
