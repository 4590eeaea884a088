import json

import pytest
import torch

from codegrid.prior.sequence import flat_rows, resolve_labels, to_codes, to_tokens
from codegrid.prior.sequence_config import SequenceConfig

CLASSES = ("cat", "dog", "7", "Ankle boot")


def conditional(**changes) -> SequenceConfig:
    return SequenceConfig(**{"codebook_size": 10, "grid_shape": (2, 3), "class_names": CLASSES, **changes})


def test_the_vocabulary_is_codes_then_classes_then_null():
    config = conditional()
    assert (config.num_classes, config.length, config.vocab_size) == (4, 6, 15)
    assert [config.class_token(label) for label in range(4)] == [10, 11, 12, 13]
    assert config.null_token == 14
    free = conditional(class_names=None)
    assert (free.num_classes, free.vocab_size, free.null_token) == (0, 11, 10)


def test_tokens_are_the_prefix_and_the_codes_in_raster_order():
    codes = torch.arange(6, dtype=torch.uint8).view(1, 2, 3).repeat(3, 1, 1)
    tokens = to_tokens(codes, torch.tensor([0, 3, 1]), torch.tensor([False, False, True]), conditional())
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[10, 0, 1, 2, 3, 4, 5], [13, 0, 1, 2, 3, 4, 5], [14, 0, 1, 2, 3, 4, 5]]


def test_depth_is_innermost_and_comes_back():
    config = conditional(depth=2, class_names=None, grid_shape=(1, 2))
    codes = torch.tensor([[[[1, 2], [3, 4]]]])  # [1, 1, 2, depth]
    tokens = to_tokens(codes, None, None, config)
    assert tokens.tolist() == [[10, 1, 2, 3, 4]]
    assert torch.equal(to_codes(tokens[:, 1:], config), codes)


def test_the_top_grid_can_come_before_the_whole_finer_one():
    config = conditional(codebook_size=1000, depth=5, class_names=None, grid_shape=(2, 3), order="grids")
    top, bottom = torch.randint(1000, (7, 2, 3)), torch.randint(1000, (7, 4, 6))
    codes = torch.empty(7, 2, 3, 5, dtype=torch.int64)  # a position's: its top code, and its 2 x 2 block row by row
    for row in range(2):
        for column in range(3):
            codes[:, row, column, 0] = top[:, row, column]
            for place in range(4):
                codes[:, row, column, 1 + place] = bottom[:, 2 * row + place // 2, 2 * column + place % 2]
    expected = torch.cat([top.flatten(1), bottom.flatten(1)], 1)
    for given in (codes, codes.flatten(1)):
        tokens = to_tokens(given, None, None, config)[:, 1:]
        assert torch.equal(tokens, expected)
    assert torch.equal(to_codes(tokens, config), codes)
    assert torch.equal(codes.flatten(1)[:, config.code_of_token], tokens)


def test_first_codes_of_grids_are_given_in_their_order():
    config = conditional(depth=5, order="grids")
    codes = torch.zeros(3, 6, dtype=torch.int64)
    assert torch.equal(flat_rows(codes, config), codes)
    with pytest.raises(ValueError, match=r"order is 'grids'. Give the first codes in that order, \[B, P\]"):
        flat_rows(torch.zeros(3, 1, 3, 5, dtype=torch.int64), config)
    assert flat_rows(torch.zeros(3, 1, 3, 5, dtype=torch.int64), conditional(depth=5)).shape == (3, 15)


def test_grids_come_back():
    codes = torch.randint(0, 10, (5, 2, 3))
    tokens = to_tokens(codes.flatten(1), torch.zeros(5, dtype=torch.int32), None, conditional())
    assert torch.equal(to_codes(tokens[:, 1:], conditional()), codes)


CODES = torch.zeros(2, 6, dtype=torch.int64)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("codes", "labels", "drop", "config", "message"),
    [
        (CODES + 10, LABELS, None, conditional(), "outside the codebook.* 10 .*0 to 9"),
        (CODES - 1, LABELS, None, conditional(), "outside the codebook"),
        (CODES[:, :5], LABELS, None, conditional(), r"shape \[B, 6\] or \[B, 2, 3\]"),
        (CODES.view(2, 3, 2), LABELS, None, conditional(), "shape"),
        (CODES.float(), LABELS, None, conditional(), "integers"),
        (CODES, torch.tensor([0, 4]), None, conditional(), "no class 4. Give a label from 0 to 3 .*Ankle boot"),
        (CODES, torch.tensor([-1, 0]), None, conditional(), "no class -1"),
        (CODES, torch.tensor([0]), None, conditional(), r"labels are .* Give integers of shape \[2\]"),
        (CODES, LABELS.float(), None, conditional(), "labels are .* Give integers"),
        (CODES, None, None, conditional(), "no labels are given"),
        (CODES, LABELS, None, conditional(class_names=None), "unconditional"),
        (CODES, LABELS, torch.tensor([0, 1]), conditional(), "drop is .* Give bool"),
    ],
)
def test_what_does_not_fit_is_refused(codes, labels, drop, config, message):
    with pytest.raises(ValueError, match=message):
        to_tokens(codes, labels, drop, config)


