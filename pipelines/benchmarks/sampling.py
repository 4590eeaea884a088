"""Sampling codes with guidance, beside transformers' `generate` and LlamaGen's, on nets of equal shapes."""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from codegrid import prior
from codegrid.errors import require
from codegrid.pipelines.benchmarks.memory import peak_extra_megabytes
from codegrid.pipelines.benchmarks.options import BesideBefore, BesideLlamaGen
from codegrid.pipelines.benchmarks.peers import first_version, packages_of
from codegrid.pipelines.benchmarks.report import Row, in_turn, print_row
from codegrid.prior import SequenceConfig, make_prior, sample_codes
from codegrid.prior.decoder_weights import DecoderWeights
from codegrid.prior.decoding import read_weights
from codegrid.prior.linear_maps import PackedLinear

_SCALE, _CLASSES = 4.0, 1000
_WIDTHS = {"shape": 5, "dtype": 8, "batch": 5, "sampler": 24, "tokens/s": 8, "images/s": 8, "spread": 6, "ratio": 6}
_WIDTHS |= {"of bound": 8, "extra MB": 8}


@dataclass(frozen=True)
class Shape:
    """LlamaGen's: the MLP's width is 8/3 of the net's, rounded up to 256."""

    name: str
    hidden_size: int
    layers: int
    heads: int
    codes: int
    grid: int

    @property
    def intermediate_size(self) -> int:
        return -(-8 * self.hidden_size // (3 * 256)) * 256


_SHAPES = (Shape("25M", 512, 8, 8, 1024, 16), Shape("100M", 768, 12, 12, 16_384, 16))
_BATCHES = (1, 8)


class _Guidance(LogitsProcessor):
    """For transformers: the first half of the rows is the class's, the second half the null class's."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        conditional, unconditional = scores.chunk(2)
        guided = unconditional + _SCALE * (conditional - unconditional)
        # The tokens that are no codes are at -inf already, and the difference of two such is none.
        return guided.masked_fill(conditional.isneginf(), -torch.inf).repeat(2, 1)


@dataclass(frozen=True, kw_only=True)
class Sampling(BesideLlamaGen, BesideBefore):
    """Codes of images of a class, with guidance.

    A row for each shape, dtype, batch and sampler; "ratio" is the peer's time (the first row's) over its own.
    "of bound" is the time that reading the weights and the cache once a code would take, at the bandwidth measured
    between the runs, over the time taken. Where weights are rounded, theirs are counted as they lie in memory. A line
    above a shape says which maps oneDNN packs, and what the rows are padded to.
    """

    name = "sampling"
    parts = (tuple(shape.name for shape in _SHAPES), ("float32", "bfloat16"), tuple(map(str, _BATCHES)))

    def measure(self) -> list[Row]:
        device = self.accelerator().device
        dtypes = [torch.float32] + [torch.bfloat16] * ("bf16" in self.precisions())
        print_row({}, _WIDTHS, header=True)
        rows = []
        for shape in _SHAPES:
            for dtype in dtypes:
                for batch in _BATCHES:
                    if self.wants(shape.name, _name(dtype), str(batch)):
                        rows += _measured(shape, dtype, batch, device, self)
        return rows


def _measured(shape: Shape, dtype: torch.dtype, batch: int, device: torch.device, asked: Sampling) -> list[Row]:
    torch.manual_seed(0)
    config, sequence = _sizes(prior, shape)
    model = make_prior(config, sequence).eval().to(device, dtype)
    labels = torch.arange(batch) % _CLASSES
    layout = describe_layout(read_weights(model, shape.codes, sequence.length))
    print(f"{shape.name} {_name(dtype)}: {layout}")
    runs, formats = _runs(model, sequence, shape, labels, asked)
    bandwidths: list[float] = []  # noted between the runs
    timings = in_turn({**runs, "read": partial(_note_bandwidth, bandwidths, device)}, asked.repeats)
    bandwidth = statistics.median(bandwidths)
    rows = []
    for name, run in runs.items():
        seconds = timings[name].seconds
        least = _bytes_an_image(shape, dtype, batch, formats.get(name, dtype.itemsize)) / bandwidth
        row = {
            "shape": shape.name,
            "dtype": _name(dtype),
            "batch": batch,
            "sampler": name,
            "tokens/s": batch * sequence.length / seconds,
            "images/s": batch / seconds,
            "spread": f"{timings[name].spread:.0%}",
            "ratio": timings[name].ratio,
            "of bound": least / seconds,
            "extra MB": peak_extra_megabytes(run, device),
            "GB/s": bandwidth / 1e9,
            **({"layout": layout} if name == "ours" else {}),
        }
        print_row(row, _WIDTHS)
        rows.append(row)
    return rows


def _sizes(package: ModuleType, shape: Shape) -> tuple[Any, Any]:
    """The prior's and the sequence's config of `codegrid.prior`, or of an earlier one."""
    classes = tuple(map(str, range(_CLASSES)))
    config = package.PriorConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
    )
    return config, package.SequenceConfig(shape.codes, (shape.grid, shape.grid), class_names=classes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe_layout(weights: DecoderWeights) -> str:
    """Which of a layer's products oneDNN packs, and the multiple that rows are padded to on a CPU."""
    layer = weights.layers[0]
    maps = {"qkv": layer.qkv, "out": layer.output, "head": weights.head}
    maps |= {name: part for name, part in vars(layer.mlp).items() if hasattr(part, "row_multiple")}
    packed = [name for name, part in maps.items() if isinstance(part, PackedLinear)]
    plain = [name for name in maps if name not in packed]
    said = [f"{', '.join(names)} {how}" for names, how in ((packed, "packed"), (plain, "not packed")) if names]
    multiples = ", ".join(f"{name} {part.row_multiple}" for name, part in maps.items() if part.row_multiple > 1)
    because = f" ({multiples})" if multiples else ""
    return f"{'; '.join(said)}; rows padded to a multiple of {weights.row_multiple}{because}"


