"""Training a tokenizer: what a run leaves behind, and that breaking it off changes nothing."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image

from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.training import run as run_module
from codegrid.pipelines.training.checkpoint import load_newest_checkpoint, optimizer_tensors
from codegrid.pipelines.training.ema import EMA
from codegrid.pipelines.training.learner import Learner
from codegrid.pipelines.training.run import TrainingError
from codegrid.pipelines.training.tokenizer import step as tokenizer_step
from codegrid.pipelines.training.tokenizer import train as train_tokenizer
from codegrid.tokenizer import Preprocessing, VQModel
from codegrid.tokenizer.discriminators import PatchGANConfig
from codegrid.tokenizer.losses import GAN_LOSSES


class Broken(Exception):  # noqa: N818
    """Stands for whatever kills a run between two steps."""


def break_off() -> None:
    raise Broken


def test_a_run_leaves_a_model_metrics_pictures_and_events(tokenizer_folder, read_metrics):
    model = VQModel.from_pretrained(tokenizer_folder)
    codes = model.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert codes.shape == (2, 4, 4)
    assert not model.training
    lines = read_metrics(tokenizer_folder)
    assert [(line["step"], line["kind"]) for line in lines] == [(2, "validation"), (3, "train"), (3, "validation")]
    assert {"l1", "codebook", "commitment", "grad_norm", "learning_rate", "code_usage"} <= set(lines[1])
    assert lines[-1]["num_images"] == 4  # a fifth of 18
    assert lines[-1]["psnr"] > 0
    assert Image.open(tokenizer_folder / "pictures" / "reconstructions-000000003.png").size[0] > 32
    assert list((tokenizer_folder / "tensorboard").rglob("events.out.tfevents.*"))
    kept = sorted(path.name for path in (tokenizer_folder / "checkpoints").iterdir())
    assert kept == ["step-000000002", "step-000000003"]  # before each evaluation, and at the end
    assert "PSNR" in (tokenizer_folder / "README.md").read_text().upper()


def test_a_finished_run_changes_nothing_when_run_again(tokenizer_config, tmp_path):
    config = tokenizer_config(tmp_path / "run")
    folder = train_tokenizer.train_tokenizer(config)
    before = {name: (folder / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl", "config.json")}
    train_tokenizer.train_tokenizer(config)
    assert before == {name: (folder / name).read_bytes() for name in before}


@pytest.mark.parametrize("codebook_update", ["gradient", "ema"])
def test_a_run_that_was_broken_off_equals_one_that_was_not(
    tokenizer_config, tmp_path, at_step, monkeypatch, read_metrics, codebook_update
):
    """Killed before the discriminator starts, stopped by SIGTERM after it, and gone on with by two worker processes."""
    changes = {
        "max_steps": 9,
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "log_every": 3,
        "eval_every": 4,  # each saves a checkpoint as well
        "save_every": 2,
        "backbone": {"dropout": 0.3},
        "quantizer": {"revive_below": 0.99, "revive_decay": 0.5, "codebook_update": codebook_update},
        "objective": {
            "adversarial_weight": 0.5,
            "adversarial_start": 3,
            "adversarial_warmup": 1,
            "lecam_weight": 0.1,
            "lecam_decay": 0.5,
            "gradient_penalty_weight": 1.0,
            "r1_weight": 1.0,
            "r1_every": 2,
        },
    }
    moved = []
    copy_rows = EMA.copy_rows
    monkeypatch.setattr(EMA, "copy_rows", lambda ema, name, rows: (moved.append(len(rows)), copy_rows(ema, name, rows)))
    whole = train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "whole", **changes))
    assert sum(moved) > 0  # codes were revived, or this would not test that they are

    config = tokenizer_config(tmp_path / "parts", **changes)
    with monkeypatch.context():
        at_step(train_tokenizer, "train_step", 3, break_off)
        with pytest.raises(Broken):
            train_tokenizer.train_tokenizer(config)
    assert read_metrics(tmp_path / "parts")[-1]["step"] == 3  # beyond the checkpoint of step 2: to be forgotten

    before = signal.getsignal(signal.SIGTERM)
    at_step(train_tokenizer, "train_step", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        train_tokenizer.train_tokenizer(config)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert load_newest_checkpoint(tmp_path / "parts" / "checkpoints").step == 5  # of an odd step: none was due

    # Ctrl-C reaches the workers too: they leave it to the training process.
    interrupt = lambda: [os.kill(child.pid, signal.SIGINT) for child in multiprocessing.active_children()]  # noqa: E731
    at_step(train_tokenizer, "train_step", 0, interrupt)
    parts = train_tokenizer.train_tokenizer(replace(config, num_workers=2))

    for name in ("model.safetensors", "metrics.jsonl", "config.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    one, other = (load_newest_checkpoint(folder / "checkpoints") for folder in (whole, parts))
    assert one.step == other.step == 9
    assert set(one.groups) == set(other.groups)
    assert {"model", "optimizer", "ema", "discriminator", "discriminator_optimizer", "running_logits"} <= set(
        one.groups
    )
    for group, tensors in one.groups.items():
        assert all(torch.equal(tensor, other.groups[group][name]) for name, tensor in tensors.items()), group


def test_the_discriminator_starts_at_its_step(tokenizer_config, tmp_path, read_metrics):
    objective = {"adversarial_weight": 0.5, "adversarial_start": 2, "adversarial_warmup": 1}
    config = tokenizer_config(tmp_path / "run", max_steps=4, log_every=1, objective=objective)
    lines = [line for line in read_metrics(train_tokenizer.train_tokenizer(config)) if line["kind"] == "train"]
    assert ["adversarial" in line for line in lines] == [False, False, True, True]
    assert ["discriminator" in line for line in lines] == [False, False, True, True]
    assert lines[2]["discriminator"] == pytest.approx(1.0, abs=0.2)  # hinge of logits near 0


@pytest.mark.parametrize("gan_loss", GAN_LOSSES)
def test_every_gan_loss_trains_with_the_terms_that_are_on(gan_loss, tokenizer_config, tmp_path, read_metrics):
    objective = {"adversarial_weight": 0.5, "adversarial_start": 0, "gan_loss": gan_loss}
    objective |= {"gradient_penalty_weight": 10.0} if gan_loss == "wasserstein" else {"r1_weight": 2.0, "r1_every": 2}
    objective |= {"lecam_weight": 0.1} if gan_loss == "hinge" else {}
    config = tokenizer_config(tmp_path / "run", max_steps=3, log_every=1, objective=objective)
    lines = [line for line in read_metrics(train_tokenizer.train_tokenizer(config)) if line["kind"] == "train"]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 0]
    assert ["gradient_penalty" in line for line in lines] == [gan_loss == "wasserstein"] * 3
    assert ["r1" in line for line in lines] == ([False] * 3 if gan_loss == "wasserstein" else [True, False, True])
    assert ["lecam" in line for line in lines] == [False, gan_loss == "hinge", gan_loss == "hinge"]


def test_lecams_running_means_are_those_of_the_logged_logits(tokenizer_config, tmp_path, read_metrics):
    objective = {"adversarial_weight": 0.5, "adversarial_start": 1, "lecam_weight": 0.1, "lecam_decay": 0.75}
    config = tokenizer_config(tmp_path / "run", max_steps=4, log_every=1, objective=objective)
    lines = [line for line in read_metrics(train_tokenizer.train_tokenizer(config)) if "logits_real" in line]
    running = load_newest_checkpoint(tmp_path / "run" / "checkpoints").groups["running_logits"]
    for name in ("real", "fake"):
        first, second, third = (line[f"logits_{name}"] for line in lines)
        expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        assert running[name].item() == pytest.approx(expected, rel=1e-5)


def test_bad_images_are_skipped_and_listed(tokenizer_config, pictures, tmp_path):
    source = shutil.copytree(pictures, tmp_path / "pictures")
    whole = (source / "noise" / "0.png").read_bytes()
    (source / "noise" / "torn.png").write_bytes(whole[: len(whole) // 2])
    (source / "noise" / "text.jpg").write_text("no picture")
    Image.new("RGB", (8, 8)).save(source / "gradient" / "small.png")
    data = DataConfig(str(source), validation_fraction=0)
    config = tokenizer_config(tmp_path / "run", data=data, batch_size=21, max_steps=1, ema_decay=0.0)
    folder = train_tokenizer.train_tokenizer(config)  # one epoch: every image is asked for
    listed = dict(line.split("\t") for line in (folder / "skipped.txt").read_text().splitlines())
    assert sorted(listed) == ["gradient/small.png", "noise/text.jpg", "noise/torn.png"]
    assert all(": " in reason for reason in listed.values())


def test_skipped_images_stay_listed_after_a_resume(tokenizer_config, pictures, tmp_path, at_step):
    source = shutil.copytree(pictures, tmp_path / "pictures")
    good = (source / "noise" / "0.png").read_bytes()
    for name in ("one.jpg", "two.jpg"):
        (source / "noise" / name).write_bytes(b"?" * len(good))
    changed_at = (source / "noise" / "one.jpg").stat().st_mtime_ns
    data = DataConfig(str(source), validation_fraction=0)
    config = tokenizer_config(tmp_path / "run", data=data, batch_size=20, max_steps=2, log_every=1, save_every=1)
    at_step(train_tokenizer, "train_step", 1, break_off)
    with pytest.raises(Broken):
        train_tokenizer.train_tokenizer(config)
    # Mended, so that it is not found bad again; with the same size and time, or the run would not go on with it.
    (source / "noise" / "one.jpg").write_bytes(good)
    os.utime(source / "noise" / "one.jpg", ns=(changed_at, changed_at))
    listed = (train_tokenizer.train_tokenizer(config) / "skipped.txt").read_text()
    assert "noise/one.jpg" in listed
    assert "noise/two.jpg" in listed


def test_gradients_that_are_not_finite_change_no_weight_and_end_the_run(tokenizer_config, tmp_path, monkeypatch):
    states = []
    original, step_of = tokenizer_step.reconstruction_terms, train_tokenizer.train_step

    def broken(*args):
        return {name: term * math.nan for name, term in original(*args).items()}

    def watched(learners, objective, micro_batches, *args, **labels):
        model = learners.model.module
        states.append({name: value.clone() for name, value in model.named_parameters()})
        if len(states) > 2:  # what a broken input gives: features that are NaN
            micro_batches = [images * math.nan for images in micro_batches]
        values = step_of(learners, objective, micro_batches, *args, **labels)
        states[-1] = (states[-1], {name: value.clone() for name, value in model.named_parameters()})
        return values

    monkeypatch.setattr(tokenizer_step, "reconstruction_terms", broken)
    monkeypatch.setattr(train_tokenizer, "train_step", watched)
    monkeypatch.setattr(run_module, "_MOST_BAD_STEPS", 4)
    config = tokenizer_config(
        tmp_path / "run", max_steps=9, quantizer={"revive_below": 0.999, "revive_decay": 0.5}, save_every=1
    )
    with pytest.raises(TrainingError, match=r"4 steps in a row up to step 3 .*(gradient|noise|stripes)/\d.png"):
        train_tokenizer.train_tokenizer(config)
    assert len(states) == 4
    for before, after in states:
        assert all(torch.equal(before[name], after[name]) for name in before)
    # The checkpoint that was saved meanwhile, before the optimizer had made a step, can be gone on from.
    monkeypatch.setattr(tokenizer_step, "reconstruction_terms", original)
    monkeypatch.setattr(train_tokenizer, "train_step", step_of)
    VQModel.from_pretrained(train_tokenizer.train_tokenizer(config))


def everything(learners) -> dict[str, torch.Tensor]:
    """All that training carries from step to step, but for the metrics' window."""
    groups = {
        "model": learners.model.module.state_dict(),
        "moments": optimizer_tensors(learners.model.optimizer, learners.model.module),
        "discriminator": learners.discriminator.module.state_dict(),
        "its moments": optimizer_tensors(learners.discriminator.optimizer, learners.discriminator.module),
        "average": learners.ema.weights,
        "running logits": learners.running_logits,
    }
    return {f"{group} {name}": value.clone() for group, state in groups.items() for name, value in state.items()}


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("fault", ["reconstruction_terms", "discriminator_terms", "images"])
def test_a_step_with_gradients_that_are_not_finite_changes_nothing(
    fault, norm, tokenizer_config, tmp_path, monkeypatch, read_metrics
):
    """NaN in the generator's terms alone, in the discriminator's alone, or in what both see, at the third of five."""
    changed, now = [], [0]
    step_of = train_tokenizer.train_step

    def watched(learners, config, micro_batches, step, accelerator, labels):
        now[0], before = step, everything(learners)
        if fault == "images" and step == 2:
            micro_batches = [images * math.nan for images in micro_batches]
        values = step_of(learners, config, micro_batches, step, accelerator)
        after = everything(learners)
        same = [name for name in after if name in before and torch.equal(after[name], before[name])]
        changed.append(len(same) < len(after))
        return values

    monkeypatch.setattr(train_tokenizer, "train_step", watched)
    if fault != "images":
        original = getattr(tokenizer_step, fault)

        def broken(*args):
            terms = original(*args)
            spoilt = terms[0] if isinstance(terms, tuple) else terms
            if now[0] == 2:
                spoilt.update({name: term * math.nan for name, term in spoilt.items()})
            return terms

        monkeypatch.setattr(tokenizer_step, fault, broken)
    objective = {"adversarial_weight": 0.5, "adversarial_start": 0, "lecam_weight": 0.1}
    objective["discriminator"] = PatchGANConfig(ndf=8, n_layers=2, norm=norm)
    config = tokenizer_config(tmp_path / "run", max_steps=5, log_every=2, ema_decay=0.9, objective=objective)
    lines = [line for line in read_metrics(train_tokenizer.train_tokenizer(config)) if line["kind"] == "train"]
    assert changed == [True, True, False, True, True]
    assert [line["skipped_steps"] for line in lines] == [0, 1, 0]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))


