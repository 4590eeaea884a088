"""Pictures made of pictures, as conditions of a prior: smaller, noisy, grey, an outline. The same for a source id.

Each is a function of pixels uint8 [H, W, C] and a random generator -> pixels of the same shape. It is made of the
square that the tokenizer reads, after cutting and mirroring.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from codegrid.errors import CodegridError, require
from codegrid.names import shown
from codegrid.pipelines.data.records import DataError
from codegrid.pipelines.system.randomness import numpy_generator

Degrade = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_SILHOUETTE = 24  # of 255: difference from the background's colour that makes a pixel the motif's
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


@dataclass(frozen=True)
class Degradation:
    """A way to make one picture of another.

    Args:
        name: as users write it, such as "downscale:4".
        function: what it does.
    """

    name: str
    function: Degrade

    def __call__(self, pixels: np.ndarray, source_id: str, variant: int = 0) -> np.ndarray:
        """Pixels uint8 [H, W, C] -> uint8 [H, W, C]; what is random depends on name, source id and variant alone.

        Raises:
            CodegridError: a function from outside failed, or gave something else.
        """
        mark = int.from_bytes(hashlib.blake2b(source_id.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        generator = numpy_generator(0, f"condition {self.name}", mark, variant)
        try:
            made = np.asarray(self.function(pixels.copy(), generator))
        except Exception as error:
            raise CodegridError(
                f"The condition {self.name} failed on {shown(source_id)} ({type(error).__name__}: {error}).",
                "Mend the function, or leave the picture out.",
            ) from error
        require(
            made.dtype == np.uint8 and made.shape == pixels.shape,
            f"The condition {self.name} made {made.dtype} {list(made.shape)} of uint8 {list(pixels.shape)}.",
            "Let the function keep the shape, and give uint8.",
        )
        return made


@dataclass(frozen=True)
class _Kind:
    """A kind whose name may have a number behind a colon, from `least` to `most`; `default` is for its bare name."""

    make: Callable[[float], Degrade]
    default: float | None
    least: float
    most: float
    what: str
    whole: bool = False  # no fractions


def degradation(name: str) -> Degradation:
    """The way called `name`: a kind with its number, a registered name, or "module:function" for a Python function.

    Raises:
        DataError: there is none, its number is out of range, or the module has no such function.
    """
    kind, colon, number = name.partition(":")
    if name in _REGISTERED:
        return Degradation(name, _REGISTERED[name])
    if kind in _PLAIN:
        if colon:
            raise DataError(f"condition is {name!r}.", f"Write {kind}: it has no number.")
        return Degradation(name, _PLAIN[kind])
    if kind in _KINDS:
        return Degradation(name, _KINDS[kind].make(_number(name, number if colon else None)))
    if colon and all(part.isidentifier() for part in [*kind.split("."), number]):
        return Degradation(name, _function(kind, number))
    close = difflib.get_close_matches(kind, [*_PLAIN, *_KINDS, *_REGISTERED], n=1)
    known = ", ".join([*names(), "column:NAME", "folder:PATH"])
    raise DataError(
        f"condition is {name!r}.",
        (f"Did you mean {close[0]!r}? " if close else "") + f"There are {known}.",
    )


def is_known(name: str) -> bool:
    """Whether `name` can be made without importing anything: a name that was read from a file must not."""
    return name in _REGISTERED or name.partition(":")[0] in {*_PLAIN, *_KINDS}


def tells_a_part(name: str | None) -> bool:
    """Whether a condition of this name is a part of the picture itself, which `with_part` puts into another."""
    return name is not None and name.partition(":")[0] in ("downscale", "grey")


def with_part(made: Degradation, pictures: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Pictures whose part that conditions tell (their luma, or themselves made small) is the conditions' own.

    x + y - A x, A the way that made y (range and null space: Wang, Yu and Zhang 2022, https://arxiv.org/abs/2212.00490).
    A is linear, and A A = A, but for rounding and, of downscale, the edges of bicubic's kernel.

    Args:
        pictures, given: uint8 [N, H, W, C].
    """
    again = np.stack([made(picture, "") for picture in pictures])
    return np.clip(pictures.astype(np.int16) + given - again, 0, 255).astype(np.uint8)


def names() -> list[str]:
    """All names, as users write them."""
    return [*(f"{kind}:{each.what}" for kind, each in _KINDS.items()), *_PLAIN, *_REGISTERED, "MODULE:FUNCTION"]


