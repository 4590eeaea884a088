"""The picture of samples in a pipeline's card."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from codegrid.pipelines.pictures.grids import class_sheet

if TYPE_CHECKING:
    from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline

SAMPLES_NAME = "samples.png"
_MOST_CLASSES, _PER_CLASS = 10, 4


def card_pictures(pipe: ImageGenerationPipeline) -> dict[str, Path | bytes]:
    """Samples for a card, by file name; none for a prior with another condition: nobody says which values to sample."""
    return {SAMPLES_NAME: sample_sheet(pipe)} if pipe.sequence.condition is None else {}


def sample_sheet(pipe: ImageGenerationPipeline) -> bytes:
    """A PNG of some samples for a card: a row per class, or a grid."""
    if pipe.class_names is None:
        sheet = class_sheet(pipe(num_images=16, seed=0, progress=False).images, None)
    else:
        labels = list(range(min(_MOST_CLASSES, len(pipe.class_names))))
        output = pipe(labels, num_images_per_label=_PER_CLASS, seed=0, progress=False)
        sheet = class_sheet(output.images, [pipe.class_names[label] for label in output.labels or ()], output.labels)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()
