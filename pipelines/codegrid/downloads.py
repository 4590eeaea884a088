"""A model's files: brought from the Hub, and looked at before they are loaded. Both stages and the pipelines use it."""

from __future__ import annotations

import json
import struct
from pathlib import Path, PurePosixPath
from typing import Any

from codegrid.errors import CodegridError, MissingFileError, require
from codegrid.names import shown

INDEX_NAME, WEIGHTS_NAME = "model.safetensors.index.json", "model.safetensors"
HUB_OPTIONS = ("cache_dir", "local_files_only", "force_download")
# What a model consists of. Nothing else is ever downloaded, so that no pickle reaches the disk.
MODEL_FILES = ("*.json", "*.safetensors", "*.md")
AGAIN = "Download it again (force_download takes all files anew), or save it again."
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself allows
_LFS, _PAGES = b"version https://git-lfs", (b"<!doctype", b"<html")


def snapshot(
    repo: str,
    what: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The local folder with a Hub repository's model files, without `subfolder`.

    Args:
        what: "tokenizer", "prior" or "pipeline", for the message.
        revision: branch, tag or commit.
        subfolder: only the files below it are brought.
        cache_dir: where downloads are kept; None is the Hub's own cache (HF_HOME).
        local_files_only: use only files that were downloaded before, without asking the Hub.
        force_download: download files again that are already in the cache.

    Raises:
        MissingFileError: there is no such repository, or none of its files are here and the Hub may not be asked.
        CodegridError: both `local_files_only` and `force_download` are given.
    """
    require(
        not (local_files_only and force_download),
        "local_files_only forbids to ask the Hub, and force_download is to ask it for all files.",
        "Leave one of the two out.",
    )
    if repo.count("/") > 1 or repo.startswith((".", "/", "~")) or "\\" in repo:
        raise MissingFileError(
            f"There is no folder {shown(repo)}: the {what} is neither a folder here nor a repository of the Hub.",
            f"Name the folder of a {what}, or a repository of the Hub as OWNER/NAME.",
        )
    from huggingface_hub import snapshot_download  # a slow import that local folders do not need
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir).expanduser(),
                local_files_only=bool(local_files_only),
                force_download=bool(force_download),
                allow_patterns=[f"{subfolder}/{kind}" if subfolder else kind for kind in MODEL_FILES],
            )
        )
    except Exception as error:  # huggingface_hub passes on those of its HTTP library
        reason = (str(error).splitlines() or [""])[0].rstrip(". ")
        remedy = "Check the name, the revision, the connection, and for private repositories `hf auth login`."
        if local_files_only and isinstance(error, LocalEntryNotFoundError):
            at = f" (revision {revision})" if revision else ""
            reason = f"its files{at} are not in the cache, and local_files_only forbids to ask for them"
            remedy = "Load it once with a connection and without local_files_only, or name the cache_dir that holds it."
        raise MissingFileError(
            f"The {what} {repo!r} is neither a folder here nor a repository that the Hub gives "
            f"({type(error).__name__}: {reason}).",
            remedy,
        ) from error


def place_in(subfolder: str | None) -> PurePosixPath:
    """The place of a subfolder in its folder or repository; "." for None.

    Raises:
        CodegridError: it leads out of the folder.
    """
    path = PurePosixPath(subfolder or ".")
    if path.is_absolute() or ".." in path.parts or "\\" in str(path):
        raise CodegridError(
            f"subfolder is {subfolder!r}: it must lie in the folder.", "Give a path in it, such as 'tokenizer'."
        )
    return path


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model, by its index where it has one; each is there, whole and in the folder itself.

    transformers would follow a path like `../elsewhere.safetensors` in an index.

    Raises:
        MissingFileError: a file is not there.
        CodegridError: a file is not whole, the index is damaged, or it names another kind of file.
    """
    index = folder / INDEX_NAME
    names = [WEIGHTS_NAME]
    if index.is_file() or index.is_symlink():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CodegridError(f"{shown(index)} has no weight_map: it is damaged.", AGAIN)
        names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        plain = PurePosixPath(name).name == name and "\\" not in name and name.endswith(".safetensors")
        require(
            plain,
            f"{shown(index)} names the weights file {name!r}.",
            "Only .safetensors files in the same folder are read: save it again, or download it from a source that you "
            "trust.",
        )
        _check_there(folder / name, index.is_file())
        check_safetensors(folder / name)
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a model's JSON file.

    Raises:
        MissingFileError, CodegridError: it is not there, not whole, or holds no object.
    """
    _check_there(path)
    _check_first_bytes(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CodegridError(
            f"{shown(path)} is not valid JSON ({error}): the download is not whole, or the file is damaged.", AGAIN
        ) from error
    require(
        isinstance(values, dict),
        f"{shown(path)} holds no JSON object, but {type(values).__name__}: it is damaged.",
        AGAIN,
    )
    return values


def check_safetensors(path: Path) -> None:
    """Refuse a .safetensors file that is not whole, by its header; no weight is read.

    Raises:
        CodegridError: it is empty, a pointer of Git LFS, a web page, cut short, or no such file.
    """
    _check_first_bytes(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        header = file.read(length) if 0 < length <= min(_LONGEST_HEADER, size) else b""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        wanted = 8 + length + max(map(int, ends), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        cut = ": the download is not whole" if size < 8 + length <= 8 + _LONGEST_HEADER else ""
        raise CodegridError(f"{shown(path)} ({size:,} bytes) is damaged, or no safetensors{cut}.", AGAIN) from None
    if size < wanted:
        raise CodegridError(
            f"{shown(path)} has {size:,} of {wanted:,} bytes: the download is not whole, or its copy.", AGAIN
        )


def _check_there(path: Path, by_index: bool = False) -> None:
    if path.is_file():
        return
    if path.is_symlink():
        raise MissingFileError(
            f"{shown(path)} is a link to a file that is not there: the download is not whole.", AGAIN
        )
    if by_index:
        raise MissingFileError(
            f"{INDEX_NAME} names {path.name}, which is not in {shown(path.parent)}: the download is not whole.", AGAIN
        )
    raise MissingFileError(
        f"There is no {path.name} in {shown(path.parent)}.",
        "Only safetensors are loaded: save the weights so (save_pretrained), or download them again."
        if path.suffix == ".safetensors"
        else AGAIN,
    )


def _check_first_bytes(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise CodegridError(f"{shown(path)} is empty: the download is not whole.", AGAIN)
    if start.startswith(_LFS):
        raise CodegridError(
            f"{shown(path)} is a pointer of Git LFS and not the file itself: the download is not whole.",
            "Run `git lfs pull` in its folder, or load it by its name on the Hub.",
        )
    if start.lstrip().lower().startswith(_PAGES):
        raise CodegridError(f"{shown(path)} is a web page and not the file itself.", AGAIN)
