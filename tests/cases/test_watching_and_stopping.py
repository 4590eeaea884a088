"""Row "watching and stopping": the bar moves by codes, a callback is called a step, and a call stops when it raises."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codegrid.pipelines import ImageGenerationPipeline

SAVED = Path(__file__).parents[1] / "saved_by_be0a219"


class EnoughError(Exception):
    pass


@pytest.fixture(scope="module")
def pipe() -> ImageGenerationPipeline:
    return ImageGenerationPipeline.from_pretrained(SAVED / "pipeline")


# Images, batch size: a batch, several, a last one that is smaller; and one drawn.
DRAWN = tuple(int(n) for n in np.random.default_rng(11).integers(1, 9, 2))


@pytest.mark.parametrize(("images", "batch"), [(4, 4), (6, 2), (5, 3), DRAWN])
def test_the_bar_and_the_callback_count_codes(pipe, images, batch, capsys):
    seen: list[tuple[int, int]] = []
    made = pipe(num_images=images, batch_size=batch, seed=0, callback=lambda *step: seen.append(step))
    total = images * pipe.sequence.length
    steps = -(-images // batch) * pipe.sequence.length
    assert len(seen) == steps, DRAWN
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)
    assert {of for _, of in seen} == {total}
    again = pipe(num_images=images, batch_size=batch, seed=0, progress=False)
    assert torch.equal(made.codes, again.codes)
    assert not capsys.readouterr().err.count("image/s")


@pytest.mark.parametrize("after", [1, 3, 6])
def test_what_a_callback_raises_ends_the_call_and_harms_no_later_one(pipe, after):
    wanted = pipe(num_images=3, seed=1, progress=False, output_type="codes").codes
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == after:
            raise EnoughError

    given = []
    stream = pipe.stream(num_images=3, batch_size=1, seed=1, progress=False, output_type="codes", callback=stop)
    with pytest.raises(EnoughError):
        given.extend(part.codes for part in stream)
    assert len(seen) == after
    assert len(given) == (after - 1) // pipe.sequence.length  # whole batches only
    assert torch.equal(pipe(num_images=3, seed=1, progress=False, output_type="codes").codes, wanted)
