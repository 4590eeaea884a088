"""Pictures and configs of runs of a fraction of a second, for tests outside of tests/pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.config import PriorTrainingConfig, TokenizerTrainingConfig
from codegrid.prior import PriorConfig
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig
from codegrid.tokenizer.losses import ObjectiveConfig


def write_pictures(folder: Path, number: int = 6, classes: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> Path:
    """`number` noisy 20x20 PNGs in a subfolder for each class."""
    random = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03}.png")
    return folder


def tokenizer_run(output_dir: Path, source: Path, **changes: Any) -> TokenizerTrainingConfig:
    """A config of stage one: 16x16 pictures, 4x4 codes of 16. `backbone` and `objective` add to the tiny ones."""
    backbone = {"resolution": 16, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": ()}
    backbone |= {"mid_attention": False, "z_channels": 8, "patch_size": 2, "norm_groups": 4}
    objective = {"perceptual_weight": 0.0, "adversarial_weight": 0.0, **changes.pop("objective", {})}
    given = {
        "data": DataConfig(str(source), validation_fraction=0.2),
        "preprocessing": Preprocessing(image_size=16),
        "backbone": BackboneConfig(**{**backbone, **changes.pop("backbone", {})}),
        "quantizer": VectorQuantizerConfig(codebook_size=16, code_dim=4),
        "objective": ObjectiveConfig(**objective),
        "max_steps": 2,
        "batch_size": 4,
        "mixed_precision": "no",
        "device": "cpu",
        "tracking": (),
        "num_pictures": 0,
    }
    return TokenizerTrainingConfig(output_dir=str(output_dir), **{**given, **changes})


def prior_run(output_dir: Path, codes: Path, **changes: Any) -> PriorTrainingConfig:
    """A config of stage two."""
    model = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    given = {"max_steps": 2, "batch_size": 4, "mixed_precision": "no", "device": "cpu", "tracking": ()}
    given |= {"num_samples": 0, "validation_fraction": 0.2, "model": PriorConfig(**model)}
    return PriorTrainingConfig(output_dir=str(output_dir), codes=str(codes), **{**given, **changes})
