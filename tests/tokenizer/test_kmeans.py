"""k-means: Lloyd's iterations against a direct loop and another library, and a codebook that starts from them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch.vector_quantize_pytorch import kmeans as their_kmeans

from codegrid.tokenizer.quantizers import VectorQuantizerConfig, make_quantizer
from codegrid.tokenizer.quantizers.kmeans import kmeans

each_geometry = pytest.mark.parametrize("on_sphere", [False, True], ids=["plain", "sphere"])


def rows(number: int = 300, dim: int = 4) -> torch.Tensor:
    return torch.randn(number, dim, generator=torch.Generator().manual_seed(0)) + 0.2


def placed(tensor: torch.Tensor, on_sphere: bool) -> torch.Tensor:
    return F.normalize(tensor, dim=-1) if on_sphere else tensor


@each_geometry
@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_the_means_equal_a_direct_loop(on_sphere, iterations):
    """Also where a mean is nearest to nothing: the last starts far away, and stays."""
    data = placed(rows(), on_sphere)
    start = torch.cat([data[:9], placed(torch.tensor([[-50.0, -50, -50, -50]]), on_sphere)])
    data = data[data.sum(1) > -0.1]
    expected = start.double()
    for _ in range(iterations):
        nearest = torch.cdist(data.double(), expected).argmin(1)
        for index in range(10):
            mine = data[nearest == index].double()
            expected[index] = placed(mine.mean(0), on_sphere) if len(mine) else expected[index]
    found = kmeans(data, start, iterations, on_sphere)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@each_geometry
def test_the_means_equal_vector_quantize_pytorch(on_sphere):
    data = placed(rows(), on_sphere)
    theirs, _ = their_kmeans(
        data[None], 16, num_iters=10, use_cosine_sim=on_sphere, sample_fn=lambda samples, number: samples[:, :number]
    )
    torch.testing.assert_close(kmeans(data, data[:16], 10, on_sphere), theirs[0], rtol=1e-5, atol=1e-6)


def test_it_stops_where_nothing_moves(monkeypatch):
    from codegrid.tokenizer.quantizers import kmeans as module

    calls, nearest = [], module.nearest_codes
    monkeypatch.setattr(module, "nearest_codes", lambda *arguments: calls.append(1) or nearest(*arguments))
    data = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    torch.testing.assert_close(kmeans(data, data[[0, 3]], 50), torch.tensor([[0.05], [5.05]]))
    assert len(calls) == 2


def quantizer(**options):
    options = {"codebook_size": 16, "code_dim": 4, "codebook_init": "kmeans", **options}
    return make_quantizer(VectorQuantizerConfig(**options))


def first_revival(quantizer, features: torch.Tensor) -> dict[str, torch.Tensor]:
    return quantizer.revive(torch.zeros(8, dtype=torch.int64), features, torch.Generator().manual_seed(3))


@each_geometry
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_the_codebook_starts_from_means_that_fit_better_than_features(on_sphere, update):
    fitted, drawn = (
        quantizer(l2_normalize=on_sphere, codebook_update=update, codebook_init=init) for init in ("kmeans", "data")
    )
    for one in (fitted, drawn):
        assert first_revival(one, rows())["embedding.weight"].tolist() == list(range(16))
    grid = rows().T[None, :, :, None]
    assert fitted(grid).losses["commitment"] < 0.8 * drawn(grid).losses["commitment"]
    # Ten iterations later they hardly move: each is about the mean of what it is nearest to.
    again = kmeans(placed(rows(), on_sphere), fitted.embedding.weight.detach(), 1, on_sphere)
    assert (again - fitted.embedding.weight).norm() < 0.2 * fitted.embedding.weight.norm()
    if update == "ema":
        torch.testing.assert_close(fitted.cluster_sum, fitted.embedding.weight)


def test_it_happens_once_also_where_nothing_is_revived():
    once = quantizer(revive_below=0.0)
    assert first_revival(once, rows())
    assert once.revival_candidates == quantizer(codebook_init="data").revival_candidates
    before = once.embedding.weight.clone()
    assert first_revival(once, rows() + 1) == {}
    assert torch.equal(once.embedding.weight, before)


def test_fewer_features_than_codes_are_taken_as_they_are():
    small = quantizer()
    first_revival(small, rows(5))
    assert (small.embedding.weight[:, None] - F.normalize(rows(5), dim=1)).norm(dim=-1).min(1).values.max() < 1e-6


def test_it_asks_for_features_enough():
    assert quantizer(codebook_size=4096).revival_candidates == 64 * 4096
    assert quantizer(codebook_size=4).revival_candidates == 1024
