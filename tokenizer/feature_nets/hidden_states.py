"""Feature maps of a transformers model: the hidden states after its blocks, as [B, D, h, w]."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoModel

from codegrid.errors import CodegridError
from codegrid.tokenizer.feature_nets.weights import WeightsError

_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]


def model_folder(net: str, revision: str | None, option: str) -> Path:
    """The folder itself, or the snapshot of the Hub repository with that name.

    Raises:
        WeightsError: it is neither; the message names the option.
    """
    if Path(net).is_dir():
        return Path(net)
    try:
        return Path(snapshot_download(net, revision=revision, allow_patterns=_FILES))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise WeightsError(
            f"{option} {net!r} is neither a folder here nor a repository that the Hub gives "
            f"({type(error).__name__}: {reason}).",
            f"Download it on a machine with internet (hf download {net} --local-dir FOLDER) and set {option} to "
            "that folder.",
        ) from error


class HiddenStates(nn.Module):
    """Normalised images [B, 3, H, W] -> the hidden states after chosen blocks, as maps [B, D, h, w]. Frozen.

    Tokens before the patches (class, registers) are left out. H and W are resized to multiples of the patch size.

    Args:
        folder: has config.json and safetensors of any `AutoModel` image model that gives hidden states.
        blocks: block numbers from 1; 0 is the embeddings. None takes four evenly spaced blocks, including the last.
        option: the path of the config in error messages.

    Attributes:
        mean, std: mean and deviation of the model's input in [0, 1], from preprocessor_config.json; None without it.

    Raises:
        RuntimeError: the folder has no such model.
        CodegridError: the model has no such block.
    """

    def __init__(self, folder: Path, blocks: tuple[int, ...] | None, option: str) -> None:
        super().__init__()
        self.model = _load(folder, option)
        number = self.model.config.num_hidden_layers if hasattr(self.model.config, "num_hidden_layers") else None
        number = number or len(getattr(self.model.config, "depths", ()))
        self.blocks = blocks or tuple(sorted({max(1, round(number * part / 4)) for part in range(1, 5)}))
        if not number or not all(0 <= block <= number for block in self.blocks):
            raise CodegridError(
                f"{option} asks for the blocks {self.blocks}, and {folder} has the blocks 1 to {number}.",
                "Choose among these.",
            )
        self.patch_size = int(getattr(self.model.config, "patch_size", None) or 1)
        parameters = inspect.signature(self.model.forward).parameters
        self.extra = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        processor = folder / "preprocessor_config.json"
        values = json.loads(processor.read_text(encoding="utf-8")) if processor.is_file() else {}
        self.mean, self.std = values.get("image_mean"), values.get("image_std")
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = (max(1, round(side / self.patch_size)) for side in images.shape[-2:])
        size = (height * self.patch_size, width * self.patch_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        output = self.model(pixel_values=images, output_hidden_states=True, **self.extra)
        states = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
        return [_as_map(states[block], height, width) for block in self.blocks]

    def train(self, mode: bool = True) -> HiddenStates:
        return super().train(False)


def _as_map(state: Tensor, height: int, width: int) -> Tensor:
    """[B, D, h, w] unchanged, or [B, extra + h * w, D] without the extra tokens before the patches -> [B, D, h, w]."""
    if state.dim() == 4:
        return state
    return state[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


def _load(folder: Path, option: str) -> Any:
    try:
        # Gradient penalties differentiate twice, which fused attention kernels do not support.
        options = {"attn_implementation": "eager", "use_safetensors": True, "dtype": torch.float32}
        # False refuses a folder's own code. By default transformers would ask on the terminal whether to run it.
        with torch.random.fork_rng(devices=[]):  # a missing pooler would draw random weights
            model, info = AutoModel.from_pretrained(
                folder, output_loading_info=True, trust_remote_code=False, **options
            )
    except Exception as error:  # transformers, safetensors and json raise their own kinds
        raise WeightsError(
            f"{option}: {folder} holds no model that transformers' AutoModel reads ({error}).",
            "Name a folder of transformers with config.json and safetensors.",
        ) from error
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise WeightsError(
            f"{option}: {folder} lacks {len(missing)} weights, the first is {missing[0]}.",
            "Download the model again, whole.",
        )
    return model
