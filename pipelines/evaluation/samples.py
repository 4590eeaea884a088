"""Samples for an evaluation: made on all ranks, with atomic writes, and resumable after a stop."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from codegrid.pipelines.generation.output import ImagePipelineOutput
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import claim_images, weights_fingerprint
from codegrid.pipelines.pictures.grids import class_sheet
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.devices import wait_patiently
from codegrid.pipelines.system.files import write_atomically
from codegrid.prior.sampling import SamplingConfig, image_generator
from codegrid.tokenizer.images import to_model, to_pil

_IN_PICTURE = 100
_SECONDS = "seconds"  # of a batch, in its file


class Samples:
    """`num_images` samples with one setting, a file a batch, under `folder`/samples/SETTING/.

    Image i depends on seed and i alone. Its class is i modulo the number of classes.

    Raises:
        OutputError: the folder holds samples of another pipeline, seed or batch size.
    """

    def __init__(
        self,
        pipe: ImageGenerationPipeline,
        sampling: SamplingConfig,
        num_steps: int | None,
        folder: Path,
        num_images: int,
        seed: int,
        batch_size: int,
        accelerator: Accelerator,
    ) -> None:
        self.pipe, self.num_images, self.seed, self.batch_size = pipe, num_images, seed, batch_size
        self.accelerator, self.sampling, self.num_steps = accelerator, sampling, num_steps
        sampling = sampling.to_dict() | ({} if num_steps is None else {"num_steps": num_steps})
        mark = hashlib.sha256(json.dumps(sampling, sort_keys=True).encode()).hexdigest()[:8]
        steps = "" if num_steps is None else f"_steps-{num_steps}"
        self.name = f"guidance-{sampling['guidance_scale']:g}_temperature-{sampling['temperature']:g}{steps}_{mark}"
        self.outer, self.folder = folder, folder / "samples" / self.name
        number = -(-num_images // batch_size)
        self.mine = range(number)[accelerator.process_index :: accelerator.num_processes]
        self.shards = range(number)
        if accelerator.is_main_process:
            settings = {
                "tokenizer_fingerprint": pipe.tokenizer.fingerprint(),
                "prior_fingerprint": weights_fingerprint(pipe.prior),
                "seed": seed,
                "batch_size": batch_size,
                "sampling": sampling,
            }
            claim_images(self.folder, settings)
        wait_patiently(accelerator)

    def indices(self, shard: int) -> range:
        return range(shard * self.batch_size, min((shard + 1) * self.batch_size, self.num_images))

    def labels(self, shard: int) -> list[int] | None:
        classes = self.pipe.sequence.num_classes
        return [index % classes for index in self.indices(shard)] if classes else None

    @resumable()
    def make(self) -> None:
        """Make the missing samples. The ranks share the work, and none returns before all are done."""
        bar = tqdm(
            total=sum(len(self.indices(shard)) for shard in self.mine),
            unit="image",
            disable=not self.accelerator.is_main_process,
            dynamic_ncols=True,
        )
        missing = [shard for shard in self.mine if self._read(shard) is None]
        bar.update(sum(len(self.indices(shard)) for shard in self.mine if shard not in missing))
        stream = self._stream(missing)
        for shard in missing:
            began = time.perf_counter()
            pixels = {"images": torch.from_numpy(next(stream).images)}
            noted = {_SECONDS: str(time.perf_counter() - began)}
            write_atomically(self._path(shard), lambda aside, made=pixels, noted=noted: save_file(made, aside, noted))
            bar.update(len(self.indices(shard)))
        bar.close()
        wait_patiently(self.accelerator)

    def _stream(self, shards: list[int]) -> Iterator[ImagePipelineOutput]:
        """The samples of these shards, a batch each. One call for all: each call lays out the prior's weights."""
        if not shards:
            return iter(())
        indices = [index for shard in shards for index in self.indices(shard)]
        classes = self.pipe.sequence.num_classes
        return self.pipe.stream(
            [index % classes for index in indices] if classes else None,
            num_images=None if classes else len(indices),
            generator=[image_generator(self.seed, index) for index in indices],
            batch_size=self.batch_size,
            output_type="np",
            progress=False,
            num_steps=self.num_steps,
            **self.sampling.to_dict(),
        )

    def pixels(self, shard: int) -> Tensor:
        """uint8 [n, H, W, C] of a batch that `make` made."""
        return self._read(shard)

    def images_per_second(self) -> float | None:
        """Of one process, sampled and decoded; None where a batch is of a version that did not note the time."""
        seconds = []
        for shard in self.shards:
            with safe_open(self._path(shard), "pt") as file:
                seconds.append((file.metadata() or {}).get(_SECONDS))
        return None if None in seconds else self.num_images / sum(map(float, seconds))

    def write_picture(self) -> Path:
        """The first samples by class, as SETTING.png."""
        shards = range(-(-min(_IN_PICTURE, self.num_images) // self.batch_size))
        images = to_pil(to_model(torch.cat([self.pixels(shard) for shard in shards])[:_IN_PICTURE]))
        names = self.pipe.class_names
        labels = None if names is None else [index % len(names) for index in range(len(images))]
        sheet = class_sheet(images, None if names is None else [names[label] for label in labels or ()], labels)
        path = self.outer / f"{self.name}.png"
        write_atomically(path, lambda aside: sheet.save(aside, format="PNG"))
        return path

    def write_npz(self) -> Path:
        """All samples as SETTING.npz for ADM's evaluator: arr_0, uint8 [N, H, W, 3]. Only one batch is in memory."""
        height, width = self.pipe.tokenizer.config.preprocessing_config.size
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.num_images, height, width, 3)}

        def write(aside: Path) -> None:
            with (
                zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive,
                archive.open("arr_0.npy", "w", force_zip64=True) as file,
            ):
                np.lib.format.write_array_header_1_0(file, header)
                for shard in self.shards:
                    file.write(self.pixels(shard).expand(-1, -1, -1, 3).contiguous().numpy().tobytes())

        path = self.outer / f"{self.name}.npz"
        write_atomically(path, write)
        return path

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.safetensors"

    def _read(self, shard: int) -> Tensor | None:
        """The batch, or None if it is missing, damaged, or shorter than requested now."""
        path, number = self._path(shard), len(self.indices(shard))
        try:
            pixels = load_file(path)["images"] if path.is_file() else None
        except SafetensorError:
            return None
        return pixels if pixels is not None and len(pixels) == number else None
