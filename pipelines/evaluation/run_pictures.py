"""Which pictures of a source are scored: those that the tokenizer's own training held out, unless others are wanted.

A run's folder says what it was trained on (`training_config.json`) and which pictures these were (a hash of each,
beside `made_from.json`). Pictures of training come back better than unseen ones, so that their scores say less.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tqdm import tqdm

from codegrid.errors import CodegridError, require
from codegrid.names import shown
from codegrid.pipelines.data.duplicates import Overlap, find_overlap
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource, picture_marks
from codegrid.pipelines.data.sources import by_hash, limited, open_images, split_images
from codegrid.pipelines.data.understood import describe_channels, describe_reading
from codegrid.pipelines.system.numbers import share
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.fields import completed, from_dict

Part = Literal["auto", "held_out", "training", "all"]
_DEFAULT = DataConfig("default")
_REMEDY = "Say by --part which pictures are meant: held_out, training or all."


@dataclass(frozen=True)
class Chosen:
    """The pictures to score.

    Attributes:
        source: the pictures.
        part: "held_out", "training" or "all" of the split that was asked for.
        seen: whether the tokenizer's training has seen them: "no", "yes", "some", or "unknown" without its run.
        said: sentences for people: which pictures these are.
        training: where `part` is "held_out", the pictures that it was held out from.
    """

    source: ImageSource
    part: str
    seen: str
    said: tuple[str, ...]
    training: ImageSource | None = None


@dataclass(frozen=True)
class _Trained:
    """What a run's folder says of its data; `members` are the sorted hashes of all its pictures, uint64 [N]."""

    folder: Path
    data: DataConfig
    members: np.ndarray | None


def choose_pictures(data: DataConfig, tokenizer: str, part: Part = "auto") -> Chosen:
    """The pictures of `data` that are scored for `tokenizer`.

    Args:
        tokenizer: its folder, that of a checkpoint in it, or a Hub name.
        part: "auto" is "held_out" for the pictures of the tokenizer's own run, and "all" for others.

    Raises:
        DataError: the images cannot be read as configured; nothing is held out and it was asked for; or
            `data.validation_fraction` or `data.validation_split` contradicts the part, or the run.
    """
    known = get_args(Part)
    require(part in known, f"part is {part!r}.", f"Give {', '.join(known)}.")
    run = _trained(tokenizer)
    source = open_images(replace(data, limit=None))
    if run is None or not _is_own(data, source, run):
        chosen = _of_other_pictures(data, source, part, run)
    elif data.split == run.data.split or _is_split(data, run.data.split, source):
        chosen = _of_own_pictures(data, source, run, part)
    else:
        chosen = _of_another_split(data, source, run, part)
    return chosen if data.limit is None else replace(chosen, source=limited(chosen.source, data.limit))


def announce_pictures(chosen: Chosen, model: VQModel, accelerator: Accelerator) -> Overlap | None:
    """Print on the main process which pictures are scored, how they are read, and duplicates in the training part.

    Returns:
        the duplicates; None of a part that is not held out, and on other ranks.
    """
    if not accelerator.is_main_process:
        return None
    source, backbone = chosen.source, model.config.backbone_config
    read = f"{describe_reading(source)}{describe_channels(backbone.in_channels)}"
    tqdm.write("\n".join([f"Reconstructing {source.description}.", *chosen.said, read]).rstrip("\n"))
    if chosen.training is None:
        return None
    overlap = find_overlap(chosen.training, source, model.config.preprocessing_config, backbone.in_channels)
    tqdm.write(overlap.sentence())
    return overlap


def describe_overlap(overlap: Overlap | None) -> list[str]:
    """A sentence for a card, if duplicates were found."""
    return [overlap.sentence()] if overlap is not None and overlap.identical + overlap.similar else []


def _is_split(data: DataConfig, split: str | None, source: ImageSource) -> bool:
    """Whether `source` is this split under another name ("val" finds Validation)."""
    if split is None:
        return False
    try:
        other = open_images(replace(data, split=split, limit=None))
    except DataError:
        return False
    if source.understood is None or other.understood is None:
        return other.fingerprint == source.fingerprint
    return other.understood.split == source.understood.split


