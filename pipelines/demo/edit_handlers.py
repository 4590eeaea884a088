"""What the controls of the page's tab "Edit" do, without Gradio: a picture, a painted mask, results, on from one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from codegrid.errors import require
from codegrid.pipelines.demo import actions
from codegrid.pipelines.demo.handlers import ALL_CLASSES, read_uploaded, whole, without_folder
from codegrid.pipelines.generation.output import ImagePipelineOutput
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.prior.architectures import architecture_of
from codegrid.prior.conditions import classes_of
from codegrid.tokenizer.images import to_model, to_pil

RESULTS = 4
_SIDE = 384  # pixels of the editor's picture, about


class Subject(NamedTuple):
    """The picture that is edited: as it was uploaded, [1, C, H, W], or a result with its codes, [1, h, w(, depth)].

    A result is edited on from its codes, never from its pixels.
    """

    pixels: Tensor
    codes: Tensor | None


class Results(NamedTuple):
    """What the last edit gave: pixels [N, C, H, W], codes [N, h, w(, depth)]."""

    pixels: Tensor
    codes: Tensor


Begun = tuple[Subject, dict[str, Any], str]  # what is edited, the editor's value, and a line that says which it is


def can_edit(pipe: ImageGenerationPipeline) -> bool:
    """Whether the pipeline's prior fills in any part; one of raster order does not."""
    record = architecture_of(pipe.prior)
    return record is not None and record.reads != "before"


class EditHandlers:
    """The handlers of one pipeline's tab. All raise CodegridError or BadImage; `handlers.answer` makes sentences."""

    def __init__(self, pipe: ImageGenerationPipeline) -> None:
        self.pipe = pipe

    def upload(self, file: str | None) -> Begun:
        """The uploaded picture as the tokenizer sees it."""
        return _begun(Subject(read_uploaded(self.pipe.tokenizer, file), None), "your picture")

    def sample(
        self, label: int | None, seed: float | None, prompt: str | None = None, file: str | None = None
    ) -> Begun:
        """A new sample of what is given, with its codes."""
        options = {"seed": whole("The seed", seed), "output_type": "pt", "progress": False}
        with self._followed(label, prompt, file) as given:
            actions.check_something_to_follow(self.pipe, given)
            made = self.pipe(**(given or {"num_images": 1}), **options)
        assert isinstance(made.images, Tensor)
        return _begun(Subject(made.images[:1], made.codes[:1]), "a new picture")

    def fill(
        self,
        subject: Subject | None,
        painted: dict[str, Any] | None,
        label: int | None,
        seed: float | None,
        prompt: str | None = None,
        file: str | None = None,
    ) -> tuple[Results, list[Image.Image]]:
        """Draw what is painted again, four times.

        Args:
            painted: the editor's value: its layers are pictures with an alpha channel; what is not clear is painted.
            prompt, file: a text and a picture to follow, for priors that know them; each may be empty.
        """
        require(subject is not None, "There is no picture.", "Upload one, or draw one, first.")
        assert subject is not None
        subject = Subject(*subject)
        mask = painted_mask(painted, (subject.pixels.shape[2], subject.pixels.shape[3]))
        start: Any = subject.pixels
        if subject.codes is not None:
            start = ImagePipelineOutput(subject.pixels, subject.codes, None)
        options = {"num_images_per_image": RESULTS, "seed": whole("The seed", seed)}
        with self._followed(label, prompt, file) as given:
            made = self.pipe.inpaint(start, mask, **given, output_type="pt", progress=False, **options)
        assert isinstance(made.images, Tensor)
        return Results(made.images, made.codes), [enlarged(picture) for picture in to_pil(made.images)]

    def keep(self, results: Results | None, place: int) -> Begun:
        """Go on from a result: it becomes the picture that is edited."""
        require(results is not None, "There are no results.", "Paint a part of a picture, and fill it.")
        assert results is not None
        pixels, codes = results
        # the pixels as they are shown: bytes
        kept = to_model(np.stack([np.atleast_3d(np.asarray(to_pil(pixels[place : place + 1])[0]))]))
        return _begun(Subject(kept, codes[place : place + 1]), f"result {place + 1}")

    @contextmanager
    def _followed(self, label: int | None, prompt: str | None, file: str | None) -> Iterator[dict[str, Any]]:
        """The arguments of a call for what is given; what is wrong with the file is said without its folder."""
        has_class = label != ALL_CLASSES and bool(classes_of(self.pipe.sequence.conditioning))
        given = {
            "class_labels": label if has_class else None,
            "prompt": (prompt or "").strip() or None,
            "condition": file,
        }
        with nullcontext() if file is None else without_folder(file):
            yield {name: value for name, value in given.items() if value is not None}


def _begun(subject: Subject, name: str) -> Begun:
    picture = enlarged(to_pil(subject.pixels)[0])
    return subject, {"background": picture, "layers": [], "composite": picture}, f"<b>Edited: {name}</b>"


def enlarged(picture: Image.Image) -> Image.Image:
    return actions.enlarged(picture, _SIDE)


def painted_mask(painted: dict[str, Any] | None, size: tuple[int, int]) -> np.ndarray:
    """The editor's layers -> bool [H, W] of a picture of `size`: a pixel is in the mask if a part of it is painted.

    Raises:
        CodegridError: nothing is painted.
    """
    height, width = size
    mask = np.zeros(size, dtype=bool)
    for layer in (painted or {}).get("layers") or ():
        alpha = np.asarray(layer.convert("RGBA"))[:, :, 3] > 127
        rows, columns = alpha.nonzero()
        mask[rows * height // alpha.shape[0], columns * width // alpha.shape[1]] = True
    require(bool(mask.any()), "Nothing is painted.", "Paint over what is to be drawn again.")
    return mask
