"""The base of every discriminator's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Base of every discriminator's config.

    Args:
        type: the discriminator's name in the registry.

    Attributes:
        conditional: whether the logits also depend on the image's class. It is a field of the kinds that support it.
    """

    # Config classes by their `type`; `register_discriminator` adds to them.
    # (`type` is a field in this class, so the annotation cannot use the builtin.)
    registered: ClassVar[dict[str, Any]] = {}

    type: str = ""

    @property
    def conditional(self) -> bool:
        return False

    def build(self, in_channels: int, num_classes: int = 0) -> nn.Module:
        """The discriminator of this config; `make_discriminator` documents its interface."""
        raise NotImplementedError(f"{type(self).__name__} has no `build`.")