def _of_other_pictures(data: DataConfig, source: ImageSource, part: Part, run: _Trained | None) -> Chosen:
    """Pictures that the run does not know, or of a tokenizer without its run."""
    seen, said = "unknown", ()
    if run is not None and _overlaps(data.source, run.data.source):
        seen = "some"
        said = (f"{run.folder} was trained on {shown(run.data.source)}: which of these pictures it saw is not known.",)
    if part in ("auto", "all"):
        _refuse_split_options(data, "all pictures of the split are scored")
        return Chosen(source, "all", seen, said)
    held_out = split_images(replace(data, limit=None))
    chosen = held_out[part == "held_out"]
    if chosen is None:
        raise DataError(
            "data.validation_fraction is 0 and there is no data.validation_split, so that nothing is held out.",
            "Give one of them, or score all pictures: --part all.",
        )
    return Chosen(chosen, part, seen, said, held_out[0] if part == "held_out" else None)


def _refuse_split_options(data: DataConfig, because: str) -> None:
    if data.validation_fraction not in (_DEFAULT.validation_fraction, 0):
        raise DataError(
            f"data.validation_fraction is {data.validation_fraction}, and {because}.",
            "Leave it out, or add --part held_out to score that share of the pictures.",
        )
    if data.validation_split is not None:
        raise DataError(
            f"data.validation_split is {data.validation_split!r}, and {because}.",
            f"To score it, give --data.split {data.validation_split}, or add --part held_out.",
        )


def _of_another_split(data: DataConfig, source: ImageSource, run: _Trained, part: Part) -> Chosen:
    """Pictures of the run's source, but of a split that it was not trained on."""
    own = run.data.validation_split
    validation = own is not None and (data.split == own or _is_split(data, own, source))
    if part == "training" or (part == "held_out" and not validation):
        raise DataError(
            f"{run.folder} was trained on the split {run.data.split!r}, and data.split is {data.split!r}.",
            f"Leave --part out to score all of {data.split!r}, or give --data.split {run.data.split}.",
        )
    _refuse_split_options(replace(data, validation_split=None), f"all of the split {data.split!r} is scored")
    if not validation:
        return Chosen(source, "all", "no", (f"{run.folder} was not trained on this split.",))
    trained_on = open_images(replace(data, split=run.data.split, validation_split=None, limit=run.data.limit))
    return Chosen(source, "held_out", "no", (f"This is the split that {run.folder} held out.",), trained_on)


def _of_own_pictures(data: DataConfig, source: ImageSource, run: _Trained, part: Part) -> Chosen:
    """Pictures of the split that the run was trained on."""
    fraction, split = run.data.validation_fraction, run.data.validation_split
    if part == "all":
        _refuse_split_options(data, "all pictures of the split are scored")
    else:
        _check_held_out(data, run)
    nothing = split is None and fraction == 0
    if nothing and part in ("held_out", "training"):
        raise DataError(f"{run.folder} held nothing out of {shown(data.source)}.", "Score all pictures: --part all.")
    if nothing or part == "all":
        whole = (nothing or split) and run.data.limit is None
        what = "all of these pictures" if whole else "some of these pictures"
        seen = "yes" if whole else "some"
        other = "" if nothing else " (--part held_out scores what it held out)"
        return Chosen(source, "all", seen, (f"{run.folder} was trained on {what}{other}.",))
    wanted = replace(data, limit=run.data.limit, validation_fraction=fraction, validation_split=split)
    kept, held_out = split_images(wanted)
    said: list[str] = []
    if split is None and run.data.limit is None:
        kept, held_out, said = _as_they_were(source, kept, held_out, run)
    total = f"{len(source) if run.data.limit is None else run.data.limit:,}"
    if part == "training":
        return Chosen(kept, "training", "yes", (f"{run.folder} was trained on these pictures.", *said))
    which = f"the split {split!r}" if split else f"{len(held_out):,} of {total}"
    said.insert(0, f"{run.folder} held these pictures out ({which}); --part all scores all pictures.")
    return Chosen(held_out, "held_out", "no", tuple(said), kept)


