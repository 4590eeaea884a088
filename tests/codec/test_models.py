"""Codes come back from every model; the prior's from disturbed logits, too, up to the bound of the file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.codec.context import ContextModel, count_contexts
from codegrid.pipelines.codec.file_format import FileFormatError
from codegrid.pipelines.codec.models import FixedModel
from codegrid.pipelines.codec.prior import PriorModel
from codegrid.pipelines.codec.windows import WindowedModel
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.prior.decoding import Decoder


def waves(number: int, size: int, depth: int = 1, seed: int = 0) -> np.ndarray:
    """Codes [N, 6, 5, depth] that depend on their neighbours."""
    draw = np.random.default_rng(seed)
    start = draw.integers(0, size, (number, 1, 1, 1))
    slope = draw.integers(0, 3, (number, 1, 1, 1))
    rows, columns, levels = np.mgrid[0:6, 0:5, 0:depth]
    noise = (draw.random((number, 6, 5, depth)) < 0.1) * draw.integers(0, size, (number, 6, 5, depth))
    return (start + slope * columns + rows + levels + noise) % size


@pytest.mark.parametrize("size", [1, 2, 5, 64, 300])
@pytest.mark.parametrize("depth", [1, 2])
def test_fixed_and_context_codes_come_back(size, depth):
    codes = waves(40, size, depth)
    context = count_contexts(waves(400, size, depth, seed=1), size, "ab" * 32)
    spent = {}
    for model in (FixedModel(size), context):
        payloads = model.write(codes, [None] * len(codes))
        np.testing.assert_array_equal(model.read(payloads, codes.shape[1:], [None] * len(codes)), codes)
        # Alone, in another order and of another grid as well: a payload depends on its own image only.
        assert model.write(codes[7:8], [None]) == payloads[7:8]
        part = codes[:3, :2, :1]
        np.testing.assert_array_equal(model.read(model.write(part, [None] * 3), part.shape[1:], [None] * 3), part)
        spent[type(model)] = sum(map(len, payloads))
    ideal = codes.size * np.log2(size) / 8
    assert spent[FixedModel] <= ideal + 2 * len(codes)
    if size > 5:
        assert spent[ContextModel] < 0.6 * spent[FixedModel]


def test_a_context_model_is_saved_whole_or_refused(tmp_path: Path):
    model = count_contexts(waves(60, 20, 2), 20, "ab" * 32)
    model.save(tmp_path)
    again = ContextModel.load(tmp_path)
    codes = waves(5, 20, 2, seed=3)
    assert again.fingerprint == model.fingerprint
    assert again.write(codes, [None] * 5) == model.write(codes, [None] * 5)
    path = tmp_path / "context.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(LoadingError, match="damaged"):
        ContextModel.load(tmp_path)
    path.unlink()
    with pytest.raises(LoadingError, match="--context"):
        ContextModel.load(tmp_path)
    with pytest.raises(CodegridError, match="20"):
        count_contexts(waves(19, 20), 20, "ab" * 32)


def _prior(seed: int = 0, architecture: str = "llama", **sequence) -> tuple[torch.nn.Module, SequenceConfig]:
    torch.manual_seed(seed)
    config = SequenceConfig(codebook_size=300, grid_shape=(6, 5), **sequence)
    sizes = PriorConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, architecture=architecture)
    model = make_prior(sizes, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from even: decisions from 1e-6 to sure
            parameter.mul_(3)
    return model, config


CASES = [{}, {"class_names": ("a", "b")}, {"depth": 5, "order": "grids"}, {"depth": 2}]
CASES += [{"architecture": "any_order_gpt2", "class_names": ("a",)}]


@pytest.mark.parametrize("sequence", CASES, ids=str)
def test_codes_come_back_from_a_prior(sequence):
    model, config = _prior(**sequence)
    codes = waves(10, 300, config.depth)
    labels = [0, 1, None, 1, 0, None, 1, 0, 1, 0] if config.num_classes > 1 else [None] * 10
    coder = PriorModel(model, config, "cd" * 32)
    payloads = coder.write(codes, labels)
    np.testing.assert_array_equal(coder.read(payloads, codes.shape[1:], labels), codes)
    np.testing.assert_array_equal(coder.read(payloads[3:4], codes.shape[1:], labels[3:4]), codes[3:4])
    # The cost is that of the probabilities, the shifts and at most two bytes.
    tokens = coder._tokens(codes, labels)
    logits = torch.from_numpy(coder.logits(tokens)).log_softmax(-1)
    ideal = -logits.gather(-1, tokens[:, config.prefix_length :, None]).sum((1, 2)).numpy() / np.log(2)
    assert (8 * np.array([len(payload) for payload in payloads]) < 1.03 * ideal + 8 * (2 + codes[0].size / 64)).all()


class _Disturbed(Decoder):
    """Every logit is moved by up to `_Disturbed.by`, in signs drawn anew at each step."""

    by = 0.0
    draw = torch.Generator().manual_seed(0)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().logits(hidden).double()
        signs = torch.randint(0, 2, logits.shape, generator=self.draw) * 2 - 1
        return logits + self.by * signs


@pytest.mark.parametrize("bound", [11, 13, 18])
def test_logits_may_move_by_the_bound(bound, monkeypatch):
    model, config = _prior(class_names=("a", "b"))
    codes = waves(12, 300)
    labels = [0, 1] * 6
    coder = PriorModel(model, config, "cd" * 32, bound)
    payloads = coder.write(codes, labels)
    monkeypatch.setattr("codegrid.pipelines.codec.prior.Decoder", _Disturbed)
    monkeypatch.setattr(_Disturbed, "by", 0.9 * 2.0**-bound)
    for _ in range(3):
        np.testing.assert_array_equal(coder.read(payloads, codes.shape[1:], labels), codes)
    monkeypatch.setattr(_Disturbed, "by", 1000 * 2.0**-bound)
    with pytest.raises((FileFormatError, AssertionError)):  # beyond it the codes are others, or the bytes are none
        np.testing.assert_array_equal(coder.read(payloads, codes.shape[1:], labels), codes)


WINDOWED = [((9, 13), {}), ((6, 6), {"class_names": ("a",)}), ((7, 5), {"depth": 2})]
WINDOWED += [((8, 8), {"architecture": "any_order_gpt2"}), ((6, 6), {"depth": 5, "order": "grids"})]


@pytest.mark.parametrize(("grid", "sequence"), WINDOWED, ids=str)
@pytest.mark.parametrize("overlap", [None, (5, 1)])
def test_larger_grids_come_back_window_by_window(grid, sequence, overlap):
    model, config = _prior(**sequence)
    coder = WindowedModel(PriorModel(model, config, "cd" * 32), overlap)
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 300, (2, *grid, config.depth))
    payloads = coder.write(codes, [None, None])
    np.testing.assert_array_equal(coder.read(payloads, codes.shape[1:], [None, None]), codes)
    np.testing.assert_array_equal(coder.read(payloads[1:], codes.shape[1:], [None]), codes[1:])


def test_one_window_costs_what_the_prior_does():
    model, config = _prior()
    prior = PriorModel(model, config, "cd" * 32)
    codes = waves(4, 300)
    alone, windowed = (sum(map(len, one.write(codes, [None] * 4))) for one in (prior, WindowedModel(prior)))
    assert alone == pytest.approx(windowed, abs=4)


def test_a_masked_prior_codes_nothing():
    model, config = _prior(architecture="bert")
    with pytest.raises(CodegridError, match="masked prior"):
        PriorModel(model, config, "cd" * 32)


def test_other_grids_and_absurd_bounds_are_refused():
    model, config = _prior()
    coder = PriorModel(model, config, "cd" * 32)
    with pytest.raises(CodegridError, match="context"):
        coder.write(waves(1, 300)[:, :4], [None])
    with pytest.raises(CodegridError, match="6 x 5"):
        WindowedModel(coder).write(waves(1, 300)[:, :4], [None])
    with pytest.raises(CodegridError, match="6 x 5"):
        coder.read([b""], (9, 9, 1), [None])
    with pytest.raises(CodegridError, match="bound"):
        PriorModel(model, config, "cd" * 32, 0)


def test_bf16_weights_are_widened_and_kept():
    model, config = _prior()
    narrow = model.to(torch.bfloat16)
    codes = waves(3, 300)
    coder = PriorModel(narrow, config, "cd" * 32)
    np.testing.assert_array_equal(coder.read(coder.write(codes, [None] * 3), codes.shape[1:], [None] * 3), codes)
    assert narrow.dtype == torch.bfloat16
