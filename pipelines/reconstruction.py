"""Images -> reconstructions beside their originals, with their scores."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torchvision.utils import make_grid

from pipelines.data import DataConfig, DataError, open_images
from pipelines.devices import evaluating, make_accelerator
from pipelines.evaluation.reconstruction import evaluate_reconstruction, prepared_batches
from pipelines.files import write_atomically, write_json
from pipelines.loading import load_tokenizer
from tokenizer.images import to_pil


def reconstruct(
    tokenizer: str, data: DataConfig, output_dir: str, num_pictures: int = 32, batch_size: int = 32
) -> Path:
    """Write `reconstructions.png` (originals above reconstructions) and `scores.json` (over all images).

    Args:
        tokenizer: folder or Hub name.
        data: the images.
        output_dir: where the two files go.
        num_pictures: images in the picture.

    Raises:
        DataError: the images cannot be read as asked, or none of them could be used.
        LoadingError: the tokenizer cannot be loaded.
    """
    accelerator = make_accelerator()
    model = load_tokenizer(tokenizer).to(accelerator.device)
    source = open_images(data)
    batch = next((b for b in prepared_batches(model, iter(source), num_pictures) if b.records), None)
    if batch is None:
        raise DataError(f"None of the {len(source)} images of {data.source} could be used.")
    folder = Path(output_dir)
    with evaluating(model):
        images = batch.images.to(accelerator.device)
        pairs = torch.stack([images, model.decode(model.encode(images)).clamp(-1, 1)], dim=1)  # [N, 2, C, S, S]
    rows = pairs.split(8)  # eight images a line, each line twice: originals, then reconstructions
    lines = torch.cat([_padded(row, 8).transpose(0, 1).flatten(0, 1) for row in rows])
    grid = make_grid(lines, nrow=8, pad_value=1.0)
    picture = to_pil(grid[None].cpu())[0]
    write_atomically(folder / "reconstructions.png", lambda aside: picture.save(aside, format="PNG"))
    scores = asdict(evaluate_reconstruction(model, source, accelerator, batch_size))
    write_json(folder / "scores.json", scores)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if value is not None)
    print(f"{shown}\nThe picture and the scores are in {folder}.")
    return folder


def _padded(row: torch.Tensor, length: int) -> torch.Tensor:
    """White images behind a last, short line."""
    missing = length - len(row)
    return torch.cat([row, row.new_ones(missing, *row.shape[1:])]) if missing else row
