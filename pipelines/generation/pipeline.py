"""ImageGenerationPipeline: class labels (or nothing) -> codes -> images."""

from __future__ import annotations

import logging
import math
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.pipelines.artifacts.cards import cards_of, pipeline_card
from codegrid.pipelines.artifacts.export import export
from codegrid.pipelines.artifacts.fit import called, misfits, unknown_origin
from codegrid.pipelines.artifacts.index import CONDITION_TOKENIZER, read_index, write_index
from codegrid.pipelines.artifacts.loading import (
    DeviceMap,
    LoadingError,
    hub_options,
    load_prior_and_sequence,
    load_tokenizer,
    local_folder,
)
from codegrid.pipelines.artifacts.replacing import check_target, replace_own
from codegrid.pipelines.codec.context import CONTEXT_FOLDER, ContextModel
from codegrid.pipelines.data.classes import decoder_classes
from codegrid.pipelines.data.records import DataError
from codegrid.pipelines.generation.arguments import streams_of_images, whole_number
from codegrid.pipelines.generation.editing import Editing
from codegrid.pipelines.generation.keeping import Keeping, keeping
from codegrid.pipelines.generation.larger import grid_of_size, iterate_grids
from codegrid.pipelines.generation.outpainting import Outpainting
from codegrid.pipelines.generation.output import CodesBar, ImagePipelineOutput, OutputType, as_output, check_output_type
from codegrid.pipelines.generation.pushing import Pushing
from codegrid.pipelines.generation.scoring import Scoring
from codegrid.pipelines.generation.wanted import wanted_images
from codegrid.pipelines.system.devices import evaluating
from codegrid.pipelines.system.files import write_text
from codegrid.prior import SamplingConfig, SequenceConfig, resolve_labels, save_prior
from codegrid.prior.laid_out import LaidOut
from codegrid.prior.linear_maps import WeightFormat
from codegrid.prior.memory import batch_that_fits
from codegrid.prior.modeling import cached_width
from codegrid.prior.static_decoding import Decoding
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import Picture, to_images
from codegrid.tokenizer.modeling import float_dtype
from codegrid.tokenizer.moving import to_device

# Default of class-conditional pipelines whose folder names no scale, if the prior has a null class.
DEFAULT_GUIDANCE = 2.0
_MOST_AT_ONCE = 64  # images per batch, by default
_KEPT = 8  # rough number of full-size feature maps in memory at the peak of decoding an image

_logger = logging.getLogger(__name__)


