"""Makes the pipeline that comes with the package out of a folder of `codegrid quickstart`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.artifacts.places import without_places
from codegrid.pipelines.artifacts.shipped import EXPECTED_NAME
from codegrid.pipelines.data.sources import EMBEDDED_IMAGES
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.system.files import write_atomically, write_text
from codegrid.pipelines.system.numbers import number
from codegrid.tokenizer.images import to_uint8

_EXPECTED_IMAGES = 20
_CARD = """---
license: mit
library_name: codegrid
---

# Fashion-MNIST, 32x32: the pipeline that comes with Codegrid

    codegrid generate --pipeline fashion-mnist --output-dir runs/samples
    codegrid demo --pipeline fashion-mnist

Grey pictures of ten kinds of clothes, each of {length} codes of {codebook_size}, drawn by a small Llama. It shows how
the parts work together, and is no good model: it learned for a few minutes, from 5,500 pictures.

Made by `codegrid quickstart --seed {seed}` ({machine}) and `codegrid dev ship-pipeline`, which rounds the prior's
weights to 16 bits so that the wheel stays small. {scores}
`expected.npz` has codes and the pictures that they decode to.

The pictures are of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747), Copyright Zalando SE, MIT License;
the weights come under the same licence (LICENSE).
"""


def ship_pipeline(quickstart: str, output_dir: str) -> Path:
    """Write a quickstart's pipeline as it comes with the package: rounded prior, card, licence, expected pictures.

    Args:
        quickstart: folder of a finished `codegrid quickstart`.
        output_dir: the folder, pipelines/artifacts/shipped/fashion-mnist in a clone.

    Raises:
        CodegridError: the quickstart is not finished.
        LoadingError: its pipeline cannot be loaded.
    """
    made = Path(quickstart)
    require(
        (made / "report.json").is_file(),
        f"{shown(made)} is no finished quickstart: it has no report.json.",
        "Run `codegrid quickstart` first.",
    )
    pipe = ImageGenerationPipeline.from_pretrained(made / "pipeline")
    with torch.no_grad():
        for weight in pipe.prior.parameters():
            weight.copy_(weight.half().float())
    pipe.cards = {part: without_places("README.md", card) for part, card in pipe.cards.items()}
    folder = pipe.save_pretrained(output_dir)
    codes = pipe(num_images=_EXPECTED_IMAGES, seed=0, output_type="codes", progress=False).codes  # [N, h, w]
    pictures = to_uint8(pipe.decode(codes)).numpy()  # [N, S, S, C]
    stored = {"codes": codes.numpy().astype(np.uint16), "pictures": pictures}
    write_atomically(folder / EXPECTED_NAME, lambda aside: _save(aside, stored))
    shutil.copyfile(EMBEDDED_IMAGES.with_name("FASHION_MNIST_LICENSE.txt"), folder / "LICENSE")
    report = json.loads((made / "report.json").read_text(encoding="utf-8"))
    seed = json.loads((made / "tokenizer" / "training_config.json").read_text(encoding="utf-8"))["seed"]
    write_text(folder / "README.md", _card(pipe, report, seed))
    return folder


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _card(pipe: ImageGenerationPipeline, report: dict, seed: int) -> str:
    reconstruction, generation, machine = report["reconstruction"], report["generation"], report["machine"]
    scores = (
        f"On the 500 pictures that it did not see: PSNR {number(reconstruction['psnr'])} dB, SSIM "
        f"{number(reconstruction['ssim'])}; of its samples {generation['class_agreement']:.1%} are recognised as their "
        f"class, of real pictures {generation['class_agreement_of_real_images']:.1%}, at "
        f"guidance {number(generation['guidance_scale'])}, temperature {number(generation['temperature'])} and top-p "
        f"{number(generation['top_p'])}."
    )
    return _CARD.format(
        length=pipe.sequence.length,
        codebook_size=pipe.sequence.codebook_size,
        scores=scores,
        seed=seed,
        machine=f"{machine['cpu']}, torch {machine['torch'].partition('+')[0]}",
    )
