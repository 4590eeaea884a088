"""What the page's controls do, without Gradio: each gives the new values, or one sentence and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from codegrid.errors import CodegridError, require
from codegrid.names import printable, shown
from codegrid.pipelines.demo import actions
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.prior.conditions import classes_of
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import BadImage

PUT, PICK = "put the code there", "pick up its code"
ALL_CLASSES = -1  # the value of the choice "all classes", beside the labels of the classes


def answer(handler: Callable[..., Sequence[Any]], values: Sequence[Any], number: int, unchanged: Any) -> list[Any]:
    """The `number` values that `handler` gives for `values`, and "". If the user has to mend something: `number` times
    `unchanged`, and the sentence that says what."""
    try:
        return [*handler(*values), ""]
    except (CodegridError, BadImage) as error:
        return [*[unchanged] * number, printable(str(error))]


def class_choices(pipe: ImageGenerationPipeline) -> list[tuple[str, int]]:
    """(the class's name, its label), in the order of the labels. Names may repeat other words of the page."""
    return [(printable(name), label) for label, name in enumerate(classes_of(pipe.sequence.conditioning))]


def whole(name: str, value: float | None) -> int:
    """The whole number in a field of the page.

    Raises:
        CodegridError: the field is empty, or holds something else.
    """
    require(value is not None, f"{name} is empty.", "Type a whole number.")
    is_whole = math.isfinite(value) and abs(value) < 2**63 and value == int(value)
    require(is_whole, f"{name} is {value}.", "Type a whole number.")
    return int(value)


class Kept(NamedTuple):
    """A session's picture [1, C, H, W], its own codes and the changed ones, [h, w] or [h, w, depth]."""

    image: Tensor
    own: Tensor
    codes: Tensor


Shown = tuple[Kept, Image.Image, Image.Image, Image.Image, Image.Image]
NUMBER_SHOWN = 5


class Handlers:
    """The handlers of one pipeline's page. All raise CodegridError or BadImage; `answer` makes sentences of them.

    `Shown` is (what is kept, the picture, the map of its codes, the decoded picture, the difference of the two).
    """

    def __init__(self, pipe: ImageGenerationPipeline) -> None:
        self.pipe, self.model = pipe, pipe.tokenizer

    def generate(
        self,
        label: int | None,
        count: float,
        scale: float,
        heat: float,
        seed: float | None,
        prompt: str | None = None,
        file: str | None = None,
        *others: float,
    ) -> tuple[list[tuple[Image.Image, str]]]:
        """Samples of a class, a prompt and a picture's file, each of which may be empty.

        Args:
            scale, others: of guidance, one for each part of what the prior follows.
        """
        wanted = None if label in (None, ALL_CLASSES) else label
        numbers = whole("The number of images", count), (scale, *others) if others else scale, heat
        asked = self.pipe, wanted, *numbers, whole("The seed", seed), (prompt or "").strip() or None
        if file is None:
            return (actions.generate(*asked),)
        with without_folder(file):
            return (actions.generate(*asked, file),)

    def read(self, file: str | None, level: float, label: int | None) -> Shown:
        image = read_uploaded(self.model, file)
        codes = actions.encode(self.model, image)
        return self.show(Kept(image, codes, codes), level, label)

    def restore(self, kept: Kept | None, level: float, label: int | None) -> Shown:
        kept = uploaded(kept)
        return self.show(kept._replace(codes=kept.own), level, label)

    def again(self, kept: Kept | None, level: float, label: int | None) -> Shown:
        return self.show(uploaded(kept), level, label)

    def click(
        self,
        kept: Kept | None,
        code: float | None,
        action: str,
        level: float,
        label: int | None,
        place: tuple[float, float],
    ) -> tuple[Any, ...]:
        """A click at `place` (x, y) of the map: the code of the field, or the one that was picked up, and `Shown`."""
        kept = uploaded(kept)
        cell = actions.cell_at(*place, kept.codes)
        if action == PICK:
            code = actions.code_at(kept.codes, cell, int(level))
        else:
            code, size = whole("The code", code), self.model.config.quantizer_config.codebook_size
            kept = kept._replace(codes=actions.with_code(kept.codes, cell, code, size, int(level)))
        return code, *self.show(kept, level, label)

    def show(self, kept: Kept, level: float, label: int | None) -> Shown:
        decoded = actions.decode(self.pipe, kept.codes, label)
        return (
            kept,
            actions.picture(kept.image),
            actions.codes_map(kept.codes, int(level), changed=kept.own),
            actions.picture(decoded),
            actions.difference(kept.image, decoded),
        )


def read_uploaded(model: VQModel, file: str | None) -> Tensor:
    """An uploaded picture as the tokenizer sees it: [1, C, H, W] in [-1, 1].

    Raises:
        BadImage, CodegridError: there is none, or it cannot be used.
    """
    require(file is not None, "There is no picture.", "Upload one.")
    assert file is not None
    with without_folder(file):
        return actions.read_image(model, file)


@contextmanager
def without_folder(file: str) -> Iterator[None]:
    """What is wrong with an uploaded picture is said without the server's folder, which is nothing to the browser."""
    try:
        yield
    except BadImage as error:
        message = str(error).replace(shown(file), shown(Path(file).name))
        raise BadImage(error.reason, message) from error


def uploaded(kept: Kept | None) -> Kept:
    require(kept is not None, "There is no picture.", "Upload one first.")
    assert kept is not None
    return Kept(*kept)
