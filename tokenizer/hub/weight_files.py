"""Checks a folder's weight files before anything is loaded or allocated."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from codegrid.downloads import AGAIN, weight_files
from codegrid.errors import CodegridError, require


def check_weight_files(folder: Path, model: nn.Module) -> None:
    """Refuse weights of another model, and files outside of the folder (transformers would follow `../`).

    Args:
        model: made from the folder's config on the meta device, so that nothing of a made-up size is allocated.

    Raises:
        CodegridError: a file is missing, not whole, damaged or outside of the folder, or names or shapes are not the
            model's.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt") as tensors:
                found.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise CodegridError(f"{file} is damaged: {error}.", AGAIN) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = {
        "missing_keys": sorted(set(expected) - set(found)),
        "unexpected_keys": sorted(set(found) - set(expected)),
        "mismatched_keys": [
            f"{name}: {list(found[name])} in the file, {list(expected[name])} by config.json"
            for name in sorted(set(found) & set(expected))
            if found[name] != expected[name]
        ],
    }
    wrong = {key: names for key, names in wrong.items() if names}
    require(
        not wrong,
        f"The weights in {folder} do not fit the tokenizer's config.json: {wrong}.",
        "Save or download the tokenizer again, weights and config.json together.",
    )
