"""Row "kinds of arguments": numbers, labels, seeds, generators and paths of every library's kind."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline

SAVED = Path(__file__).parents[1] / "saved_by_be0a219"


@pytest.fixture(scope="module")
def pipe() -> ImageGenerationPipeline:
    return ImageGenerationPipeline.from_pretrained(SAVED / "pipeline")  # a path, not a string


def codes(pipe: ImageGenerationPipeline, **arguments) -> torch.Tensor:
    return pipe(**{"output_type": "codes", "progress": False, "seed": 5, **arguments}).codes


KINDS = {
    "numpy": lambda number: np.int64(number),
    "an array of no dimension": lambda number: np.array(number),
    "a tensor of no dimension": lambda number: torch.tensor(number),
    "numpy's smallest": lambda number: np.uint8(number),
}
DRAWN = list(KINDS)[int(np.random.default_rng(3).integers(len(KINDS)))]


@pytest.mark.parametrize("kind", [*KINDS, f"drawn: {DRAWN}"])
def test_a_whole_number_of_any_kind_is_that_number(pipe, kind):
    of = KINDS[kind.removeprefix("drawn: ")]
    assert torch.equal(codes(pipe, num_images=of(3), seed=of(9)), codes(pipe, num_images=3, seed=9))
    assert torch.equal(codes(pipe, class_labels=of(1)), codes(pipe, class_labels=1))
    assert torch.equal(codes(pipe, class_labels=[of(1), "disc"]), codes(pipe, class_labels=[1, 0]))
    assert len(codes(pipe, class_labels="disc", num_images_per_label=of(2), batch_size=of(1))) == 2


def test_labels_in_one_piece_and_a_seed_an_image(pipe):
    wanted = codes(pipe, class_labels=[1, 0, 1])
    for labels in (torch.tensor([1, 0, 1]), np.array([1, 0, 1]), np.array(["square", "disc", "square"]), (1, 0, 1)):
        assert torch.equal(codes(pipe, class_labels=labels), wanted)
    each = codes(pipe, class_labels=[0, 0], seed=[7, 11])
    for index, seed in enumerate((7, 11)):
        assert torch.equal(each[index], codes(pipe, class_labels=0, seed=seed)[0])
    assert torch.equal(each, codes(pipe, class_labels=[0, 0], seed=torch.tensor([7, 11])))
    given = codes(pipe, class_labels=[0, 1])
    for prefix in (given[:, :1], given[:, :1].numpy(), given[:, :1].tolist()):
        assert torch.equal(codes(pipe, class_labels=[0, 1], prefix_codes=prefix), given)


WRONG = {
    "a bool as a number": ({"num_images": True}, "num_images"),
    "a fraction": ({"num_images": 2.5}, "num_images"),
    "a word": ({"num_images": "two"}, "num_images"),
    "several numbers": ({"num_images": np.array([1, 2])}, "num_images"),
    "nothing": ({"num_images": 0}, "num_images"),
    "a fraction of a batch": ({"num_images": 2, "batch_size": 0.5}, "batch_size"),
    "too few seeds": ({"num_images": 3, "seed": [1, 2]}, "2 seeds"),
    "a seed that is a fraction": ({"num_images": 1, "seed": 1.5}, "seed"),
    "seeds as generators": ({"num_images": 2, "generator": [1, 2], "seed": None}, "int"),
    "a label that is a fraction": ({"class_labels": torch.tensor([0.5])}, "class label"),
    "labels and a number": ({"class_labels": 1, "num_images": 2}, "both"),
    "a form that there is not": ({"num_images": 1, "output_type": "png"}, "pil"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_such_thing_is_refused_by_name(pipe, arguments, words):
    with pytest.raises(CodegridError, match=words) as error:
        codes(pipe, **arguments)
    assert error.value.what.endswith(".")
    assert error.value.remedy
