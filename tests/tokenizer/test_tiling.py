"""Tiles: every position is covered, and what does not look beyond a tile is the same in tiles as at once."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from codegrid.errors import CodegridError
from codegrid.tokenizer.tiling import decode_tiles, encode_tiles, in_codes, owned, places


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_tiles_cover_everything_once(size: int) -> None:
    for length in range(1, 40):
        for shared in range(size // 2 + 1):
            starts = places(length, size, shared)
            assert starts[0] == 0
            assert starts[-1] == max(0, length - size)
            pairs = list(itertools.pairwise(starts))
            assert all(after - before <= size - shared for before, after in pairs), (length, size, shared, starts)
            taken = [code for first, last in owned(starts, size, length) for code in range(first, last)]
            assert taken == list(range(length))
            for start, (first, last) in zip(starts, owned(starts, size, length), strict=True):
                assert start <= first < last <= start + size


def test_what_looks_at_single_codes_is_the_same_in_tiles() -> None:
    images = torch.rand(2, 3, 4 * 13, 4 * 7)
    pooled = F.avg_pool2d(images, 4)
    codes = (255 * pooled).long().permute(0, 2, 3, 1)  # [B, h, w, 3]

    def encode(part: torch.Tensor) -> torch.Tensor:
        return (255 * F.avg_pool2d(part, 4)).long().permute(0, 2, 3, 1)

    def decode(part: torch.Tensor) -> torch.Tensor:
        return F.interpolate(part.permute(0, 3, 1, 2).double(), scale_factor=4)

    assert torch.equal(encode_tiles(encode, images, 4, 16, 8), codes)
    whole = decode(codes)
    for tile, overlap in ((16, 8), (20, 4), (12, 0), (64, 16)):
        assert torch.allclose(decode_tiles(decode, codes, 4, tile, overlap), whole, atol=1e-4, rtol=0)


def test_tiles_that_differ_are_blended_without_a_step() -> None:
    """Each tile in its own grey: beside each other, two pixels differ by at most a step of the ramp."""
    greys = iter(range(100))

    def decode(part: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 1, 4 * part.shape[1], 4 * part.shape[2]), float(next(greys)))

    made = decode_tiles(decode, torch.zeros(1, 1, 20, dtype=torch.int64), 4, 32, 16)[0, 0]
    assert made.min() == 0
    assert made.max() >= 2
    assert made.diff(dim=1).abs().max() <= 1 / 16 + 1e-6  # over an overlap of at least 16 pixels


def test_a_model_in_one_tile_is_itself(tiny_vqmodel) -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = tiny_vqmodel.encode(images)
    assert torch.equal(tiny_vqmodel.encode(images, tile=16), codes)
    assert torch.allclose(tiny_vqmodel.decode(codes, tile=32), tiny_vqmodel.decode(codes))
    large = torch.rand(1, 3, 40, 24) * 2 - 1
    codes = tiny_vqmodel.encode(large, tile=16, overlap=8)
    assert codes.shape == (1, 10, 6)
    assert tiny_vqmodel.decode(codes, tile=16).shape == large.shape


@pytest.mark.parametrize(("tile", "overlap"), [(10, 0), (16, 3), (16, 12), (0, 0), (16, -4)])
def test_tiles_that_are_no_tiles_are_refused(tiny_vqmodel, tile: int, overlap: int) -> None:
    with pytest.raises(CodegridError, match="multiples of 4"):
        tiny_vqmodel.encode(torch.zeros(1, 3, 32, 32), tile=tile, overlap=overlap)


@pytest.mark.parametrize(
    ("tile", "factor", "expected"),
    [(64, 8, (8, 4)), (1024, 8, (128, 32)), (16, 8, (2, 1)), (256, 16, (16, 4))],
)
def test_small_tiles_share_up_to_a_half(tile: int, factor: int, expected: tuple[int, int]) -> None:
    assert in_codes(factor, tile, None) == expected