def _check_held_out(data: DataConfig, run: _Trained) -> None:
    """Refuse another validation part than the run's: it would hold pictures of training."""
    fraction, split = run.data.validation_fraction, run.data.validation_split
    other_split = data.validation_split not in (None, split)
    if not other_split and (split is not None or data.validation_fraction in (_DEFAULT.validation_fraction, fraction)):
        return
    asked = (
        f"validation_split is {data.validation_split!r}"
        if other_split
        else f"validation_fraction is {data.validation_fraction}"
    )
    kept = f"the split {split!r}" if split else f"{share(fraction)} of the pictures"
    raise DataError(
        f"data.{asked}, and {run.folder} held out {kept}.",
        "Leave it out to score what was held out; --part all scores all pictures, --part training the others.",
    )


def _as_they_were(
    source: ImageSource, kept: ImageSource, held_out: ImageSource, run: _Trained
) -> tuple[ImageSource, ImageSource, list[str]]:
    """(kept, held out, sentences) as the run split them, where pictures were added or removed since.

    What is held out follows the hashes of the names and the number of pictures, so that both parts move when pictures
    come or go. Of the run's own pictures, the first ones in this order were held out for sure.
    """
    if run.members is None or not hasattr(source.reader, "file_marks"):
        return kept, held_out, []
    marks = np.frombuffer(b"".join(picture_marks(source)), dtype=np.uint64)
    if len(marks) != len(source):
        return kept, held_out, []
    mine = np.flatnonzero(np.isin(marks, run.members))
    if len(mine) == len(source) == len(run.members):
        return kept, held_out, []
    if not len(mine):
        said = "The files are not those of the training by their sizes and times: the names decide what was held out"
        return kept, held_out, [f"{said}."]
    total = len(run.members)
    gone = total - len(mine)
    number = min(total - 1, max(1, round(total * run.data.validation_fraction))) - gone
    if number < 1:
        raise DataError(
            f"{gone:,} of the {total:,} pictures of {run.folder} are gone or changed: which ones it held out cannot be "
            "said.",
            _REMEDY,
        )
    names = source.names()
    order = mine[by_hash([names[place] for place in mine])]
    said = [f"{gone:,} pictures of the training are gone or changed"] * bool(gone)
    said += [f"{len(source) - len(mine):,} were added and are left out"] * bool(len(source) - len(mine))
    parts = (np.sort(order[number:]), "of the training"), (np.sort(order[:number]), "held out")
    trained_on, unseen = (source.subset(places, name) for places, name in parts)
    return trained_on, unseen, [f"{', and '.join(said)}."]


def _is_own(data: DataConfig, source: ImageSource, run: _Trained) -> bool:
    """Whether these are pictures of the run: by their place, or by names, sizes and times."""
    if _place(data) == _place(run.data):
        return True
    if run.members is None:
        return False
    marks = np.frombuffer(b"".join(picture_marks(source)), dtype=np.uint64)
    return bool(np.isin(marks, run.members).any())


def _overlaps(source: str, other: str) -> bool:
    """Whether one of two folders lies in the other."""
    paths = [Path(name).expanduser().resolve() for name in (source, other)]
    return all(path.exists() for path in paths) and (
        paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0])
    )


def _place(data: DataConfig) -> tuple[Any, ...]:
    path = Path(data.source).expanduser()
    return (str(path.resolve()) if path.exists() else data.source, data.subset)


def _trained(tokenizer: str) -> _Trained | None:
    """What the run's folder around the tokenizer says; None where there is none."""
    folder = Path(tokenizer).expanduser()
    for place in (folder, *list(folder.absolute().parents)[:2]):
        path = place / "training_config.json"
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["stage"] != "tokenizer":
                return None
            data = from_dict(DataConfig, completed(DataConfig, values["data"]), "data")
        except (OSError, ValueError, KeyError, TypeError, CodegridError):
            return None  # another kind of file; nothing is known
        return _Trained(place, data, _members(place / ".made_from.hashes"))
    return None


def _members(path: Path) -> np.ndarray | None:
    try:
        return load_file(path)["members"].astype(np.uint64, casting="unsafe") if path.is_file() else None
    except (SafetensorError, KeyError):
        return None
