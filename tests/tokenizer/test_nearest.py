"""The nearest-code search against a search in float64, and what it promises beyond."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from codegrid.tokenizer.quantizers.nearest import nearest_codes


@pytest.mark.parametrize("on_sphere", [False, True])
@pytest.mark.parametrize(
    ("rows", "codes", "width"), [(0, 3, 2), (1, 1, 1), (300, 40, 3), (70, 5000, 8), (40, 512, 256)]
)
def test_nearest_codes_equal_a_float64_search(rows, codes, width, on_sphere):
    generator = torch.Generator().manual_seed(rows)
    z, e = (torch.randn(n, width, generator=generator) for n in (rows, codes))
    if on_sphere:
        z, e = F.normalize(z), F.normalize(e)
    exact = torch.cdist(z.double(), e.double())
    found = nearest_codes(z, e, on_sphere=on_sphere)
    chosen = exact.gather(1, found[:, None])[:, 0]
    # Equal codes, but where two lie within float32's rounding of each other.
    assert torch.all((found == exact.argmin(1)) | (chosen - exact.min(1).values < 1e-5))


def test_ties_go_to_the_lower_code():
    e = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert nearest_codes(torch.tensor([[1.0, 0.0]]), e).tolist() == [0]


def test_ties_across_blocks_go_to_the_lower_code():
    e = torch.zeros(1000, 2)
    e[[300, 301, 700]] = torch.tensor([1.0, 0.0])
    assert nearest_codes(torch.tensor([[1.0, 0.0]]), e).tolist() == [300]
    assert nearest_codes(torch.zeros(1, 2), e).tolist() == [0]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_values_that_are_not_finite_give_a_code_of_the_codebook(value):
    rows = torch.tensor([[value, 0.0], [value, value]])
    codes = nearest_codes(rows, torch.randn(5, 2))
    assert 0 <= codes.min() <= codes.max() < 5


def test_a_row_has_the_same_code_among_any_other_rows():
    rows, codebook = torch.randn(100, 8), torch.randn(3000, 8)
    together = nearest_codes(rows, codebook)
    assert torch.equal(torch.cat([nearest_codes(row[None], codebook) for row in rows]), together)
