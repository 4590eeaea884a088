"""Combines the stages, the devices and the disk. The public names load lazily, because workers need none of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codegrid.pipelines.compression.codec import ImageCodec
    from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline, ImagePipelineOutput
    from codegrid.prior.distribution import SamplingConfig

_HOMES = {
    "ImageCodec": "codegrid.pipelines.compression.codec",
    "ImageGenerationPipeline": "codegrid.pipelines.generation.pipeline",
    "ImagePipelineOutput": "codegrid.pipelines.generation.pipeline",
    "SamplingConfig": "codegrid.prior.distribution",
}

__all__ = ["ImageCodec", "ImageGenerationPipeline", "ImagePipelineOutput", "SamplingConfig"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
