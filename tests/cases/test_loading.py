"""Row "loading": half a download is called so by every way of loading, and the Hub's options mean the same in all.

Loading from a stand-in for the Hub, with faults in the middle: tests/pipelines/test_publishing.py.
"""

import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence, load_tokenizer
from codegrid.prior import load_prior
from codegrid.tokenizer import VQModel

SAVED = Path(__file__).parents[1] / "saved_by_be0a219" / "pipeline"
COMMIT = "0" * 40
PARTS = ("tokenizer", "prior")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The pipeline, with weights in shards."""
    folder = tmp_path_factory.mktemp("whole") / "pipeline"
    shutil.copytree(SAVED, folder)
    load_tokenizer(SAVED / "tokenizer").save_pretrained(folder / "tokenizer", max_shard_size="20KB")
    load_prior(SAVED / "prior")[0].save_pretrained(folder / "prior", max_shard_size="5KB")
    for part in PARTS:
        (folder / part / "model.safetensors").unlink(missing_ok=True)
        assert len(list((folder / part).glob("model-*"))) > 2
    return folder


def cached(folder: Path, cache: Path) -> Path:
    """A cache of downloads that holds a copy of the folder as me/pipe; its snapshot."""
    place = cache / "models--me--pipe"
    (place / "refs").mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    return place / "snapshots" / COMMIT


def cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(1, len(data))])


def cut_weights(path: Path, draw: random.Random) -> None:
    """Behind the header, whose names and shapes are all there."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    path.write_bytes(data[: draw.randrange(start, len(data))])


def broken_link(path: Path, draw: random.Random) -> None:
    """The file in blobs/ was cleaned away, or is still called .incomplete."""
    path.unlink()
    path.symlink_to("../../../blobs/" + "b" * 40)


def becomes(content: bytes) -> Callable[[Path, random.Random], None]:
    return lambda path, draw: path.write_bytes(content)


def gone(path: Path, draw: random.Random) -> None:
    path.unlink()


DAMAGES = {
    "a shard is not there": ("model-00002*", gone),
    "a shard is cut short behind its header": ("model-00001*", cut_weights),
    "a shard is a pointer of Git LFS": ("model-00003*", becomes(POINTER)),
    "a shard is a link into nothing": ("model-00001*", broken_link),
    "a shard is empty": ("model-00002*", becomes(b"")),
    "a shard is the page of a login": ("model-00002*", becomes(b"<!DOCTYPE html>\n<html>Sign in</html>")),
    "the index is cut short": ("*index.json", cut),
    "config.json is a pointer of Git LFS": ("config.json", becomes(POINTER)),
    "config.json is cut short": ("config.json", cut),
}
WORDS = r"not whole|a web page and not"


def ways(part: str, folder: Path, cache: Path) -> dict[str, Callable[[], object]]:
    """Every way to load the part, from its folder and out of the cache."""
    here = {"cache_dir": cache, "local_files_only": True}
    models = (VQModel.from_pretrained, load_tokenizer) if part == "tokenizer" else (load_prior, load_prior_and_sequence)
    loads = {"the pipeline": lambda: ImageGenerationPipeline.from_pretrained(folder)}
    loads["the pipeline from the cache"] = lambda: ImageGenerationPipeline.from_pretrained("me/pipe", **here)
    for number, load in enumerate(models):
        loads[f"{number}: the folder"] = lambda load=load: load(folder / part)
        loads[f"{number}: a subfolder"] = lambda load=load: load(folder, subfolder=part)
        loads[f"{number}: the cache"] = lambda load=load: load("me/pipe", subfolder=part, **here)
    return loads


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("case", [*DAMAGES, "drawn from 9", "drawn from 31"])
def test_half_a_download_is_called_so(whole, tmp_path, part, case):
    draw = random.Random(int(case.rpartition(" ")[2]) if case.startswith("drawn") else 1)
    folder = cached(whole, tmp_path)
    pattern, damage = DAMAGES.get(case) or draw.choice(list(DAMAGES.values()))
    file = draw.choice(sorted((folder / part).glob(pattern)))
    damage(file, draw)
    for way, load in ways(part, folder, tmp_path).items():
        with pytest.raises(CodegridError, match=WORDS) as error:
            load()
        assert file.name in error.value.what, (case, way)
        assert error.value.what.endswith("."), (case, way)
        assert error.value.remedy, (case, way)


@pytest.mark.parametrize("name", ["model_index.json", "prior/sequence_config.json", "tokenizer", "prior"])
def test_what_a_pipeline_consists_of_is_there_or_named(whole, tmp_path, name):
    folder = cached(whole, tmp_path)
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else cut(path, random.Random(2))
    for place, options in ((folder, {}), ("me/pipe", {"cache_dir": tmp_path, "local_files_only": True})):
        with pytest.raises(CodegridError, match=r"not whole|is no whole pipeline") as error:
            ImageGenerationPipeline.from_pretrained(place, **options)
        assert name in error.value.what


def test_an_incomplete_blob_says_that_the_download_was_begun(whole, tmp_path):
    folder = cached(whole, tmp_path)
    (folder.parents[1] / "blobs" / "abc.incomplete").write_bytes(b"half")
    next((folder / "tokenizer").glob("model-00001*")).unlink()
    with pytest.raises(CodegridError, match=r"me/pipe: the download is not whole: .*model-00001"):
        load_tokenizer("me/pipe", subfolder="tokenizer", cache_dir=tmp_path, local_files_only=True)


LOADS = {
    "VQModel": (VQModel.from_pretrained, {"subfolder": "tokenizer"}),
    "load_prior": (load_prior, {"subfolder": "prior"}),
    "load_tokenizer": (load_tokenizer, {"subfolder": "tokenizer"}),
    "load_prior_and_sequence": (load_prior_and_sequence, {"subfolder": "prior"}),
    "pipeline": (ImageGenerationPipeline.from_pretrained, {}),
}


@pytest.mark.parametrize("name", LOADS)
def test_the_options_are_the_same_in_all(whole, tmp_path, monkeypatch, name):
    load, place = LOADS[name]
    cached(whole, tmp_path / "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    for cache in (tmp_path / "cache", str(tmp_path / "cache"), "~/cache"):
        load("me/pipe", **place, cache_dir=cache, local_files_only=True)
    with pytest.raises(CodegridError, match="Leave one of the two out"):
        load("me/pipe", **place, cache_dir=tmp_path / "cache", local_files_only=True, force_download=True)
    for options, words in (
        ({"cache_dir": tmp_path / "elsewhere"}, "are not in the cache"),
        ({"cache_dir": tmp_path / "cache", "revision": "v9"}, r"\(revision v9\) are not in the cache"),
    ):
        with pytest.raises(CodegridError, match=words) as error:
            load("me/pipe", **place, **options, local_files_only=True)
        assert "without local_files_only" in error.value.remedy
    for there_is_none in ("runs/../none/at/all", "./none", "~/none"):
        with pytest.raises(CodegridError, match="There is no folder"):
            load(there_is_none, **place)
    for outside in ("../tokenizer", "/etc", "a/../../b"):
        with pytest.raises(CodegridError, match="must lie in the folder"):
            load(whole, subfolder=outside)


def test_a_tokenizer_is_called_by_the_name_that_it_was_loaded_by(whole, tmp_path):
    cached(whole, tmp_path)
    model = VQModel.from_pretrained("me/pipe", subfolder="tokenizer", cache_dir=tmp_path, local_files_only=True)
    assert model.name_or_path == "me/pipe"
    assert model.fingerprint() == load_tokenizer(SAVED / "tokenizer").fingerprint()
