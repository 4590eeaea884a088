"""Pictures of any size in files: they come back in their size, and cut to nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.codec.file_format import FileFormatError, pack, unpack
from codegrid.pipelines.compression import codec as module
from codegrid.pipelines.compression.codec import ImageCodec
from codegrid.pipelines.compression.from_files import codec_info, decompress
from codegrid.pipelines.compression.to_files import compress
from codegrid.pipelines.data.records import DataConfig
from codegrid.tokenizer.images import BadImage, to_whole

SAVED = Path(__file__).resolve().parents[1] / "saved_by_be0a219"


def picture(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(width * height)
    small = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("model", ["context", "fixed", "prior"])
@pytest.mark.parametrize("size", [(37, 21), (16, 16), (5, 90), (64, 32), (250, 170)])
def test_a_picture_comes_back_in_its_size(codec: ImageCodec, model, size: tuple[int, int]) -> None:
    image = picture(*size)
    if model == "prior" and min(size) <= 8:  # fewer codes than a window
        with pytest.raises(BadImage, match="windows 2 x 2"):
            codec.compress(image, model=model, whole=True)
        return
    (blob,) = codec.compress(image, model=model, whole=True)
    config = codec.pipe.tokenizer.config
    channels = config.backbone_config.in_channels
    padded = to_whole(image, config.preprocessing_config, config.pixels_per_position, channels)
    assert padded.size == (size[1], size[0])
    codes = codec.encode_whole(padded)
    assert torch.equal(codec.codes(blob), codes[0])
    made = codec.decompress(blob, "pt")
    assert torch.equal(made, codec.pipe.decode(codes)[:, :, : size[1], : size[0]])


def test_a_large_picture_goes_in_tiles_both_ways(codec: ImageCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 64 * 64)
    monkeypatch.setattr(module, "_TILE", 32)
    image = picture(100, 60)
    (blob,) = codec.compress(image, model="context", whole=True)
    (made,) = codec.decompress(blob)
    assert made.size == (100, 60)


def test_files_of_several_sizes_are_lists_of_pictures(codec: ImageCodec) -> None:
    blobs = codec.compress([picture(20, 30), picture(30, 20)], model="fixed", whole=True)
    assert [image.size for image in codec.decompress(blobs)] == [(20, 30), (30, 20)]
    with pytest.raises(CodegridError, match="2 sizes"):
        codec.decompress(blobs, "np")
    with pytest.raises(BadImage, match="take --model context"):
        codec.compress(picture(40, 5), 0, "prior", whole=True)


def test_what_was_added_is_checked(codec: ImageCodec) -> None:
    (blob,) = codec.compress(picture(21, 17), model="context", whole=True)
    archive = unpack(blob)
    assert archive.header.added is not None
    other = replace(archive.header, added=(0, 0))
    with pytest.raises(FileFormatError, match="checksum"):
        codec.decompress(pack(other, archive.entries[0]))
    plain = replace(archive.header, added=None)
    with pytest.raises(FileFormatError, match="checksum"):
        codec.decompress(pack(plain, archive.entries[0]))


def test_the_command_keeps_sizes(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    sizes = {"a.png": (33, 18), "b.jpg": (16, 50)}
    for name, size in sizes.items():
        picture(*size).save(tmp_path / "images" / name)
    (tmp_path / "images" / "c.png").write_bytes(b"no picture")
    data = DataConfig(str(tmp_path / "images"))
    files = compress(str(pipeline), data, str(tmp_path / "files"), model="context", whole=True)
    said = capsys.readouterr().out
    assert "keep their size" in said
    assert "1 pictures are left out: c.png" in said
    folder = decompress(str(files), str(pipeline), str(tmp_path / "back"))
    assert sorted(Image.open(path).size for path in folder.glob("*.png")) == sorted(sizes.values())
    codec_info(str(sorted(files.glob("*.cgc"))[0]))
    assert "of the picture's own size" in capsys.readouterr().out
    with pytest.raises(CodegridError, match="whole is set"):
        compress(str(pipeline), data, whole=True, archive="x.cga")
    # The prior takes what has at least a window of codes, and says what it leaves out.
    picture(40, 7).save(tmp_path / "images" / "d.png")
    files = compress(str(pipeline), data, str(tmp_path / "by-prior"), whole=True)
    assert "its codes are 1 x 5, and the prior's windows 2 x 2" in capsys.readouterr().out
    folder = decompress(str(files), str(pipeline), str(tmp_path / "back-again"))
    assert sorted(Image.open(path).size for path in folder.glob("*.png")) == sorted(sizes.values())
    codec_info(str(sorted(files.glob("*.cgc"))[0]))
    assert "window by window" in capsys.readouterr().out


def test_windows_that_no_writer_makes_are_refused(codec: ImageCodec) -> None:
    (blob,) = codec.compress(picture(50, 40), model="prior", whole=True)
    archive = unpack(blob)
    assert archive.header.overlap == (1, 1)
    for header in (
        replace(archive.header, overlap=(2, 1)),
        replace(archive.header, overlap=(1, 500)),
        replace(archive.header, grid=(1, 7)),
        replace(archive.header, overlap=None),
        replace(archive.header, overlap=(0, 0)),
    ):
        with pytest.raises(CodegridError):
            codec.codes(pack(header, archive.entries[0]))
