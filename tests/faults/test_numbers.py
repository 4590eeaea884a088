"""NaN and infinity in inputs, losses and gradients: no weight takes them in."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from fault_commands import PRIOR, TOKENIZER, lines, run, training
from PIL import Image
from safetensors.torch import load_file

JOBS = {"tokenizer": TOKENIZER, "prior": PRIOR}


def check_finite(folder) -> None:
    for path in [folder / "model.safetensors", *folder.glob("checkpoints/*/*.safetensors")]:
        if path.exists() and path.name != "window.safetensors":
            assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path


@pytest.mark.faults
@pytest.mark.parametrize("job", JOBS)
def test_a_bad_step_changes_nothing(job, clean, tmp_path, tally):
    with tally(f"NaN or infinity in a step's loss or gradient ({job})") as row:
        for where in ("loss", "gradient"):
            for value in ("nan", "inf"):
                folder = tmp_path / f"{where}-{value}"
                arguments = [*JOBS[job].split(), *training(clean, job), "--output-dir", folder, "--max-steps", 40]
                row.tries += 1
                run(f"train_{job}", *arguments, folder=tmp_path, fault=f"{where}:{value}:7:3")
                check_finite(folder)
                found = list(lines(folder / "metrics.jsonl"))
                assert sum(line.get("skipped_steps", 0) for line in found) == 3
                assert all(
                    math.isfinite(number) for line in found for number in line.values() if number != line["kind"]
                )
                row.survived += 1
        row.lost = "0 weights"


@pytest.mark.faults
@pytest.mark.parametrize("job", JOBS)
def test_bad_steps_without_end_stop_the_run(job, clean, tmp_path, tally):
    folder = tmp_path / "run"
    arguments = [*JOBS[job].split(), *training(clean, job), "--output-dir", folder]
    with tally(f"NaN in every step's loss ({job})") as row:
        row.tries += 1
        stopped = run(f"train_{job}", *arguments, folder=tmp_path, fault="loss:nan:7:1000", status=1)
        assert "20 steps in a row" in stopped.error
        check_finite(folder)
        run(f"train_{job}", *arguments, folder=tmp_path)  # goes on once the cause is mended
        check_finite(folder)
        row.survived, row.lost = 1, "0 weights"


@pytest.mark.faults
def test_pixels_that_are_not_numbers_are_left_out(clean, tmp_path, tally):
    images = shutil.copytree(clean / "images", tmp_path / "images")
    pixels = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for name, value in {"nan": np.nan, "inf": np.inf}.items():
        pixels[3, 3] = value
        Image.fromarray(pixels).save(images / "even" / f"{name}.tif")
    arguments = [*TOKENIZER.split(), "--data.source", images, "--output-dir", tmp_path / "run", "--max-steps", 40]
    with tally("NaN or infinity in a picture") as row:
        row.tries = 2
        run("train_tokenizer", *arguments, folder=tmp_path)
        check_finite(tmp_path / "run")
        skipped = (tmp_path / "run" / "skipped.txt").read_text()
        row.survived = sum(f"even/{name}.tif\tunsupported_depth" in skipped for name in ("nan", "inf"))
        assert row.survived == 2, skipped
        row.lost = "0 weights"
