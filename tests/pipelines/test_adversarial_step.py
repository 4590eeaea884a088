"""Which terms a step has: each from its own start on, and the discriminator's not before the discriminator's."""

from __future__ import annotations

from pipelines.training.train_tokenizer import train_tokenizer


def test_terms_start_at_their_steps_and_are_logged_by_their_names(tokenizer_config, tmp_path, read_metrics):
    objective = {
        "l2_weight": 1.0,
        "l2_start": 1,
        "adversarial_weight": 0.5,
        "adversarial_start": 2,
        "adversarial_warmup": 0,
        "gradient_penalty_weight": 1.0,
        "gradient_penalty_start": 3,
        "r1_weight": 1.0,  # its start of 0 is before the discriminator's
        "lecam_weight": 0.1,
        "lecam_start": 4,
    }
    run = train_tokenizer(tokenizer_config(tmp_path / "run", max_steps=5, log_every=1, objective=objective))
    lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    terms = {"l1", "l2", "adversarial", "discriminator", "gradient_penalty", "r1", "lecam"}
    found = [terms & set(line) for line in lines]
    assert found[0] == {"l1"}
    assert found[1] == {"l1", "l2"}
    assert found[2] == {"l1", "l2", "adversarial", "discriminator", "r1"}
    assert found[3] == found[2] | {"gradient_penalty"}
    assert found[4] == terms
