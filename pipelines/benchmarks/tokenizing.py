"""A folder of JPEGs to a code data set, beside its parts alone: a job that wastes nothing takes their sum."""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from codegrid.errors import require
from codegrid.pipelines.benchmarks.options import OnDevice
from codegrid.pipelines.benchmarks.report import Row, in_turn, print_row
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.batches import Pictures, picture_reader
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS
from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.images import to_model
from codegrid.tokenizer.moving import to_device

_WIDTHS = {"tokenizer": 14, "what": 14, "pictures": 8, "pictures/s": 10, "ms": 9, "spread": 6, "ratio": 6}
_MADE, _SHAPE, _BATCH = 256, (360, 720), 64


@dataclass(frozen=True, kw_only=True)
class Tokenizing(OnDevice):
    """A folder of JPEGs to a code data set, beside reading alone and encoding alone.

    A row for each; a ratio is the bound by its time, where the bound is the time of reading and encoding one after the
    other. The tokenizers have random weights.

    Args:
        pictures: folder of JPEGs; none makes 256 of 720x360.
        num_workers: processes that read in the job; reading alone is in one process.
    """

    name = "tokenizing"
    parts = (("small64", "vqgan-f16-256"),)
    pictures: str | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_workers >= 0, f"num_workers is {self.num_workers}.", "It must be at least 0.")

    def measure(self) -> list[Row]:
        device = self.accelerator().device
        print_row({}, _WIDTHS, header=True)
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            source = self.pictures or _made(Path(folder) / "pictures")
            for name in filter(self.wants, self.parts[0]):
                rows += self._rows(name, source, Path(folder), device)
        return rows

    def _rows(self, name: str, source: str, folder: Path, device: torch.device) -> list[Row]:
        data = DataConfig(source)
        torch.manual_seed(0)
        preset = TOKENIZER_PRESETS[name](source, str(folder))
        parts = {"backbone": preset.backbone, "quantizer": preset.quantizer, "preprocessing": preset.preprocessing}
        model = VQModel(VQModelConfig(**parts)).eval().to(device)
        model.save_pretrained(folder / name)
        images = open_images(data)
        pictures = Pictures(images, picture_reader(model, with_content=True))

        def read() -> list[np.ndarray]:
            found = (picture.pixels for picture in pictures.in_order(range(len(images))))
            return [pixels[0] for pixels in found if pixels is not None]

        pixels = torch.from_numpy(np.stack(read()))

        @torch.no_grad()
        def encode() -> None:
            for batch in pixels.split(_BATCH):
                model.encode(to_model(to_device(batch, device))).cpu()

        def job() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as output, _in_silence():
                shared = {"batch_size": _BATCH, "device": self.device, "num_workers": self.num_workers}
                tokenize_dataset(TokenizationConfig(str(folder / name), data, f"{output}/codes", **shared))

        timings = in_turn({"reading": read, "encoding": encode, "job": job}, self.repeats)
        bound = timings["reading"].seconds + timings["encoding"].seconds
        rows = []
        for what, timing in timings.items():
            row = {"tokenizer": name, "what": what, "pictures": len(pixels), "pictures/s": len(pixels) / timing.seconds}
            rows.append({**row, **timing.columns(), "ratio": bound / timing.seconds})
            print_row(rows[-1], _WIDTHS)
        return rows


def _made(folder: Path) -> str:
    """JPEGs of blurred noise, about as large as photographs of that size."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for index in range(_MADE):
        height, width = _SHAPE
        coarse = Image.fromarray(draws.integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{index:03}.jpg", quality=90)
    return str(folder)


@contextlib.contextmanager
def _in_silence():
    """The job's own lines belong to no table."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
