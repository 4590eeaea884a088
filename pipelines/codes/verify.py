"""Checks a code data set against its manifest, and a sample of it against the tokenizer that made it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.artifacts.fit import misfits
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.codes.shards import contents_now, read_records, source_ids
from codegrid.pipelines.data.batches import Variant, picture_reader
from codegrid.pipelines.data.records import ImageRecord, ImageSource, PicturesConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_reading
from codegrid.pipelines.system.devices import evaluating, make_accelerator
from codegrid.pipelines.system.randomness import numpy_generator
from codegrid.prior.codes import CodesError, CodesManifest, open_codes, read_manifest
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_model
from codegrid.tokenizer.modeling import float_dtype
from codegrid.tokenizer.moving import to_device

_ANEW = "Make the codes again, in another --output-dir."
_OPTIONS = "Give the --data options of the tokenizing, and all of its images."


@dataclass(frozen=True)
class VerificationConfig:
    """A code data set and the tokenizer and images to compare it with.

    Args:
        codes: folder of the code data set.
        tokenizer: folder or Hub name of the tokenizer that should have made the codes.
        data: the images, with the options of the tokenizing. With them, the images' bytes are compared with what was
            tokenized, and with a tokenizer `num_samples` rows are encoded again.
        num_samples: rows to encode again; 0 for all.
        max_differing: share of the sampled codes that may differ. Rounding decides between two equally near codes, and
            it differs between devices and batch sizes.
        seed: seed for the choice of the rows.
    """

    codes: str
    tokenizer: str | None = None
    data: PicturesConfig = field(default_factory=PicturesConfig)
    num_samples: int = 64
    max_differing: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.num_samples >= 0, f"num_samples is {self.num_samples}.", "Give at least 1, or 0 for all rows.")
        require(0 <= self.max_differing <= 1, f"max_differing is {self.max_differing}.", "Give a share from 0 to 1.")


def verify_codes(config: VerificationConfig) -> None:
    """Check a code data set: its shards against its manifest, its tokenizer, and the images that it was made of.

    What was understood of the images is printed first, then a line for each check.

    Raises:
        CodesError: a file is missing, changed or not listed, rows are missing or duplicated, a code is outside the
            codebook, or the codes are another tokenizer's.
        DataError: the images cannot be read.
        LoadingError: the tokenizer cannot be loaded.
    """
    folder = Path(config.codes)
    manifest = read_manifest(folder)
    images = open_images(config.data) if config.data.source else None
    model = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
    if images is not None:
        print("\n".join(["Comparing with " + images.description + ".", describe_reading(images)]).rstrip("\n"))
    open_codes(folder)  # shards: size, sha256, rows, grid
    inputs = _check_rows(folder, manifest)
    print(
        f"{folder}: {manifest.num_rows} rows in {len(manifest.shards)} shards are as the manifest says; {inputs} "
        f"images, {manifest.num_skipped} left out; none twice, no code beyond {manifest.codebook_size}."
    )
    if model is not None:
        if sentence := misfits(model, manifest, f"The tokenizer {config.tokenizer}", f"the codes in {folder}"):
            raise CodesError(sentence, f"They were made by {manifest.tokenizer}: compare them with that one.")
        print(f"They are of the tokenizer {config.tokenizer}.")
    if images is not None:
        places = {name: index for index, name in enumerate(images.names())}
        _check_contents(config, folder, images, places)
        if model is not None:
            _check_sample(config, folder, manifest, model, images, places)


def _check_rows(folder: Path, manifest: CodesManifest) -> int:
    """Check shard by shard that nothing is missing, duplicated or out of range; return the number of images."""
    listed = {shard.file for shard in manifest.shards}
    stray = sorted({path.relative_to(folder).as_posix() for path in (folder / "data").glob("*.parquet")} - listed)
    if stray:
        raise CodesError(f"{folder} has shards that its manifest does not name: {', '.join(stray)}.", "Move them away.")
    variants = 10 if manifest.ten_crop else 2 if manifest.flip else 1
    seen: set[str] = set()
    for shard in manifest.shards:
        table = pq.read_table(folder / shard.file)
        most = pc.max(table["codes"].combine_chunks().flatten()).as_py()
        if most >= manifest.codebook_size:
            raise CodesError(f"{shard.file} holds code {most}, beyond the codebook of {manifest.codebook_size}.", _ANEW)
        counts = table.group_by(["source_id"]).aggregate([([], "count_all")])
        names = set(counts["source_id"].to_pylist())
        rows = {tuple(row.values()) for row in table.select(["source_id", "crop", "flip"]).to_pylist()}
        if manifest.axes is not None:  # a sequence may have been cut into any number of rows
            seen |= names
            continue
        if len(rows) != len(table) or pc.any(pc.not_equal(counts["count_all"], variants)).as_py() or names & seen:
            raise CodesError(f"{shard.file} holds an image twice, or not all {variants} variants of one.", _ANEW)
        seen |= names
    lines = (folder / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    skipped = {json.loads(line)["source_id"] for line in lines}
    if len(seen) != manifest.num_images or len(lines) != manifest.num_skipped or len(skipped) != len(lines):
        raise CodesError(
            f"{folder} has {len(seen)} images and {len(lines)} lines in skipped.jsonl, the manifest says "
            f"{manifest.num_images} and {manifest.num_skipped}.",
            _ANEW,
        )
    if both := sorted(skipped & seen):
        raise CodesError(f"{both[0]} is in skipped.jsonl and has codes.", _ANEW)
    return len(seen)


def _check_contents(config: VerificationConfig, folder: Path, images: ImageSource, places: dict[str, int]) -> None:
    """Compare the images' bytes, shard by shard, with those at tokenization time.

    A data set that was downloaded, or made by 0.1.0, has no record of them.
    """
    checked, where = 0, shown(config.data.source)
    for shard, record in read_records(folder).items():
        if record.get("content") is None:
            continue
        names = source_ids(folder, shard, record)
        vanished = {entry["source_id"] for entry in record["skipped"] if entry["reason"] == "vanished"} - places.keys()
        if gone := [name for name in names if name not in places and name not in vanished]:
            raise CodesError(f"{gone[0]}, which shard {shard} was made of, is not in {where}.", _OPTIONS)
        if contents_now(record, names, images, places) != record["content"]:
            raise CodesError(
                f"Images that shard {shard} was made of are others than they were, among them or all of "
                f"{names[0]} to {names[-1]}.",
                _ANEW,
            )
        checked += len(set(names) - vanished)
    if checked:
        print(f"The bytes of {checked:,} images are those that were tokenized.")


def _check_sample(
    config: VerificationConfig,
    folder: Path,
    manifest: CodesManifest,
    model: VQModel,
    images: ImageSource,
    places: dict[str, int],
) -> None:
    """Encode sampled rows again and compare."""
    weights = manifest.policy.get("weights")  # of a tokenizer that was cast
    precision = "bf16" if manifest.precision == "bfloat16" and weights is None else "no"
    accelerator = make_accelerator(mixed_precision=precision)
    model.to(accelerator.device, None if weights is None else float_dtype(weights))
    number = config.num_samples or manifest.num_rows
    chosen = np.sort(
        numpy_generator(config.seed, "verification").permutation(manifest.num_rows)[:number]
    )  # row numbers across all shards
    differing, total, first = 0, 0, 0
    with evaluating(model), accelerator.autocast():
        for shard in manifest.shards:
            mine = chosen[(chosen >= first) & (chosen < first + shard.num_rows)] - first
            first += shard.num_rows
            for row in pq.read_table(folder / shard.file).take(mine).to_pylist():
                if row["source_id"] not in places:
                    lost = f"{row['source_id']}, whose codes {shard.file} holds, is not in {shown(config.data.source)}."
                    raise CodesError(lost, _OPTIONS)
                codes = _encode(model, images[places[row["source_id"]]], row, manifest, accelerator.device)
                differing += int((codes != torch.tensor(row["codes"])).sum())
                total += codes.numel()
    if differing > config.max_differing * total and model.dtype != torch.float32 and weights is None:
        raise CodesError(
            f"{differing} of {total} codes of {len(chosen)} rows are others than this tokenizer's, whose weights are "
            f"{str(model.dtype).removeprefix('torch.')}, and the manifest says that they were made in float32.",
            "Compare them with the tokenizer that it was cast from.",
        )
    if differing > config.max_differing * total:
        raise CodesError(
            f"{differing} of {total} codes of {len(chosen)} rows are not what the tokenizer makes of the images: the "
            "images have changed, or the codes are not theirs.",
            _ANEW,
        )
    print(f"{len(chosen)} rows were encoded again: {differing} of {total} codes differ.")


def _encode(
    model: VQModel, record: ImageRecord, row: dict, manifest: CodesManifest, device: torch.device
) -> torch.Tensor:
    """The codes [L] of one variant of an image."""
    variant = Variant(row["crop"]) if manifest.ten_crop else Variant(flip=row["flip"])
    picture = picture_reader(model, (variant,))(record)
    if picture.pixels is None:
        raise CodesError(f"{picture.source_id}, which has codes, cannot be used any more ({picture.detail}).", _ANEW)
    return model.encode(to_model(to_device(torch.from_numpy(picture.pixels), device))).flatten().cpu()
