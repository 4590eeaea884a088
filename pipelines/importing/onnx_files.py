"""Writes a tokenizer as two ONNX files. What they compute is compared with torch before they take their place."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

import codegrid
from codegrid.errors import CodegridError, require
from codegrid.names import shown
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.system.files import GO_ON, OutputError, replace_folder, sha256, write_json
from codegrid.pipelines.system.folders import what_it_holds
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.exporting import export_decode, export_encode

ENCODER, DECODER, ABOUT = "encoder.onnx", "decoder.onnx", "onnx.json"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# What rounding may change: it decides between two equally near codes. `verify-codes` allows the same share.
_MOST_DIFFERING = 0.001
_MOST_OF_A_PIXEL = 1e-3  # in [-1, 1]


def export_onnx(tokenizer: str, output_dir: str) -> Path:
    """Write a tokenizer as encoder.onnx and decoder.onnx, in float32, and onnx.json, which says what they are.

    The files take pictures of any number and any size in multiples of the downsampling factor. They are run by
    onnxruntime and compared with torch before they are put into the folder.

    Args:
        tokenizer: folder or Hub name.
        output_dir: folder of the three files; it may hold an older export.

    Raises:
        CodegridError: a package of the extra `export` is missing, a part of the tokenizer has no form in ONNX, or the
            files compute something else than the tokenizer.
        OutputError: the folder holds something else, or cannot be written.
    """
    folder = Path(output_dir)
    _check_target(folder)
    model = load_tokenizer(tokenizer, dtype=torch.float32)
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    require(
        not missing,
        f"ONNX files need the packages {', '.join(_PACKAGES)}, and {', '.join(missing)} is not installed.",
        'Install them: pip install "codegrid[export]".',
    )
    aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        _write(model, aside)
        difference = _compare(model, aside)
        write_json(aside / ABOUT, _about(model, tokenizer, aside, difference))
        replace_folder(aside, folder)
    except OSError as error:
        raise OutputError(
            f"Could not write the files into {shown(folder)}: {error.strerror or error}.", GO_ON
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(
        f"{ENCODER}, {DECODER} and {ABOUT} are in {shown(folder)}. Beside torch {difference['codes_differing']} of "
        f"{difference['codes']} codes differ, and pixels in [-1, 1] by at most {difference['pixels_differ_by']:.1e}."
    )
    return folder


def _check_target(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{shown(folder)} is a file.", "Choose another --output-dir.")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and (ABOUT not in names or any(not name.endswith((".onnx", ".onnx.data")) for name in names - {ABOUT})):
        raise OutputError(
            f"{shown(folder)} is no export of before: it holds {what_it_holds(folder)}.",
            "Choose another --output-dir.",
        )


def _write(model: VQModel, folder: Path) -> None:
    inputs = {ENCODER: ["images"], DECODER: ["codes", "labels"] if model.config.num_classes else ["codes"]}
    for name, export in ((ENCODER, export_encode), (DECODER, export_decode)):
        try:
            _save(export(model), folder / name, inputs[name], ["codes" if name == ENCODER else "images"])
        except OSError:
            raise
        except Exception as error:  # torch.export and its conversion have each their own
            first: BaseException = error
            while first.__cause__ is not None:
                first = first.__cause__
            reason = next(iter(str(first).splitlines()), type(first).__name__)
            raise CodegridError(
                f"The {name.removesuffix('.onnx')} of this tokenizer, with a quantizer of type "
                f"{model.config.quantizer_config.type!r}, has no form in ONNX: {reason.rstrip('.')}.",
                "CODEGRID_TRACEBACK=1 shows the operation; pipelines of this project compute with torch.",
            ) from error


def _save(program: ExportedProgram, path: Path, inputs: list[str], outputs: list[str]) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of torch, about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        written = torch.onnx.export(
            program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False, external_data=False
        )
    assert written is not None  # with dynamo=True it is a program
    written.save(path)


class OnnxTokenizer:
    """The files of `export_onnx`, run by onnxruntime on the CPU: `encode` and `decode` of numpy's arrays."""

    def __init__(self, folder: str | Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(Path(folder) / name, options, providers=["CPUExecutionProvider"])
            for name in (ENCODER, DECODER)
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        return self._encoder.run(None, {"images": images})[0]

    def decode(self, codes: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        return self._decoder.run(None, {"codes": codes, **({} if labels is None else {"labels": labels})})[0]


@torch.no_grad()
def _compare(model: VQModel, folder: Path) -> dict[str, Any]:
    """Codes and pixels of the files beside those of torch, on noise: two sizes, two numbers of pictures.

    Raises:
        CodegridError: they differ by more than rounding.
    """
    written, config = OnnxTokenizer(folder), model.config
    factor, classes = config.pixels_per_position, config.num_classes
    generator = torch.Generator().manual_seed(0)
    differing = number = 0
    largest = 0.0
    for batch, (height, width) in ((1, config.preprocessing_config.size), (3, (2 * factor, 5 * factor))):
        shape = (batch, config.backbone_config.in_channels, height, width)
        images = torch.rand(shape, generator=generator) * 2 - 1
        labels = torch.arange(batch) % classes if classes else None
        codes = model.encode(images)
        differing += int((written.encode(images.numpy()) != codes.numpy()).sum())
        number += codes.numel()
        pixels = written.decode(codes.numpy(), None if labels is None else labels.numpy())
        gap = np.abs(pixels - model.decode(codes, labels).numpy()).max()
        largest = float(np.maximum(largest, gap))  # a NaN stays
    require(
        differing <= max(1, _MOST_DIFFERING * number) and largest <= _MOST_OF_A_PIXEL,
        f"The files compute something else than the tokenizer: {differing} of {number} codes differ, and "
        f"pixels by up to {largest:.1e}.",
        "Nothing was written. Try another version of torch or onnxruntime.",
    )
    return {"codes": number, "codes_differing": differing, "pixels_differ_by": largest}


def _about(model: VQModel, name: str, folder: Path, difference: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime

    config, quantizer = model.config, model.config.quantizer_config
    factor, channels = config.pixels_per_position, config.backbone_config.in_channels
    codes = ["batch", "height / factor", "width / factor", *[quantizer.depth] * (quantizer.depth > 1)]
    images = {"name": "images", "dtype": "float32", "shape": ["batch", channels, "height", "width"]}
    codes = {"name": "codes", "dtype": "int64", "shape": codes}
    labels = [{"name": "labels", "dtype": "int64", "shape": ["batch"]}] if config.num_classes else []
    return {
        "tokenizer": Path(name).name,
        "fingerprint": model.fingerprint(),
        "codes_fingerprint": model.codes_fingerprint(),
        "pixel_range": [-1.0, 1.0],
        "channels": channels,
        "factor": factor,
        "image_size": list(config.preprocessing_config.size),
        "quantizer": quantizer.type,
        "codebook_size": quantizer.codebook_size,
        "codes_per_position": quantizer.depth,
        "classes": [(config.id2label or {})[label] for label in range(config.num_classes)],
        "encoder": {"file": ENCODER, "sha256": sha256(folder / ENCODER), "inputs": [images], "outputs": [codes]},
        "decoder": {
            "file": DECODER,
            "sha256": sha256(folder / DECODER),
            "inputs": [codes, *labels],
            "outputs": [images],
        },
        "beside_torch": difference,
        "made_with": {
            "codegrid": codegrid.__version__,
            "torch": str(torch.__version__),
            "onnxruntime": onnxruntime.__version__,
        },
    }