def test_tokens_that_are_no_codes_do_not_become_codes():
    with pytest.raises(ValueError, match="outside the codebook"):
        to_codes(torch.full((1, 6), 10), conditional())
    with pytest.raises(ValueError, match="without the prefix"):
        to_codes(torch.zeros(1, 7, dtype=torch.int64), conditional())


def test_labels_are_named_or_numbered():
    assert resolve_labels(["dog", 0, "1", "Ankle boot", torch.tensor(3).item()], conditional()) == [1, 0, 1, 3, 3]
    assert resolve_labels(["7"], conditional()) == [2]  # the class of that name, not the number
    assert resolve_labels("cat", conditional()) == [0]
    assert resolve_labels([], conditional(class_names=None)) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ankle boots", "Did you mean 'Ankle boot'.*cat, dog, 7, Ankle boot"),
        ("xyz", r"no class called 'xyz'\. The classes are cat"),
        (4, "no class 4"),
        ("-1", "no class -1"),
        (1.0, "neither the name nor the number"),
        (True, "neither the name nor the number"),
    ],
)
def test_unknown_labels_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        resolve_labels([value], conditional())


def test_an_unconditional_prior_has_no_labels():
    with pytest.raises(ValueError, match="unconditional"):
        resolve_labels(["cat"], conditional(class_names=None))
    with pytest.raises(ValueError, match="unconditional"):
        conditional(class_names=None).class_token(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"codebook_size": 0},
        {"codebook_size": 2.0},
        {"codebook_size": True},
        {"depth": 0},
        {"grid_shape": (2,)},
        {"grid_shape": (2, 0)},
        {"grid_shape": 4},
        {"class_names": ()},
        {"class_names": "cat"},
        {"class_names": ("a", "a")},
        {"class_names": ("a", 1)},
        {"tokenizer_fingerprint": 5},
        {"order": "levels"},
        {"order": "grids", "depth": 4},
    ],
)
def test_wrong_fields_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        conditional(**changes)


@pytest.mark.parametrize(
    "changes", [{}, {"class_names": None}, {"depth": 3, "tokenizer_fingerprint": "ab"}, {"depth": 5, "order": "grids"}]
)
def test_it_is_saved_whole_and_read_back(tmp_path, changes):
    config = conditional(**changes)
    path = config.save(tmp_path / "new")
    assert SequenceConfig.load(tmp_path / "new") == config
    config.save(tmp_path / "new")  # over the old one
    assert [file.name for file in path.parent.iterdir()] == ["sequence_config.json"]


def test_a_file_without_the_order_is_of_the_time_when_there_was_one(tmp_path):
    path = conditional(depth=5).save(tmp_path)
    values = json.loads(path.read_text())
    del values["order"]
    path.write_text(json.dumps(values))
    assert SequenceConfig.load(tmp_path) == conditional(depth=5, order="positions")


def test_a_wrong_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no sequence_config\.json in .*it is no prior"):
        SequenceConfig.load(tmp_path)
    path = conditional().save(tmp_path)
    good = json.loads(path.read_text())
    for values, message in [
        ({**good, "colour": 1}, "Unknown keys in .*sequence_config.json: colour"),
        ({key: good[key] for key in good if key != "depth"}, "missing from .*sequence_config.json: depth"),
        ({**good, "depth": "2"}, "sequence_config.json cannot be used .depth is '2'"),
        ([], "holds no JSON object"),
    ]:
        path.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=message):
            SequenceConfig.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"sequence_config\.json is not valid JSON"):
        SequenceConfig.load(tmp_path)