class ImageGenerationPipeline(Editing, Outpainting, Scoring, Pushing):
    """A tokenizer and a prior on its codes.

    `cards` are the model cards of the parts, if they have any; `save_pretrained` writes them with the parts. `context`
    is a model of neighbouring codes, with which pictures can be compressed (codec/context.py), or None.
    `condition_tokenizer` is that of the pictures that the prior follows, where it is not `tokenizer`.

    Raises:
        LoadingError: the prior was trained on the codes of another tokenizer (by fingerprint, codebook, grid, depth or
            order), or the context model was counted from them; or the decoder's classes are not the prior's.
    """

    def __init__(
        self,
        tokenizer: VQModel,
        prior: PreTrainedModel,
        sequence: SequenceConfig,
        sampling: SamplingConfig | None = None,
        context: ContextModel | None = None,
        condition_tokenizer: VQModel | None = None,
    ) -> None:
        places = (called("tokenizer", tokenizer.name_or_path), called("prior", prior.name_or_path))
        if sentence := misfits(tokenizer, sequence, *places):
            raise LoadingError(sentence, "Put the prior together with the tokenizer that made its codes.")
        if sentence := unknown_origin(sequence):
            _logger.warning(sentence)
        if context is not None:
            context.check_tokenizer(tokenizer.codes_fingerprint())
        try:
            self._decoder_classes = decoder_classes(tokenizer.config, sequence.class_names, "the prior")
        except DataError as error:
            raise LoadingError(
                error.what, error.remedy or "Use the tokenizer and the prior of one set of classes."
            ) from error
        self.tokenizer, self.prior, self.sequence = tokenizer.eval(), prior.eval(), sequence
        self.context, self.condition_tokenizer = context, condition_tokenizer
        self.sampling = sampling or SamplingConfig(guidance_scale=DEFAULT_GUIDANCE if sequence.can_be_guided else 1.0)
        self.cards: dict[str, str] = {}
        self.laid_out = LaidOut()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.sequence.class_names

    @property
    def device(self) -> torch.device:
        return self.prior.device

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.dtype

    def to(self, *args: Any, **kwargs: Any) -> ImageGenerationPipeline:
        """Move and cast both parts: `to(device)`, `to(dtype)`, `to(device, dtype)`. The dtype must be a float dtype."""
        for dtype in (value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)):
            float_dtype(dtype)
        self.tokenizer.to(*args, **kwargs)
        self.prior.to(*args, **kwargs)
        if self.condition_tokenizer is not None:
            self.condition_tokenizer.to(*args, **kwargs)
        self.laid_out.forget()
        return self

    def __call__(
        self,
        class_labels: Sequence[int | str] | int | str | None = None,
        *,
        output_type: OutputType = "pil",
        progress: bool = True,
        **options: Any,
    ) -> ImagePipelineOutput:
        """Sample images.

        Args:
            class_labels: names or ids, each repeated `num_images_per_label` times, in this order. For a prior with
                another condition, the values that its `parse` takes. None on a class-conditional pipeline takes all
                classes in turn.
            output_type: content of `.images`; "codes" does not decode.
            options: options of `stream`.

        Raises:
            ValueError: an argument is out of range, or a class is unknown (the message lists the classes).
            TypeError: an option is unknown.
        """
        parts = list(self.stream(class_labels, output_type=output_type, progress=progress, **options))
        codes = torch.cat([part.codes for part in parts])
        labels = None if parts[0].labels is None else [label for part in parts for label in part.labels or ()]
        if output_type == "codes":
            return ImagePipelineOutput(None, codes, labels)
        images = [part.images for part in parts]
        if output_type == "pil":
            return ImagePipelineOutput([image for batch in images for image in batch or ()], codes, labels)
        return ImagePipelineOutput(np.concatenate(images) if output_type == "np" else torch.cat(images), codes, labels)

    def stream(
        self,
        class_labels: Sequence[int | str] | int | str | None = None,
        *,
        condition: Any = None,
        prompt: str | Sequence[str] | None = None,
        keep_condition: bool = False,
        num_images_per_label: int = 1,
        num_images: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        prefix_codes: Tensor | None = None,
        order: str | Tensor | None = None,
        num_steps: int | None = None,
        batch_size: int | None = None,
        weights: WeightFormat = "exact",
        decoding: Decoding = "eager",
        output_type: OutputType = "pil",
        progress: bool = True,
        callback: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> Iterator[ImagePipelineOutput]:
        """Sample images and yield each batch as soon as it is decoded, before later batches are sampled.

        Args:
            class_labels, output_type: see `__call__`.
            condition: pictures to follow, of a prior that knows pictures: what its condition is (small ones for
                downscale:4), or their codes. Each `num_images_per_label` times, as each prompt.
            prompt: texts to follow. One of classes, pictures and texts is for all of the others.
            keep_condition: of pictures made small or grey, let the results keep exactly what these tell
                (`data.degradations.with_part`).
            num_images: total number of images, if `class_labels` is None.
            height, width: in pixels, at least the trained size and multiples of the pixels of a code; None is the
                trained size. Larger pictures are drawn by windows (`codegrid.prior.windows`) and decoded whole.
            seed: each image i has its own random stream, keyed by seed and i; None draws a seed from torch's generator.
                A list has a seed an image, each that of the first image of a call with it.
            generator: one CPU generator per image, or one for all (its next draw then starts each image's stream).
            prefix_codes: codes that the images start with, one row per image: [N, P], or the upper rows of the grid
                [N, r, w(, depth)], such as `pipe.encode(pictures)[:, :r]`. The rest is sampled.
            order, num_steps: of priors of any order and masked ones, as in `codegrid.prior.sample_codes`.
            batch_size: images per batch; None for 64, or on a CPU fewer if memory is short. On a CPU it changes no
                code, and pixels only by the last bit of rounding; on an accelerator it may change codes.
            weights, decoding: as in `codegrid.prior.sample_codes`.
            progress: show a bar of the codes that are drawn, with their rate and the time left.
            callback: called after every code of a batch with the numbers of codes that are drawn and wanted. What it
                raises ends the call.
            settings: fields of `SamplingConfig`; a field that is None or missing keeps the pipeline's value
                (`self.sampling`).
        """
        check_output_type(output_type, self.tokenizer.config.backbone_config.in_channels)
        batch_size = None if batch_size is None else whole_number("batch_size", batch_size)
        sampling = replace(self.sampling, **{name: value for name, value in settings.items() if value is not None})
        per_label = whole_number("num_images_per_label", num_images_per_label)
        num_images = None if num_images is None else whole_number("num_images", num_images)
        grid = grid_of_size(self.tokenizer.config, height, width)
        wanted = wanted_images(self, class_labels, condition, prompt, per_label, num_images, grid)
        kept = keeping(self, condition, per_label, grid) if keep_condition else None
        bar = CodesBar(wanted.number * grid[0] * grid[1] * self.sequence.depth, progress, callback)
        batches = iterate_grids(
            self.prior,
            self.sequence,
            grid,
            wanted.values,
            None if prefix_codes is None else torch.as_tensor(prefix_codes),
            drop=wanted.drop,
            window_labels=wanted.windows,
            generators=streams_of_images(seed, generator, wanted.number),
            order=order,
            num_steps=None if num_steps is None else whole_number("num_steps", num_steps),
            batch_size=batch_size or self.default_batch_size(output_type != "codes", grid),
            weights=weights,
            decoding=decoding,
            laid_out=self.laid_out,
            on_progress=bar,
            **sampling.to_dict(),
        )
        return self._decoded(batches, wanted.labels, output_type, bar, kept)

    def _decoded(
        self,
        batches: Iterator[Tensor],
        labels: list[int] | None,
        output_type: OutputType,
        bar: CodesBar,
        kept: Keeping | None,
    ) -> Iterator[ImagePipelineOutput]:
        done = 0
        with bar:
            for codes in batches:
                part = None if labels is None else labels[done : done + len(codes)]
                images = None
                if output_type != "codes":
                    images = self._images_of(codes, part)
                    images = as_output(images if kept is None else kept.of(images, done), output_type)
                done += len(codes)
                yield ImagePipelineOutput(images, codes.cpu(), part)

    def default_batch_size(self, decodes: bool = True, grid_shape: tuple[int, int] | None = None) -> int:
        """The number of images per batch: 64 on an accelerator, where codes depend on it, and on a CPU at most 64, as
        many as fit into memory. `grid_shape` is that of larger pictures.
        """
        if self.device.type != "cpu":
            return _MOST_AT_ONCE
        width = cached_width(self.prior.config)
        positions = self.sequence.prefix_length + self.sequence.length - 1
        cache = 2 * 2 * width * positions * self.prior.dtype.itemsize  # keys and values, for two branches
        config = self.tokenizer.config
        area = math.prod(grid_shape or config.grid_shape) * config.pixels_per_position**2
        pixels = area // config.backbone_config.patch_size**2 * config.backbone_config.ch * 4  # bytes, at full size
        return batch_that_fits(cache + (_KEPT * pixels if decodes else 0), _MOST_AT_ONCE, self.device)

    def encode(self, images: Picture | Sequence[Picture] | Tensor) -> Tensor:
        """Pictures (prepared as in training) or floats [N, C, H, W] in [-1, 1] -> codes as in the output.

        Args:
            images: one or more pictures, or floats in the model's range; see `codegrid.tokenizer.images.to_images`.

        Raises:
            BadImage: a picture is too small or cannot be used for another reason; the message says which.
            CodegridError: integers instead of floats, floats outside [-1, 1], NaN, or no picture at all.
        """
        config = self.tokenizer.config
        images = to_images(images, config.preprocessing_config, config.backbone_config.in_channels)
        with evaluating(self.tokenizer):
            return self.tokenizer.encode(to_device(images, self.tokenizer.device)).cpu()

    def decode(self, codes: Tensor, labels: Sequence[int] | None = None, tile: int | None = None) -> Tensor:
        """Codes and labels as in the output -> images float [N, C, H, W] in [-1, 1] on the CPU.

        Only a tokenizer with a class-conditional decoder needs and uses the labels. `tile` is `VQModel.decode`'s.

        Raises:
            ValueError: the decoder needs labels and there are none, or a label is outside the prior's classes.
        """
        return self._images_of(codes, labels, tile).cpu()

    def _images_of(self, codes: Tensor, labels: Sequence[int] | None, tile: int | None = None) -> Tensor:
        """`decode`, but on the tokenizer's device."""
        classes = None
        if self._decoder_classes is not None and labels is not None:
            labels = resolve_labels(labels, self.sequence)
            classes = torch.tensor([self._decoder_classes[label] for label in labels])
        with evaluating(self.tokenizer):
            return (
                self.tokenizer.decode(to_device(codes, self.tokenizer.device), classes, tile=tile).float().clamp(-1, 1)
            )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the pipeline's folder. It appears whole and replaces the files of an older pipeline there.

        Files that saving does not write stay. Evaluations of other weights are renamed, and a line says so.

        Raises:
            OutputError: `folder` holds something other than a pipeline; nothing is overwritten.
        """
        folder = Path(folder)
        check_target(folder)
        target = folder.resolve()  # a link to a folder stays one
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            export(aside / "tokenizer", lambda part: self.tokenizer.save_pretrained(part))
            export(aside / "prior", lambda part: save_prior(self.prior, self.sequence, part))
            if (other := self.condition_tokenizer) is not None:
                export(aside / CONDITION_TOKENIZER, lambda part: other.save_pretrained(part))
            if self.context is not None:
                self.context.save(aside / CONTEXT_FOLDER)
            for part, card in self.cards.items():
                write_text(aside / part / "README.md", card)
            write_text(aside / "README.md", pipeline_card(self.sequence, self.cards))
            write_index(aside, type(self.prior).__name__, self.sampling, self.condition_tokenizer is not None)
            for line in replace_own(aside, target):
                print(line)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return folder

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo: str | Path,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: DeviceMap = None,
        **hub: Any,
    ) -> ImageGenerationPipeline:
        """Load a pipeline's folder or Hub repository, or "fashion-mnist", which comes with the package.

        Args:
            revision: branch, tag or commit on the Hub.
            subfolder: place of the pipeline in the folder or repository; None is the root.
            token: None uses HF_TOKEN or the token that `hf auth login` stored.
            dtype, torch_dtype, device_map, hub: as in `artifacts.loading.load_tokenizer`; one device for both parts.

        Raises:
            LoadingError: the download is incomplete or is not a pipeline, names a class outside the allow-list, or its
                parts do not fit together.
        """
        # `*` in a download's patterns also matches slashes, so the parts are included.
        folder = local_folder(folder_or_repo, "pipeline", revision, subfolder, token, **hub_options(hub))
        place = {"dtype": float_dtype(dtype, torch_dtype), "device_map": device_map}
        sampling = read_index(folder)
        prior = load_prior_and_sequence(folder / "prior", **place)
        tokenizer, other = load_tokenizer(folder / "tokenizer", **place), folder / CONDITION_TOKENIZER
        second = load_tokenizer(other, **place) if other.is_dir() else None
        pipe = cls(tokenizer, *prior, sampling, ContextModel.of_pipeline(folder), second)
        pipe.cards = cards_of({part: folder / part for part in ("tokenizer", "prior")})
        return pipe