def test_a_window_of_skipped_steps_alone_says_so(tokenizer_config, tmp_path, monkeypatch, read_metrics):
    original = tokenizer_step.reconstruction_terms
    broken = lambda *args: {name: term * math.inf for name, term in original(*args).items()}  # noqa: E731
    monkeypatch.setattr(tokenizer_step, "reconstruction_terms", broken)
    (line, _) = read_metrics(train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "run")))
    assert line == {"step": 2, "kind": "train", "skipped_steps": 2, "learning_rate": line["learning_rate"]}


def test_gradient_accumulation_gives_the_gradient_of_the_whole_batch(tokenizer_config, tmp_path, monkeypatch):
    gradients = []
    clip = Learner.clip

    def watched(learner):
        gradients.append({name: p.grad.clone() for name, p in learner.module.named_parameters()})
        return clip(learner)

    monkeypatch.setattr(Learner, "clip", watched)
    for parts in (1, 2):
        config = tokenizer_config(
            tmp_path / str(parts), max_steps=1, batch_size=8, gradient_accumulation_steps=parts, quantizer={}
        )
        train_tokenizer.train_tokenizer(config)
    one, two = gradients
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: name + text)
    assert max(float(gradient.abs().max()) for gradient in one.values()) > 1e-2


def test_an_uneven_batch_is_refused(tokenizer_config, tmp_path):
    with pytest.raises(ValueError, match="multiple of 3"):
        train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "run", gradient_accumulation_steps=3))
    assert not (tmp_path / "run").exists()


