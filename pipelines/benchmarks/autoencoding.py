"""Encoding and decoding at 256x256, f16, beside the peers' own code: taming-transformers' with our weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from codegrid import tokenizer
from codegrid.pipelines.benchmarks.options import BesideBefore, BesidePeers
from codegrid.pipelines.benchmarks.peers import first_version, llamagen_model, taming_model
from codegrid.pipelines.benchmarks.report import Row, in_turn, print_row

_CH, _SIDE, _CODES, _WIDTH, _BATCHES = 128, 256, 16_384, 256, (1, 4)
_WIDTHS = {"batch": 5, "model": 14, "ms": 9, "spread": 6, "ratio": 6, "same": 7}
_OF_THIS_PROJECT = ("ours", "be0a219")  # names of models that have our interface


Runs = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True, kw_only=True)
class Encode(BesidePeers, BesideBefore):
    """Images of 256x256 to codes, f16.

    "same" is the share of codes that equal ours in float32.
    """

    name = "encode"
    parts = (tuple(map(str, _BATCHES)),)

    def measure(self) -> list[Row]:
        return _measure(self, _encoders)


@dataclass(frozen=True, kw_only=True)
class Decode(BesidePeers, BesideBefore):
    """Codes to images of 256x256, f16.

    "same" is the largest difference from our pixels in float32, in units of [-1, 1].
    """

    name = "decode"
    parts = (tuple(map(str, _BATCHES)),)

    def measure(self) -> list[Row]:
        return _measure(self, _decoders)


def _measure(asked: Encode | Decode, make: Callable[[dict[str, nn.Module], int, torch.device], Runs]) -> list[Row]:
    device = asked.accelerator().device
    models = _models(asked, device)
    print_row({}, _WIDTHS, header=True)
    rows = []
    for batch in (batch for batch in _BATCHES if asked.wants(str(batch))):
        with torch.no_grad():
            runs = make(models, batch, device)
            expected = runs["ours"]()
            timings = in_turn(runs, asked.repeats)
            for name, timing in timings.items():
                same = None if name == "LlamaGen" else _agreement(runs[name](), expected)
                row = {"batch": batch, "model": name, **timing.columns(), "same": same}
                print_row(row, _WIDTHS)
                rows.append(row)
    return rows


def _models(asked: Encode | Decode, device: torch.device) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    ours = _made(tokenizer)
    models: dict[str, nn.Module] = {}
    if asked.before:
        models |= _first_version(asked.before, ours, asked.precisions())
    if asked.taming:
        peer = taming_model(asked.taming, _CH, _SIDE, _CODES, _WIDTH, None)
        weights = {name: tensor for name, tensor in ours.state_dict().items() if name != "quantize.usage"}
        peer.load_state_dict(weights)  # strict: the same network, key by key
        models["taming"] = peer
    if asked.llamagen:
        models["LlamaGen"] = llamagen_model(asked.llamagen, _CH, _CODES)
    models["ours"] = ours
    if "bf16" in asked.precisions():
        models["ours bf16"] = ours
    if asked.compile:
        models["ours compiled"] = copy.deepcopy(ours)
        models["ours compiled"].encoder.compile()
        models["ours compiled"].decoder.compile()
    return {name: model.eval().to(device) for name, model in models.items()}


def _made(package: ModuleType) -> nn.Module:
    """The model of `codegrid.tokenizer`, or of an earlier one."""
    backbone = package.BackboneConfig(resolution=_SIDE, ch=_CH, attn_resolutions=(_SIDE // 16,))
    quantizer = package.VectorQuantizerConfig(codebook_size=_CODES, code_dim=_WIDTH, l2_normalize=False)
    preprocessing = package.Preprocessing(image_size=_SIDE)
    return package.VQModel(package.VQModelConfig(backbone=backbone, quantizer=quantizer, preprocessing=preprocessing))


def _first_version(folder: str, ours: nn.Module, precisions: tuple[str, ...]) -> dict[str, nn.Module]:
    """The first version's model, with our weights."""
    model = _made(first_version(folder, "tokenizer"))
    model.load_state_dict(ours.state_dict())  # strict
    return {"be0a219": model} | ({"be0a219 bf16": model} if "bf16" in precisions else {})


def _encoders(models: dict[str, nn.Module], batch: int, device: torch.device) -> Runs:
    images = torch.rand(batch, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(1)).to(device) * 2 - 1

    def encode(name: str, model: nn.Module) -> Tensor:
        if name.startswith(_OF_THIS_PROJECT):
            with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in name):
                return model.encode(images).flatten()
        return model.encode(images)[2][2].flatten()

    return {name: lambda name=name, model=model: encode(name, model) for name, model in models.items()}


def _decoders(models: dict[str, nn.Module], batch: int, device: torch.device) -> Runs:
    side = _SIDE // 16
    codes = torch.randint(_CODES, (batch, side, side), generator=torch.Generator().manual_seed(1)).to(device)

    def decode(name: str, model: nn.Module) -> Tensor:
        if name.startswith(_OF_THIS_PROJECT):
            with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in name):
                return model.decode(codes)
        if name == "LlamaGen":
            return model.decode_code(codes.flatten(), (batch, 8, side, side))
        return model.decode(model.quantize.get_codebook_entry(codes.flatten(), (batch, side, side, _WIDTH)))

    return {name: lambda name=name, model=model: decode(name, model) for name, model in models.items()}


def _agreement(found: Tensor, expected: Tensor) -> float:
    if not found.is_floating_point():
        return float((found == expected).float().mean())
    return float((found.float() - expected).abs().max())
