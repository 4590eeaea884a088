"""The nearest-code search against a search in float64, and what it promises beyond."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from codegrid.tokenizer.quantizers import nearest, shortlist
from codegrid.tokenizer.quantizers.nearest import nearest_codes
from codegrid.tokenizer.quantizers.shortlist import nearest_of_shortlist, rounded


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


def searches(seed):
    """Rows and codes of any scale, place and nearness, with equal codes among them."""
    generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
    width, codes = draw.choice([1, 7, 64, 200]), draw.choice([1, 255, 256, 700])
    scale, apart, middle = (10.0 ** draw.randint(*ends) for ends in ((-6, 6), (-5, 0), (-3, 3)))
    codebook = apart * torch.randn(codes, width, generator=generator)
    codebook[codes // 2 :: 3] = codebook[0].clone()
    near = codebook[torch.randint(codes, (30,), generator=generator)]
    rows = near + apart * draw.choice([0.0, 1e-3, 1.0]) * torch.randn(30, width, generator=generator)
    rows[:3] = torch.randn(3, width, generator=generator)
    at = middle * torch.randn(width, generator=generator)
    return scale * (rows + at), scale * (codebook + at)


@pytest.mark.parametrize("on_sphere", [False, True])
def test_the_shortlist_has_the_nearest_code_by_float64(on_sphere, monkeypatch):
    monkeypatch.setattr(shortlist, "_MOST_LEFT", 2)  # of three blocks at most
    shares = []
    for seed in range(200):
        rows, codebook = searches(seed)
        codes, found = nearest_of_shortlist(rows, codebook, rounded(codebook, on_sphere), on_sphere)
        exact = rows.double() @ codebook.double().t()
        if not on_sphere:
            exact -= 0.5 * codebook.double().square().sum(1)
        chosen = exact.gather(1, codes[:, None])[:, 0]
        assert torch.all(~found | (chosen >= exact.amax(1) - 1e-13 * exact.abs().amax(1))), seed
        equal = (codebook[codes][:, None] == codebook).all(2)  # the first of equal codes
        assert torch.equal(codes[found], equal.int().argmax(1)[found]), seed
        shares.append(found.float().mean())
    assert 0.5 < torch.stack(shares).mean() < 1  # both kinds of rows were tried


def test_the_shortlist_finds_nearly_all_rows_of_a_trained_codebooks_kind():
    generator = torch.Generator().manual_seed(0)
    codebook, other = (torch.randn(number, 256, generator=generator) for number in (4096, 500))
    near = codebook[torch.randint(4096, (500,), generator=generator)] + other
    for rows, codes in ((near + 5, codebook + 5), (other, codebook)):
        assert nearest_of_shortlist(rows, codes, rounded(codes, False), False)[1].float().mean() > 0.99


def test_rows_that_the_shortlist_leaves_are_found_by_all_scores(monkeypatch):
    monkeypatch.setattr(nearest, "pays", lambda rows, codebook: True)
    generator = torch.Generator().manual_seed(0)
    codebook, rows = (torch.randn(number, 64, generator=generator) for number in (3000, 20))
    codebook[1000:] = codebook[0] + 1e-2 * torch.randn(2000, 64, generator=generator)  # too close for bfloat16
    rows[:10] = codebook[0]
    rows[10] = torch.inf
    codes = nearest_codes(rows, codebook)
    exact = torch.cdist(rows[11:].double(), codebook.double()).argmin(1)
    assert codes[:10].tolist() == [0] * 10
    assert 0 <= codes[10] < 3000
    assert torch.equal(codes[11:], exact)
    assert nearest_codes(rows[:0], codebook).shape == (0,)