def register_degradation(name: str, function: Degrade) -> None:
    """Let `--condition NAME` call `function`: pixels uint8 [H, W, C] and a numpy generator -> uint8 [H, W, C].

    Raises:
        CodegridError: the name is taken.
    """
    taken = name in _PLAIN or name.partition(":")[0] in _KINDS or not name
    require(
        not taken and _REGISTERED.get(name, function) is function, f"The name {name!r} is taken.", "Choose another."
    )
    _REGISTERED[name] = function


def _number(name: str, text: str | None) -> float:
    kind = _KINDS[name.partition(":")[0]]
    try:
        value = kind.default if text is None else float(text)
    except ValueError:
        value = None
    if value is None or not kind.least <= value <= kind.most or (kind.whole and value % 1):
        a_number = f"a {'whole ' * kind.whole}number from {kind.least:g} to {kind.most:g}"
        raise DataError(f"condition is {name!r}.", f"Write {name.partition(':')[0]}:{kind.what}, {a_number}.")
    return value


def _function(module: str, name: str) -> Degrade:
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"condition is '{module}:{name}', and that cannot be imported ({error}).",
            f"Name a function of a module that Python finds, or one of {', '.join(names())}.",
        ) from error
    require(callable(found), f"{module}:{name} is no function.", "Name a function of pixels and a generator.")
    return found


def _planes(pixels: np.ndarray, of_plane: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """A function of one channel's picture, on each channel."""
    made = [np.asarray(of_plane(Image.fromarray(np.ascontiguousarray(plane)))) for plane in np.moveaxis(pixels, 2, 0)]
    return np.stack(made, axis=2)


def _downscale(factor: float, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Smaller by bicubic with antialiasing, then as large as before: what a small file becomes when it is read."""
    height, width = pixels.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    bicubic = Image.Resampling.BICUBIC
    return _planes(pixels, lambda plane: plane.resize(small, bicubic).resize((width, height), bicubic))


def _noise(sigma: float, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    noisy = pixels + sigma * generator.standard_normal(pixels.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _jpeg(quality: float, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    def stored(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    if pixels.shape[2] == 3:
        return np.asarray(stored(Image.fromarray(pixels)))
    return _planes(pixels, stored)


def _blur(radius: float, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return _planes(pixels, lambda plane: plane.filter(ImageFilter.GaussianBlur(radius)))


def _grey(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return _everywhere(luma(pixels), pixels)


def _edges(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sobel's gradients of the luma: black lines on white, the steepest black."""
    grey = np.pad(luma(pixels), 1, mode="edge")
    across = grey[:, 2:] - grey[:, :-2]
    across = across[:-2] + 2 * across[1:-1] + across[2:]
    down = grey[2:] - grey[:-2]
    down = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    steep = np.hypot(across, down)
    return _everywhere(255 - 255 * steep / max(float(steep.max()), 1.0), pixels)


def _silhouette(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return _everywhere(np.where(motif(pixels), 0.0, 255.0), pixels)


def motif(pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8 [H, W, C] -> bool [H, W]: those that differ from the background, the border's median colour."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(border, axis=0)
    return np.abs(pixels - background).max(2) > _SILHOUETTE


def luma(pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8 [H, W, C] -> float64 [H, W]; of other numbers of channels than 3 their mean."""
    return pixels @ np.array(_LUMA) if pixels.shape[2] == 3 else pixels.mean(2)


def _everywhere(plane: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    whole = np.clip(np.round(plane), 0, 255).astype(np.uint8)
    return np.repeat(whole[:, :, None], pixels.shape[2], axis=2)


def _with(function: Callable[..., np.ndarray]) -> Callable[[float], Degrade]:
    return lambda number: partial(function, number)


_PLAIN: dict[str, Degrade] = {"grey": _grey, "edges": _edges, "silhouette": _silhouette}
_KINDS = {
    "downscale": _Kind(_with(_downscale), None, 1, 64, "FACTOR"),
    "noise": _Kind(_with(_noise), None, 0, 255, "SIGMA"),
    "jpeg": _Kind(_with(_jpeg), None, 1, 95, "QUALITY", True),
    "blur": _Kind(_with(_blur), 2.0, 0.1, 64, "RADIUS"),
}
_REGISTERED: dict[str, Degrade] = {}

__all__ = ["CodegridError", "Degradation", "degradation", "is_known", "luma", "motif", "names", "register_degradation"]
__all__ += ["tells_a_part", "with_part"]