def _runs(
    model: LlamaForCausalLM, sequence: SequenceConfig, shape: Shape, labels: torch.Tensor, asked: Sampling
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What is timed, and the bytes of a weight where they are not those of the model."""
    runs: dict[str, Callable[[], object]] = {}
    arguments = {"guidance_scale": _SCALE, "seeds": range(len(labels)), "batch_size": len(labels)}
    if asked.before:
        earlier = first_version(asked.before, "prior")
        sizes = _sizes(earlier, shape)
        its_model = earlier.make_prior(*sizes).eval().to(model.device, model.dtype)
        its_model.load_state_dict(model.state_dict())
        runs["be0a219"] = partial(earlier.sample_codes, its_model, sizes[1], labels, **arguments)
    if asked.llamagen:
        runs["LlamaGen"] = _llamagen(Path(asked.llamagen), shape, labels, model.device, model.dtype)
    for cache in ("dynamic", "static"):
        runs[f"transformers, {cache}"] = partial(generate, model, sequence, labels.to(model.device), cache)
    runs["ours"] = partial(sample_codes, model, sequence, labels, **arguments)
    formats = {"float16": 2, "int8": 1} if model.device.type == "cpu" else {}
    for weights in formats:
        runs[f"ours, {weights}"] = partial(sample_codes, model, sequence, labels, weights=weights, **arguments)
    return runs, {f"ours, {weights}": size for weights, size in formats.items()}


def _bytes_an_image(shape: Shape, dtype: torch.dtype, batch: int, weight_bytes: int) -> int:
    """What has to be read for a batch: at each position all linear layers and the head, and the cache so far."""
    layer = 4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size
    weights = (shape.layers * layer + shape.codes * shape.hidden_size) * weight_bytes
    positions = shape.grid**2
    entry = 2 * shape.layers * shape.hidden_size * dtype.itemsize * 2 * batch  # keys, values; two branches
    return positions * weights + entry * positions * (positions + 1) // 2


def _note_bandwidth(noted: list[float], device: torch.device, megabytes: int = 256) -> None:
    """Bytes a second of reading memory in order, all threads: the best of three reads."""
    values = torch.ones(megabytes * 2**20 // 4, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        float(values.sum())
        best = min(best, time.perf_counter() - began)
    noted.append(values.nbytes / best)


def generate(model: LlamaForCausalLM, sequence: SequenceConfig, labels: torch.Tensor, cache: str) -> torch.Tensor:
    """By transformers: greedy codes, guided; [B, L]."""
    null = torch.full_like(labels, sequence.null_token)
    prefix = torch.cat([labels + sequence.codebook_size, null])[:, None]  # [2B, 1]
    # Each branch would draw codes of its own: greedy codes keep them the same, and cost less than drawing.
    return model.generate(
        prefix,
        attention_mask=torch.ones_like(prefix),
        do_sample=False,
        cache_implementation=None if cache == "dynamic" else "static",
        disable_compile=True,
        logits_processor=LogitsProcessorList([_Guidance()]),
    )[: len(labels), 1:]


def _llamagen(
    folder: Path, shape: Shape, labels: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> Callable[[], Any]:
    require(
        (folder / "autoregressive/models/gpt.py").is_file(),
        f"llamagen is {folder}, which is no clone of LlamaGen.",
        "Clone it and name that folder.",
    )
    sys.path.insert(0, str(folder))
    try:
        with packages_of(folder):
            gpt = importlib.import_module("autoregressive.models.gpt")
            run = importlib.import_module("autoregressive.models.generate").generate
    finally:
        sys.path.remove(str(folder))
    arguments = gpt.ModelArgs(
        dim=shape.hidden_size,
        n_layer=shape.layers,
        n_head=shape.heads,
        vocab_size=shape.codes,
        num_classes=_CLASSES,
        block_size=shape.grid**2,
    )
    model = gpt.Transformer(arguments).eval().to(device, dtype)
    nn.init.normal_(model.output.weight, std=0.02)  # its own start is zero
    return lambda: run(model, labels.to(device), shape.grid**2, cfg_scale=_SCALE, temperature=1.0)
