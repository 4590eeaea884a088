"""ImageCodec: pictures -> files of a few dozen bytes -> pictures, by a tokenizer and a model of its codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codegrid.errors import CodegridError, require
from codegrid.pipelines.artifacts.loading import is_without_pictures
from codegrid.pipelines.codec.file_format import (
    MODELS,
    MOST_CODES,
    MOST_SIDE,
    Archive,
    Entry,
    FileFormatError,
    Header,
    checksum,
    is_short,
    pack,
    pack_archive,
    require_format,
    unpack,
)
from codegrid.pipelines.codec.models import CodeModel, FixedModel
from codegrid.pipelines.codec.prior import BOUND, MOST_BOUND, PriorModel
from codegrid.pipelines.codec.windows import WindowedModel
from codegrid.pipelines.generation.codes_only import CodesPipeline
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import weights_fingerprint
from codegrid.pipelines.system.devices import evaluating
from codegrid.prior import resolve_labels
from codegrid.tokenizer.images import BadImage, Picture, Whole, to_model, to_pil, to_uint8, to_whole

# Pictures of more pixels are encoded and decoded in tiles of this side: memory grows with the pixels, and with the
# square of the positions where a tokenizer has attention.
_MOST_AT_ONCE, _TILE = 2**20, 1024
ModelName = Literal["prior", "context", "fixed"]


class ImageCodec:
    """Compresses pictures to codes and back.

    A file of one image is `compress(image)[0]`; `archive` puts many into one. What a file needs to be read is the
    pipeline with which it was written: its header has the fingerprints.

    Args:
        pipe: a pipeline. Guidance, temperature and the rest of its sampling settings have no influence. With a
            `context` (make-pipeline --context), files can be written by it. Of imported codes, which have no pictures,
            a `CodesPipeline`: then `compress_codes`, `archive` and `codes` are what there is.
        source: the pipeline's name for people, which archives carry.
    """

    def __init__(self, pipe: ImageGenerationPipeline | CodesPipeline, source: str = "") -> None:
        self.pipe, self.source = pipe, source
        self.is_of_codes = isinstance(pipe, CodesPipeline)  # imported ones, which have no pictures
        imported = pipe.sequence.tokenizer_fingerprint or ""
        own = imported if isinstance(pipe, CodesPipeline) else pipe.tokenizer.codes_fingerprint()
        self._tokenizer = bytes.fromhex(own)[:4]
        self._prior_fingerprint = weights_fingerprint(pipe.prior)
        self._models: dict[tuple[str, int | None], CodeModel] = {}

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, **options: Any) -> ImageCodec:
        """Load a pipeline's folder or Hub repository; options as of `ImageGenerationPipeline.from_pretrained`.

        The folder of a prior of imported codes gives a codec of codes.

        Raises:
            LoadingError: there is no pipeline, or a part of it is damaged.
        """
        kind = CodesPipeline if is_without_pictures(folder_or_repo) else ImageGenerationPipeline
        pipe = kind.from_pretrained(folder_or_repo, **options)
        name = Path(folder_or_repo).name if Path(folder_or_repo).is_dir() else str(folder_or_repo)
        return cls(pipe, name)

    @property
    def pictures(self) -> ImageGenerationPipeline:
        """The pipeline, which makes pictures of codes.

        Raises:
            CodegridError: the codes were imported.
        """
        if isinstance(self.pipe, CodesPipeline):
            raise CodegridError(
                "The codes of this prior were imported by `codegrid import-codes`: they have no pictures.",
                "Compress codes: compress_codes, or --data.source with a code data set.",
            )
        return self.pipe

    @property
    def fingerprints(self) -> dict[str, str]:
        """The first digits of the fingerprints of the tokenizer's codes and the prior."""
        return {"tokenizer": self._tokenizer.hex(), "prior": self._prior_fingerprint[:8]}

    def compress(
        self,
        images: Picture | Sequence[Picture] | Tensor,
        labels: Sequence[int | str] | int | str | None = None,
        model: ModelName = "prior",
        bound: int = BOUND,
        whole: bool = False,
    ) -> list[bytes]:
        """Pictures -> a file each. They are prepared as in training: turned upright, cut, alpha over white.

        Args:
            images: as in `ImageGenerationPipeline.encode`.
            labels: a class an image, by name or id, or one for all; None: without.
            model: "prior", the transformer's probabilities; "context", those of neighbouring codes; "fixed", log2 of
                the codebook's size for every code.
            bound: of "prior": logits of writer and reader may differ by 2^-bound.
            whole: keep each picture's own size: nothing is cut or scaled. "prior" codes a larger grid than its own
                window by window, and cannot code one with fewer rows or columns.

        Raises:
            BadImage, CodegridError: a picture or a label cannot be used, or the pipeline lacks the model.
        """
        if not whole:
            return self.compress_codes(self.pictures.encode(images), labels, model, bound)
        several = list(images) if isinstance(images, (list, tuple)) else [images]
        given = [None] * len(several) if labels is None else _one_each(labels, len(several))
        config = self.pictures.tokenizer.config
        multiple, channels = config.pixels_per_position, config.backbone_config.in_channels
        blobs = []
        for picture, label in zip(several, given, strict=True):
            found = to_whole(picture, config.preprocessing_config, multiple, channels)
            self._check_windows(model, [side // multiple for side in found.pixels.shape[:2]])
            blobs += self.compress_codes(self.encode_whole(found), label, model, bound, found.added)
        return blobs

    def _check_windows(self, model: ModelName, grid: Sequence[int]) -> None:
        """Leave out a picture with fewer codes than the prior's windows have."""
        windows = self.pipe.sequence.grid_shape
        if model == "prior" and any(side < least for side, least in zip(grid, windows, strict=True)):
            have = "its codes are {} x {}, and the prior's windows {} x {}".format(*grid, *windows)
            raise BadImage("too_small", f"{have}: take --model context")

    def encode_whole(self, picture: Whole) -> Tensor:
        """A picture of any size -> codes [1, h, w(, depth)]; a large one in tiles."""
        tokenizer = self.pictures.tokenizer
        images = to_model(torch.from_numpy(picture.pixels)[None]).to(tokenizer.device)
        tile = _tile(picture.pixels.shape[:2], tokenizer.config.pixels_per_position)
        with evaluating(tokenizer), torch.inference_mode():
            return tokenizer.encode(images, tile=tile).cpu()

    def compress_codes(
        self,
        codes: Tensor,
        labels: Sequence[int | str] | int | str | None = None,
        model: ModelName = "prior",
        bound: int = BOUND,
        added: tuple[int, int] | None = None,
    ) -> list[bytes]:
        """Codes [N, h, w(, depth)] in [0, codebook_size) -> a file each.

        Args:
            added: of pictures that were not cut, pixels below and at the right that are no part of them; see `Whole`.
        """
        return [pack(header, entry) for header, entry in self._entries(codes, labels, model, bound, added)]

    def archive(
        self,
        codes: Tensor,
        labels: Sequence[int | str] | int | str | None = None,
        model: ModelName = "prior",
        names: Sequence[str] | None = None,
        bound: int = BOUND,
    ) -> bytes:
        """Codes of at least one image -> one file of all, with names if they are given."""
        entries = self._entries(codes, labels, model, bound)
        require(bool(entries), "An archive of no images is asked for.", "Give at least one.")
        kept = None if names is None else tuple(names)
        return pack_archive(Archive(entries[0][0], self.source, tuple(entry for _, entry in entries), kept))

    def codes(self, blob: bytes, places: Sequence[int] | None = None) -> Tensor:
        """The codes of a file: int64 [h, w(, depth)] of one image, [N, h, w(, depth)] of an archive.

        Args:
            places: the images of an archive to read, all by default.

        Raises:
            FileFormatError: the bytes are damaged or of something else, or the file was written with another tokenizer
                or model. Codes whose checksum is wrong are never returned.
        """
        archive = unpack(blob)
        codes = self.codes_of(archive, range(len(archive.entries)) if places is None else places)
        return codes[0] if archive.is_single else codes

    def decompress(
        self, blobs: Sequence[bytes] | bytes, output_type: Literal["pil", "np", "pt"] = "pil"
    ) -> list[Image.Image] | np.ndarray | Tensor:
        """Files or archives -> images, all in one list: PIL, uint8 [N, H, W, C] ("np"), float [N, C, H, W] ("pt").

        Raises:
            FileFormatError: see `codes`.
            CodegridError: the images have several sizes, and one array is asked for.
        """
        require(output_type in ("pil", "np", "pt"), f"output_type is {output_type!r}.", "Give pil, np or pt.")
        blobs = [blobs] if isinstance(blobs, bytes) else list(blobs)
        archives = [unpack(blob) for blob in blobs]
        parts = [self.decoded(archive, range(len(archive.entries))) for archive in archives]
        sizes = sorted({tuple(part.shape[2:]) for part in parts})
        if output_type == "pil":
            return [image for part in parts for image in to_pil(part)]
        require(
            len(sizes) <= 1, f"The images have {len(sizes)} sizes.", 'Give output_type "pil", or files of one size.'
        )
        images = torch.cat(parts) if parts else torch.empty(0, 3, 0, 0)
        return images if output_type == "pt" else to_uint8(images).numpy()

    def model(self, name: ModelName, bound: int | None = None) -> CodeModel:
        """The model of a name; of "prior" for a bound."""
        require(name in MODELS, f"model is {name!r}.", f"Give one of {', '.join(MODELS)}.")
        key = (name, bound if name == "prior" else None)
        if key not in self._models:
            self._models[key] = self._made(*key)
        return self._models[key]

    def _made(self, name: str, bound: int | None) -> CodeModel:
        if name == "fixed":
            return FixedModel(self.pipe.sequence.codebook_size)
        if name == "prior":
            return PriorModel(
                self.pipe.prior, self.pipe.sequence, self._prior_fingerprint, BOUND if bound is None else bound
            )
        if self.pipe.context is None:
            raise CodegridError(
                "This pipeline has no context model.",
                "Add one: codegrid make-pipeline ... --context CODES, or take --model prior or fixed.",
            )
        return self.pipe.context

    def _entries(
        self,
        codes: Tensor,
        labels: Sequence[int | str] | int | str | None,
        model: ModelName,
        bound: int,
        added: tuple[int, int] | None = None,
    ) -> list[tuple[Header, Entry]]:
        whole = _with_depth(codes, self.pipe.sequence.depth)
        classes = self._classes(labels, len(whole), model)
        grid = (whole.shape[1], whole.shape[2])
        require(
            max(grid) <= MOST_SIDE and grid[0] * grid[1] <= MOST_CODES,
            f"The grid has {grid[0]} x {grid[1]} codes, and a file holds at most {MOST_SIDE} a side and {MOST_CODES}.",
            "Cut it: of sequences, `codegrid import-codes --length`.",
        )
        coder = self.model(model, bound)
        if isinstance(coder, PriorModel) and grid != self.pipe.sequence.grid_shape:
            coder = WindowedModel(coder)
        overlap = coder.overlap if isinstance(coder, WindowedModel) else None
        fingerprints = (self._tokenizer, coder.fingerprint)
        header = Header(model, *fingerprints, coder.bound, grid, added, is_short(grid), overlap)
        payloads = coder.write(whole, classes)
        return [
            (header, Entry(label, checksum(header, label, grid), payload))
            for label, grid, payload in zip(classes, whole, payloads, strict=True)
        ]

    def _classes(
        self, labels: Sequence[int | str] | int | str | None, number: int, model: ModelName
    ) -> list[int | None]:
        if labels is None:
            needed = model == "prior" and self.pipe.sequence.num_classes and not self.pipe.sequence.null_class
            require(
                not needed and (self.is_of_codes or self.pictures.tokenizer.config.num_classes == 0),
                "No labels are given, and this pipeline knows images of a class only.",
                "Give labels: --label-column for a data set, or folders of classes.",
            )
            return [None] * number
        require(self.pipe.sequence.num_classes > 0, "This pipeline has no classes.", "Leave labels out.")
        return resolve_labels(_one_each(labels, number), self.pipe.sequence)

    def decoded(self, archive: Archive, places: Sequence[int]) -> Tensor:
        """Some images of an archive: float [n, C, H, W] in [-1, 1]. Raises FileFormatError as `codes` does."""
        codes, added = self.codes_of(archive, places), archive.header.added
        known = [label for place in places if (label := archive.entries[place].label) is not None]
        labels = known if len(known) == len(places) and known else None
        factor = self.pictures.tokenizer.config.pixels_per_position
        require_format(
            added is None or max(added) < factor,
            f"The file says that {max(added or (0,))} pixels were added: at most {factor - 1}.",
        )
        return self.pixels(codes, labels, added)

    def pixels(self, codes: Tensor, labels: Sequence[int] | None, added: tuple[int, int] | None) -> Tensor:
        """Codes [n, h, w(, depth)] -> images float [n, C, H, W] in [-1, 1], without what was added; see `Whole`."""
        if added is None:
            return self.pictures.decode(codes, labels)
        factor = self.pictures.tokenizer.config.pixels_per_position
        height, width = (side * factor for side in codes.shape[1:3])
        images = self.pictures.decode(codes, labels, tile=_tile((height, width), factor))
        return images[:, :, : height - added[0], : width - added[1]]

    def codes_of(self, archive: Archive, places: Sequence[int]) -> Tensor:
        """Codes int64 [n, h, w(, depth)] of some images, whose checksums are right. Raises as `codes` does."""
        header = archive.header
        coder = self._checked_model(header)
        entries = [archive.entries[place] for place in places]
        labels = [entry.label for entry in entries]
        classes = self.pipe.sequence.num_classes
        for label in labels:
            if label is not None and label >= classes:
                raise FileFormatError(
                    f"The file says that an image is of class {label}, and the pipeline has {classes} classes.",
                    "Get the file again: it is cut off or damaged.",
                )
        shape = (*header.grid, self.pipe.sequence.depth)
        codes = coder.read([entry.payload for entry in entries], shape, labels)
        for place, entry, grid in zip(places, entries, codes, strict=True):
            if checksum(header, entry.label, grid) != entry.checksum:
                raise FileFormatError(
                    f"The checksum of image {place} is wrong: the file is damaged, or this machine's logits differ "
                    f"from the writer's by more than the file's bound.",
                    "Get the file again, or read it on the kind of machine that wrote it.",
                )
        whole = torch.from_numpy(codes)
        return whole[..., 0] if self.pipe.sequence.depth == 1 else whole

    def _checked_model(self, header: Header) -> CodeModel:
        """The header's model.

        Raises:
            FileFormatError: the file was written with another tokenizer or model.
        """
        require_same(header.tokenizer, self._tokenizer, "tokenizer")
        if header.bound is not None and not 1 <= header.bound <= MOST_BOUND:
            raise FileFormatError(
                f"The file's bound is {header.bound}: 1 to {MOST_BOUND} is possible.",
                "Get the file again: it is cut off or damaged.",
            )
        coder = self.model(header.model, header.bound)
        require_same(header.model_fingerprint, coder.fingerprint, f"model ({header.model})")
        if header.overlap is None or not isinstance(coder, PriorModel):
            return coder
        trained = self.pipe.sequence.grid_shape
        fits = all(own < most <= size for own, most, size in zip(header.overlap, trained, header.grid, strict=True))
        require_format(fits, f"The file says that windows of {trained} codes have {header.overlap} in common.")
        return WindowedModel(coder, header.overlap)


def _tile(size: tuple[int, int], factor: int) -> int | None:
    """The tile in which a picture of this height and width is encoded and decoded; None: all at once."""
    return None if size[0] * size[1] <= _MOST_AT_ONCE else max(1, _TILE // factor) * factor


def _one_each(labels: Sequence[int | str] | int | str, number: int) -> list[int | str]:
    """A label an image, of as many labels or one for all."""
    given = [labels] if isinstance(labels, (int, str)) else list(labels)
    given = given * number if len(given) == 1 else given
    require(len(given) == number, f"There are {len(given)} labels for {number} images.", "Give one an image.")
    return given


def require_same(found: bytes, own: bytes, what: str) -> None:
    if found != own:
        raise FileFormatError(
            f"The file was written with another {what}: its fingerprint begins with {found.hex()}, this pipeline's "
            f"with {own.hex()}.",
            "Load the pipeline that wrote the file; of an archive, codegrid codec-info FILE shows its name.",
        )


def _with_depth(codes: Tensor, depth: int) -> np.ndarray:
    """[N, h, w] or [N, h, w, depth] -> int64 [N, h, w, depth]."""
    whole = codes[..., None] if codes.dim() == 3 else codes
    require(
        whole.dim() == 4 and whole.shape[3] == depth and not codes.is_floating_point(),
        f"codes is {codes.dtype} {list(codes.shape)}.",
        f"Give integers [N, h, w{', ' + str(depth) if depth > 1 else ''}].",
    )
    return whole.cpu().long().numpy()
