"""The part of a tokenizer's model card that describes the model itself."""

from __future__ import annotations

from codegrid.tokenizer.configuration import VQModelConfig

# Stands for the folder or repository to load; a push replaces it by the repository's name.
PLACEHOLDER = "FOLDER_OR_REPO"


def model_card(config: VQModelConfig) -> str:
    """A card for a tokenizer, from its config alone."""
    metadata = "library_name: codegrid\ntags:\n- codegrid\n- vqgan\n- image-tokenizer\n"
    return f"---\n{metadata}---\n\n# Image tokenizer\n\n{description(config)}\n{usage(config)}"


def description(config: VQModelConfig) -> str:
    """One sentence: which images become how many codes."""
    size, channels = config.preprocessing_config.size_text, config.backbone_config.in_channels
    shape = "x".join(map(str, config.codes_shape))
    origin = config.provenance or {}
    imported = f"Imported from the {origin['family']} checkpoint `{origin.get('file')}`.\n" if origin else ""
    return (
        f"Turns images of {size} pixels ({channels} channels) into {shape} codes of "
        f"{config.quantizer_config.codebook_size} ({config.quantizer['type']}), and codes into images.\n{imported}"
    )


def usage(config: VQModelConfig) -> str:
    """A snippet that runs as it is."""
    (height, width), channels = config.preprocessing_config.size, config.backbone_config.in_channels
    codes = "[B, h, w]" if config.quantizer_config.depth == 1 else "[B, h, w, depth]"
    labels = ", labels=torch.tensor([0])" if config.num_classes else ""  # config.id2label has their names
    return f"""## Use

```python
import torch
from codegrid.tokenizer import VQModel

model = VQModel.from_pretrained("{PLACEHOLDER}").eval()
images = torch.rand(1, {channels}, {height}, {width}) * 2 - 1  # yours: float [B, C, H, W] in [-1, 1]
with torch.no_grad():
    codes = model.encode(images)  # int64 {codes}
    reconstruction = model.decode(codes{labels})  # about [-1, 1]
```
"""