def test_thin_padded_images_have_a_psnr_and_no_ssim(tokenizer_config, tmp_path, read_metrics):
    for side, name in ((48, "wide"), (4, "thinner")):
        Image.new("RGB", (48, 48 if name == "wide" else side), (200, 10, 10)).save(tmp_path / f"{name}.png")
    for index in range(2):
        Image.new("RGB", (96, 16), (0, 10 * index, 10)).save(tmp_path / f"{index}.png")
    preprocessing = Preprocessing(image_size=16, fit="pad", smaller="upscale")
    data = DataConfig(str(tmp_path), validation_fraction=0.5)
    folder = train_tokenizer.train_tokenizer(
        tokenizer_config(tmp_path / ".run", data=data, preprocessing=preprocessing, max_steps=1)
    )
    scores = read_metrics(folder)[-1]
    assert scores["num_images"] == 2
    assert all(math.isfinite(value) for value in scores.values() if isinstance(value, float))


def test_held_out_images_that_are_all_bad_end_no_run(tokenizer_config, pictures, tmp_path, read_metrics):
    for split in ("train", "val"):
        shutil.copytree(pictures / "noise", tmp_path / "data" / split / "noise")
    for path in (tmp_path / "data" / "val").rglob("*.png"):
        path.write_text("no picture")
    data = DataConfig(str(tmp_path / "data"), validation_split="val")
    folder = train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "run", data=data))
    scores = read_metrics(folder)[-1]
    assert (scores["num_images"], scores["num_skipped"]) == (0, 6)
    assert "psnr" not in scores


def test_a_command_that_failed_before_it_saved_can_be_mended(tokenizer_config, tmp_path, at_step):
    with pytest.raises(DataError, match="does not exist"):
        train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "run", data=DataConfig(str(tmp_path / "typo"))))
    at_step(train_tokenizer, "train_step", 0, break_off)
    with pytest.raises(Broken):
        train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "run", batch_size=2))
    train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "run"))
