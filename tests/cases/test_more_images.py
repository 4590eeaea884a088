"""Row "a command that failed": more images of the same seed, and claims without images or codes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from codegrid.pipelines.generation.to_folder import claim_images
from codegrid.pipelines.system.files import OutputError

SETTINGS = {"tokenizer_fingerprint": "a", "prior_fingerprint": "b", "pipeline": "p", "labels": None, "seed": 0}


def settings(number: int, **changes) -> dict:
    found = {**SETTINGS, "num_images": number, **changes}
    return {**found, "labels": [place % 3 for place in range(number)]} if changes.get("labels") else found


def write(folder: Path, number: int) -> None:
    for place in range(number):
        (folder / f"{place:06}.png").write_bytes(b"png")


@pytest.mark.parametrize("labels", [None, True])
@pytest.mark.parametrize("numbers", [(4, 8), (1, 2, 3), (5, 5), 7])
def test_more_of_the_same_seed_are_added(labels, numbers, tmp_path):
    if isinstance(numbers, int):
        draw = random.Random(numbers)
        numbers = tuple(sorted(draw.sample(range(1, 50), 3)))
    for before, number in zip((0, *numbers), numbers, strict=False):
        told = claim_images(tmp_path / "out", settings(number, labels=labels))
        assert told == "" if before in (0, number) else f"has {before} of these images already" in told, numbers
        write(tmp_path / "out", number)
    with pytest.raises(OutputError, match=r"different: .*num_images"):
        claim_images(tmp_path / "out", settings(numbers[0] - 1, labels=labels))


@pytest.mark.parametrize("other", [{"seed": 1}, {"pipeline": "q"}, {"prior_fingerprint": "c"}, {"weights": "int8"}])
def test_others_are_not_added_to_and_an_empty_claim_is_replaced(other, tmp_path):
    claim_images(tmp_path / "out", settings(4))
    assert "made no image: this one takes its place" in claim_images(tmp_path / "out", settings(4, **other))
    write(tmp_path / "out", 1)
    with pytest.raises(OutputError, match=rf"different: .*{next(iter(other))}"):
        claim_images(tmp_path / "out", settings(8))
