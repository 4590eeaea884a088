"""What the folders of a folder of pictures are, splits or classes; where both can be meant, the user is asked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.data.records import NO_LABELS, DataConfig, DataError

_KINDS = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words}
_FILLERS = "split|splits|set|data|dataset|images|image|imgs|img|part|subset"
_WORD = re.compile(rf"({'|'.join(sorted(_KIND_OF, key=len, reverse=True))})(?:{_FILLERS})?")


def split_kind(folder: str) -> str | None:
    """ "train", "validation" or "test" where a folder's name says so and nothing else (Train, val2017, test_split)."""
    words = re.findall(r"[^\W\d_]+", folder.casefold())
    words = [word for word in words if not re.fullmatch(_FILLERS, word)]
    kinds = [found and _KIND_OF[found[1]] for found in map(_WORD.fullmatch, words)]
    return kinds[0] if kinds and all(kinds) else None


def twins(folders: Iterable[str]) -> set[str]:
    """Folders whose names differ in the word of a split alone: trainA and testA, cat_train and cat_val."""
    rests: dict[tuple[str, ...], dict[str, str]] = {}
    for folder in folders:
        # A capital begins a word, so that trainA is train and A.
        words = [word.casefold() for word in re.findall(r"[A-Z]?[^\W\dA-Z_]+|[A-Z]+|\d+", folder)]
        for place, word in enumerate(words):
            if kind := _KIND_OF.get(word):
                rests.setdefault((*words[:place], "", *words[place + 1 :]), {})[folder] = kind
    return {folder for alike in rests.values() if len({*alike.values()}) > 1 for folder in alike}


def _like_splits(folders: Iterable[str]) -> list[str]:
    """Those of the folders that seem to be splits."""
    folders = list(folders)
    pairs = twins(folders)
    return [folder for folder in folders if split_kind(folder) or folder in pairs]


def find_split(split: str, splits: Iterable[str], where: str) -> str:
    """The split of this name, or the only one that is of its kind ("val" finds val2017).

    Raises:
        DataError: there is none, or there are several.
    """
    splits = sorted(splits)
    if split in splits:
        return split
    alike = [name for name in splits if name.casefold() == split.casefold()]
    kind = split_kind(split)
    found = alike or [name for name in splits if kind and split_kind(name) == kind]
    if len(found) == 1:
        return found[0]
    names = ", ".join(map(shown, splits))
    several = f" that is the only one of its kind ({', '.join(map(shown, found))})" if found else ""
    raise DataError(f"{where} has no split {split!r}{several}.", f"Choose data.split among {names}.")


def top_folders_are_splits(config: DataConfig, root: Path, paths: Iterable[str]) -> bool:
    """Whether the first level of folders is splits (else it is classes).

    Args:
        paths: of the pictures, below the root.

    Raises:
        DataError: both can be meant, and `config.top_folders` does not say which.
    """
    paths = list(paths)
    counts = Counter(path.partition("/")[0] if "/" in path else "" for path in paths)
    loose, folders = counts.pop("", 0), sorted(counts)
    if config.top_folders == "splits":
        require(
            bool(folders) and not loose,
            f"{shown(root)} holds {loose} pictures beside its folders, and data.top_folders is splits.",
            "Move them into one of the folders.",
        )
        return True
    alike = _like_splits(folders)
    if config.top_folders == "classes" or not alike:
        return False
    exact = config.split in folders
    if len(alike) == len(folders) and not loose and (exact or "train" in map(split_kind, folders)):
        return True
    others = [shown(name) for name in folders if name not in alike] + ([f"{loose} loose pictures"] if loose else [])
    beside = f" beside others ({_listed(others)})" if others else ", none of them to train on"
    raise DataError(
        f"{shown(root)} holds folders with names of splits ({_listed(map(shown, alike))}){beside}. As splits, "
        "the pictures of one folder are read (data.split says which); as classes, all are read, and the folders' names "
        "are their labels.",
        "Say which: set data.top_folders to splits or to classes.",
    )


def check_depth(config: DataConfig, root: Path, prefix: str, paths: Iterable[str], are_labels: bool) -> None:
    """Refuse folders whose classes or splits lie a level deeper than they are looked for.

    Args:
        prefix: of the split that is read, "" or "NAME/"; `paths` all begin with it.
        are_labels: whether the folders' names are the labels.

    Raises:
        DataError: they seem to, and `config.top_folders` does not say that the first level is meant.
    """
    if config.top_folders != "auto":
        return
    below: dict[str, set[str]] = {}
    loose = False
    for path in paths:
        folders = path.removeprefix(prefix).split("/")[:-1]
        if folders:
            below.setdefault(folders[0], set()).add("/".join(folders[1:]))
        loose |= not folders
    if not below or loose:
        return
    where = shown(root / prefix)
    if len(below) == 1:
        _check_wrapping(where, next(iter(below.items())), are_labels)
        return
    for folder, rest in sorted(below.items()):
        inner = sorted({name.partition("/")[0] for name in rest} - {""})
        if len({split_kind(name) for name in inner} - {None}) > 1:
            raise DataError(
                f"The folders of {where} hold splits ({shown(folder)} holds {_listed(map(shown, inner))}), whose "
                "pictures would all be read as one split.",
                "Move the splits to the top (train/CLASS/..., test/...), "
                "give one folder as data.source, or set data.top_folders to classes to read all pictures.",
            )


def _check_wrapping(where: str, only: tuple[str, set[str]], are_labels: bool) -> None:
    """One folder around all: its subfolders may be the classes, or the splits."""
    folder, rest = only
    while True:
        inner = {name.partition("/")[0] for name in rest}
        if "" in inner and not _like_splits(inner - {""}):
            return
        if len(inner) > 1:
            break
        (name,) = inner
        folder, rest = f"{folder}/{name}", {path.partition("/")[2] for path in rest}
    splits = bool(_like_splits(inner))
    if not splits and not are_labels:
        return
    listed = _listed([shown(name) or "loose pictures" for name in sorted(inner)])
    unlabelled = f'; to read no labels, set data.label_column to "{NO_LABELS}"'
    raise DataError(
        f"{where} holds one folder around all others: {shown(folder)}, with {listed} inside.",
        f"As its classes{' or splits' if splits else ''}, give {where.rstrip('/')}/{shown(folder)} as data.source; as "
        f"one class that holds all pictures, set data.top_folders to classes{'' if splits else unlabelled}.",
    )


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
