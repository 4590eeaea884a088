"""Model cards and data set cards: what a folder is, how it was made, and a snippet that runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from prior import SequenceConfig
from prior.codes import CodesManifest


def tokenizer_card(config: Any, source: str, scores: Mapping[str, float]) -> str:
    """Model card of a trained tokenizer; `config` is its VQModelConfig."""
    backbone, quantizer, preprocessing = config.backbone_config, config.quantizer_config, config.preprocessing_config
    shape = "x".join(map(str, config.codes_shape))
    labels = ", labels" if config.num_classes else ""  # int64 [B]: config.id2label names them
    codes = "[B, h, w]" if quantizer.depth == 1 else f"[B, h, w, {quantizer.depth}]"
    return _card(
        {"library_name": "codegrid", "tags": ["codegrid", "vqgan", "image-tokenizer"]},
        f"""# Image tokenizer

Turns images of {preprocessing.image_size}x{preprocessing.image_size} pixels ({backbone.in_channels} channels) into
{shape} codes of {quantizer.codebook_size}, and codes into images. Trained on `{source}`.

{_table(scores, "Validation")}
```python
from tokenizer import VQModel
model = VQModel.from_pretrained("FOLDER_OR_REPO").eval()
codes = model.encode(images)  # images float [B, {backbone.in_channels}, H, W] in [-1, 1] -> int64 {codes}
images = model.decode(codes{labels})
```
""",
    )


def prior_card(sequence: SequenceConfig, codes: str, scores: Mapping[str, float]) -> str:
    """Model card of a trained prior."""
    classes = f"{sequence.num_classes} classes" if sequence.num_classes else "no classes"
    return _card(
        {"library_name": "codegrid", "tags": ["codegrid", "llama", "image-prior"]},
        f"""# Prior of image codes

A Llama that predicts sequences of {sequence.length} image codes of {sequence.codebook_size}, with {classes}.
Trained on the codes `{codes}`, made by the tokenizer with fingerprint `{sequence.tokenizer_fingerprint}`.

{_table(scores, "Held-out codes")}
```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_REPO")  # sequence_config.json says what its tokens mean
```
""",
    )


def pipeline_card(sequence: SequenceConfig) -> str:
    """Model card of a generation pipeline."""
    labels = (
        f"class_labels=[{sequence.class_names[0]!r}], num_images_per_label=4"
        if sequence.class_names
        else "num_images=4"
    )
    names = f"Classes: {', '.join(sequence.class_names)}.\n" if sequence.class_names else ""
    return _card(
        {
            "library_name": "codegrid",
            "pipeline_tag": "unconditional-image-generation",
            "tags": ["codegrid", "image-generation"],
        },
        f"""# Image generation from codes

A prior samples {sequence.length} codes, a tokenizer's decoder turns them into an image. {names}
```python
from pipelines import ImageGenerationPipeline
pipe = ImageGenerationPipeline.from_pretrained("FOLDER_OR_REPO")
images = pipe({labels}, seed=0).images
```
""",
    )


def codes_card(manifest: CodesManifest) -> str:
    """Data set card of a code data set; its YAML tells `datasets` where the shards are."""
    height, width = manifest.grid_shape
    classes = f"{len(manifest.class_names)} classes" if manifest.class_names else "no labels"
    return _card(
        {
            "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
            "tags": ["codegrid", "image-codes"],
        },
        f"""# Image codes

{manifest.num_rows} rows from {manifest.num_images} images of `{manifest.source}`, {manifest.num_skipped} left out,
{classes}. A row is {height}x{width} codes of {manifest.codebook_size} in raster order ({manifest.depth} a position),
made by the tokenizer `{manifest.tokenizer}` with fingerprint `{manifest.tokenizer_fingerprint}`.
`manifest.json` has the rest.

```python
from datasets import load_dataset
codes = load_dataset("FOLDER_OR_REPO", split="train")
```
""",
    )


def _card(metadata: dict[str, Any], text: str) -> str:
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n{text}"


def _table(scores: Mapping[str, float], title: str) -> str:
    rows = [f"| {name} | {value:.4g} |" for name, value in scores.items() if math.isfinite(value)]
    return "\n".join([f"| {title} | |", "|---|---|", *rows, ""]) if rows else ""
