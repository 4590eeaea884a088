"""The warnings of stage one: when they come, how often, what they name, and that a resume changes nothing of it."""

from __future__ import annotations

import math

import pytest

from codegrid.pipelines.training.tokenizer import train as train_tokenizer
from codegrid.pipelines.training.tokenizer.guards import Watched, largest_rise, possible_usage, replay, watch
from codegrid.tokenizer.losses import ObjectiveConfig


@pytest.fixture
def config(tokenizer_config, tmp_path):
    """A discriminator from step 20 on; a window of 10 steps has 10 * 4 * 16 codes, all 32 can be used."""
    return tokenizer_config(tmp_path / "run", objective={"adversarial_weight": 0.5, "adversarial_start": 20})


def told(config, lines: list[dict], watched: Watched | None = None) -> list[list[str]]:
    """The messages that come with each line."""
    watched, messages = watched or Watched(), []
    for line in lines:
        watched, found = watch(watched, line, config, codes_per_image=16)
        messages.append(found)
    return messages


def lines_of(name: str, values: list[float]) -> list[dict]:
    return [{"step": 10 * (index + 1), "kind": "train", name: value} for index, value in enumerate(values)]


def test_a_rise_after_the_onset_is_told_once(config):
    # The windows end at steps 10, 20 (the last before the onset), 30, ...
    lines = lines_of("l1", [5.0, 1.0, 1.4, 1.6, 1.2, 9.0])
    found = told(config, lines)
    assert [len(messages) for messages in found] == [0, 0, 0, 1, 0, 0]
    for part in ("step 40", "l1 is 1.60 times", "adversarial_weight", "adversarial_start", "adversarial_warmup"):
        assert part in found[3][0]
    # Stopped before or after the warning: it comes once.
    for cut in (1, 3, 4, 5):
        watched = replay([*lines[:cut], {"step": 10 * cut, "kind": "validation", "l1": 99.0}], config, 16)
        assert told(config, lines[cut:], watched) == found[cut:]


def test_a_term_that_started_within_the_last_window_before_is_not_compared(tokenizer_config, tmp_path):
    """Its mean there is over steps without it, too: it only seems to rise."""
    objective = {"adversarial_weight": 0.5, "adversarial_start": 20, "l2_weight": 1.0, "l2_start": 15}
    late = tokenizer_config(tmp_path / "run", objective=objective)
    assert not any(told(late, lines_of("l2", [0.0, 0.5, 1.0])))
    early = tokenizer_config(tmp_path / "run", objective={**objective, "l2_start": 10})
    assert told(early, lines_of("l2", [0.0, 0.5, 1.0]))[2]


def test_no_onset_no_warning(config, tokenizer_config, tmp_path):
    rising = lines_of("l1", [1.0, 2.0, 4.0, 8.0])
    assert not any(told(tokenizer_config(tmp_path / "run"), rising))  # no discriminator
    assert not any(told(config, rising[2:]))  # nothing to compare with
    assert not any(told(config, rising[:2]))


def test_the_rise_is_of_the_error_whatever_the_weight():
    objective = ObjectiveConfig(l1_weight=3.0, log_laplace_weight=0.5)
    before, now = {"l1": 3.0, "log_laplace": 0.5 * math.log(2 * 0.1)}, {"l1": 3.3, "log_laplace": 0.5 * math.log(0.34)}
    rise, name = largest_rise(before, now, objective)
    assert (rise, name) == (pytest.approx(1.7), "log_laplace")
    assert largest_rise({"l1": 1.0, "l2": 0.0}, {"l1": 2.0, "l2": 1.0}, objective) == (2.0, "l1")
    assert largest_rise({}, now, objective) == (0.0, "")


def test_low_usage_is_told_once_a_fall(config):
    lines = lines_of("code_usage", [0.05, 0.05, 0.1, 0.1, 0.5, 0.19, 0.2])
    found = told(config, lines)
    assert [len(messages) for messages in found] == [0, 0, 1, 0, 0, 1, 0]
    options = ("revive_below", "isotropy_weight", "commitment_weight", "optimizer.learning_rate", "codebook than 32")
    for part in ("step 30", "10.0%", *options):
        assert part in found[2][0]
    for cut in (2, 3, 5):
        assert told(config, lines[cut:], replay(lines[:cut], config, 16)) == found[cut:]


def test_usage_is_compared_with_what_the_window_could_use(tokenizer_config, tmp_path):
    assert [possible_usage(seen, 32) for seen in (0, 8, 32, 99)] == [0, 0.25, 1, 1]
    config = tokenizer_config(tmp_path / "run", batch_size=1, quantizer={"codebook_size": 1024})
    # Windows of 1 step: 16 codes, of which 3 or more in use are enough.
    lines = [{"step": step, "code_usage": used / 1024} for step, used in ((1, 16), (2, 16), (3, 4), (4, 3), (5, 16))]
    found = told(config, lines)
    assert [len(messages) for messages in found] == [0, 0, 0, 1, 0]
    assert "of 1.6% that a window of so few codes could use" in found[3][0]
    assert not any(told(config, [*lines[:3], {"step": 4, "skipped_steps": 1}]))  # nothing was seen at all


def test_a_run_says_it(tokenizer_config, tmp_path, capsys):
    changes = {"log_every": 1, "max_steps": 6, "quantizer": {"revive_below": 0.0}, "usage_warning": 0.99}
    objective = {"adversarial_weight": 1e3, "adversarial_start": 3, "adversarial_warmup": 0, "adaptive_weight": False}
    config = tokenizer_config(tmp_path / "run", objective=objective, onset_bound=1.0, **changes)
    train_tokenizer.train_tokenizer(config)
    printed = capsys.readouterr().out
    assert printed.count("before the discriminator started at step 3") == 1
    assert printed.count("of the codes are in use") >= 1


@pytest.mark.parametrize(("name", "value"), [("onset_bound", 0.9), ("usage_warning", 1.0)])
def test_bounds_that_make_no_sense_are_refused(name, value, tokenizer_config, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        tokenizer_config(tmp_path / "run", **{name: value})
