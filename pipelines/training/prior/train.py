"""Stage two: train a prior on codes."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codegrid.pipelines.artifacts.export import export_prior
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.system.devices import evaluating
from codegrid.pipelines.system.randomness import SampleOrder, key, seed_step, torch_generator
from codegrid.pipelines.training.announcement import announce_prior
from codegrid.pipelines.training.checkpoint import (
    Checkpoint,
    load_newest_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from codegrid.pipelines.training.config import PriorTrainingConfig
from codegrid.pipelines.training.ema import EMA
from codegrid.pipelines.training.learner import Learner, update_together
from codegrid.pipelines.training.prior.samples import sample_picture, samples_tokenizer
from codegrid.pipelines.training.run import Run, check_bad_steps, stop_run
from codegrid.pipelines.training.switches import compile_prior, not_compiled
from codegrid.pipelines.training.window import gather_windows, own_window
from codegrid.prior import PriorObjective, SequenceConfig, bits_per_code, make_prior, prior_loss
from codegrid.prior.codes import CodeDataset, CodesError, open_codes


def train_prior(config: PriorTrainingConfig) -> Path:
    """Train a prior, or go on where a run of the same config stopped; gives the run's folder.

    Raises:
        CodesError: the codes are no finished data set, damaged, or of another tokenizer than `config.tokenizer`.
        OutputError: the folder holds something else, or the disk is full.
        CodegridError: the config contradicts itself.
    """
    codes = open_codes(config.codes)
    sequence = codes.manifest.sequence_config()
    if config.tokenizer is not None:
        check_tokenizer(codes, config.tokenizer)
    with Run(config, stage="prior") as run:
        run.listen_for_signals()
        torch.manual_seed(key(config.seed, "initialisation"))
        model = make_prior(config.model, sequence)
        objective = PriorObjective(model, sequence.codebook_size, config.gradient_checkpointing, config.fast_forward)
        learner = Learner.make(model, config.optimizer.for_batch(config.batch_size), run.accelerator, objective)
        ema = EMA(model, config.ema_decay)
        rows, held_out = codes.split(config.validation_fraction)
        if not len(rows):
            raise CodesError(f"No codes are left to train on: lower validation_fraction {config.validation_fraction}.")
        window: dict[str, Tensor] = {}
        start = _resume(run, learner, ema, window)
        announce_prior(run, config, objective, sequence, len(rows), len(held_out), start)
        if config.compile:
            compile_prior(objective)
        scores = _train(run, config, codes, rows, held_out, sequence, learner, ema, window, start)
        if run.is_main:
            with ema.applied():
                export_prior(model, sequence, run.folder, config.codes, scores, codes.manifest.tokenizer)
        run.accelerator.wait_for_everyone()
        run.log(f"The prior is in {run.folder}.")
    return run.folder


def check_tokenizer(codes: CodeDataset, tokenizer: str) -> None:
    """Refuse codes that another tokenizer made.

    Raises:
        CodesError: the fingerprints differ.
    """
    fingerprint, manifest = load_tokenizer(tokenizer).fingerprint(), codes.manifest
    if fingerprint != manifest.tokenizer_fingerprint:
        raise CodesError(
            f"The codes were made by another tokenizer ({manifest.tokenizer}, fingerprint "
            f"{manifest.tokenizer_fingerprint[:12]}) than {tokenizer} ({fingerprint[:12]}): make them again with it, "
            "or name the tokenizer that made them."
        )


def _train(
    run: Run,
    config: PriorTrainingConfig,
    codes: CodeDataset,
    rows: np.ndarray,
    held_out: np.ndarray,
    sequence: SequenceConfig,
    learner: Learner,
    ema: EMA,
    window: dict[str, Tensor],
    start: int,
) -> dict[str, float]:
    """The loop: load, step, log, evaluate, save. Gives the last evaluation's scores."""
    accelerator, rank, ranks = run.accelerator, run.accelerator.process_index, run.accelerator.num_processes
    order, parts = SampleOrder(len(rows), config.seed), config.gradient_accumulation_steps
    learner.module.train()
    scores: dict[str, float] = {}
    tokenizer = samples_tokenizer(config, codes.manifest, run.log) if run.is_main else None
    bad_steps, bar, began = 0, run.progress(start), time.monotonic()
    for step in range(start, config.max_steps):
        batch = rows[order.indices(step * config.batch_size, config.batch_size)]
        dropped = _dropped(config, step)
        seed_step(config.seed, step, rank)
        loss = torch.zeros((), device=accelerator.device)
        for part in range(parts):
            mine = slice(part * ranks + rank, None, ranks * parts)  # every (ranks * parts)-th row of the global batch
            with learner.exchanging_gradients(accelerator, part == parts - 1):
                with accelerator.autocast():
                    part_loss = _loss(
                        learner.wrapped, codes, batch[mine], dropped[mine], sequence, config, accelerator.device
                    )
                accelerator.backward(part_loss / parts)
            loss += part_loss.detach() / parts
        (norm,) = update_together([learner], step, config.max_steps)
        skipped = not math.isfinite(norm)
        if not skipped:
            ema.update(step)
        bad_steps = bad_steps + 1 if skipped else 0
        check_bad_steps(bad_steps, step, f"rows {batch[:8].tolist()}")
        _add_to_window(window, loss.cpu(), norm, skipped)
        done = step + 1
        bar.update()
        if done % config.log_every == 0 or done == config.max_steps:
            _log_window(run, learner, window, done, bar, (done - start) / (time.monotonic() - began))
        if done % config.eval_every == 0 or done == config.max_steps:
            scores = _evaluate(run, config, codes, held_out, sequence, learner, ema, done)
            if tokenizer is not None:
                with ema.applied():
                    picture = sample_picture(learner.module, tokenizer, sequence, config.num_samples)
                run.picture("samples", done, picture)
        stopping = run.should_stop()
        if done % config.save_every == 0 or done == config.max_steps or stopping:
            _save(run, learner, ema, window, done)
        if stopping and done < config.max_steps:
            stop_run(run, done)
    return scores or _evaluate(run, config, codes, held_out, sequence, learner, ema, None)


def _add_to_window(window: dict[str, Tensor], loss: Tensor, norm: float, skipped: bool) -> None:
    """Add up a step; of a skipped one only that it was."""
    if skipped:
        step = {"skipped_steps": torch.ones(())}
    else:
        step = {"loss": loss, "grad_norm": torch.tensor(norm), "steps": torch.ones(())}
    for name, value in step.items():
        window[name] = window.get(name, torch.zeros(())) + value


def _dropped(config: PriorTrainingConfig, step: int) -> Tensor:
    """Which samples of the global batch lose their class in this step: bool [batch_size], the same on every rank."""
    draws = torch.rand(config.batch_size, generator=torch_generator(config.seed, "class dropout", step))
    return draws < config.class_dropout


def _loss(
    model: torch.nn.Module,
    codes: CodeDataset,
    rows: np.ndarray,
    dropped: Tensor | None,
    sequence: SequenceConfig,
    config: PriorTrainingConfig,
    device: torch.device,
) -> Tensor:
    """Mean cross-entropy of `rows` in nats a code."""
    labels = None if codes.labels is None else codes.labels[rows]
    if labels is not None:
        # Images without a label among labelled ones are -1: they train the null class.
        unknown = torch.from_numpy(labels < 0)
        dropped = unknown if dropped is None else dropped | unknown
        labels = torch.from_numpy(labels.clip(min=0)).to(device)
    batch = torch.from_numpy(codes.codes(rows)).to(device)  # [B, L]
    drop = None if labels is None else dropped.to(device)
    smoothing = config.label_smoothing if model.training else 0.0
    return prior_loss(model, batch, labels, drop, sequence, label_smoothing=smoothing, validate=False)


def _evaluate(
    run: Run,
    config: PriorTrainingConfig,
    codes: CodeDataset,
    held_out: np.ndarray,
    sequence: SequenceConfig,
    learner: Learner,
    ema: EMA,
    done: int | None,
) -> dict[str, float]:
    """Cross-entropy of the averaged weights on the held-out rows; reported unless `done` is None."""
    accelerator = run.accelerator
    if not len(held_out):
        return {}
    mine = held_out[accelerator.process_index :: accelerator.num_processes]
    sums = torch.zeros(2, device=accelerator.device)
    with ema.applied(), evaluating(learner.module), not_compiled(), accelerator.autocast():
        for first in range(0, len(mine), run.micro_batch_size):
            rows = mine[first : first + run.micro_batch_size]
            loss = _loss(learner.module, codes, rows, None, sequence, config, accelerator.device)
            sums += torch.stack([loss.float() * len(rows), torch.tensor(float(len(rows)), device=accelerator.device)])
    total, number = accelerator.reduce(sums, "sum").tolist()
    nats = total / number
    scores = {"cross_entropy": nats, "bits_per_code": bits_per_code(nats)}
    if done is not None:
        run.metrics(done, "validation", scores)
        run.log(f"step {done}: held-out cross-entropy {nats:.4f} nats a code, {scores['bits_per_code']:.3f} bits")
    return scores


def _log_window(run: Run, learner: Learner, window: dict[str, Tensor], done: int, bar, rate: float) -> None:
    """Means since the last line, over all ranks; skipped steps are only counted."""
    values = {"skipped_steps": int(window.get("skipped_steps", 0))}
    if "steps" in window:
        sums = torch.stack([window["loss"], window["grad_norm"]]).to(run.accelerator.device)
        values["loss"], values["grad_norm"] = run.accelerator.reduce(sums / float(window["steps"]), "mean").tolist()
        bar.set_postfix({"loss": f"{values['loss']:.4f}"})
    values["learning_rate"] = learner.optimizer.param_groups[0]["lr"]
    run.metrics(done, "train", values)
    run.timing(done, {"steps_per_second": rate, "images_per_second": rate * run.config.batch_size})
    window.clear()


def _resume(run: Run, learner: Learner, ema: EMA, window: dict[str, Tensor]) -> int:
    """Load the newest good checkpoint; gives the number of steps that are done."""
    checkpoint = load_newest_checkpoint(run.checkpoints, run.log)
    run.forget_metrics_after(checkpoint.step if checkpoint else 0)
    if checkpoint is None:
        return 0
    learner.module.load_state_dict(checkpoint.groups["model"])
    load_optimizer_tensors(learner.optimizer, learner.module, checkpoint.groups.get("optimizer", {}))
    ema.load(checkpoint.groups.get("ema", {}))
    window.update(own_window(checkpoint.groups.get("window", {}), run.accelerator))
    run.log(f"Resuming {run.folder} after step {checkpoint.step}.")
    return checkpoint.step


def _save(run: Run, learner: Learner, ema: EMA, window: dict[str, Tensor], done: int) -> None:
    windows = gather_windows(window, run.accelerator)
    if run.is_main:
        groups = {
            "model": learner.module.state_dict(),
            "optimizer": optimizer_tensors(learner.optimizer, learner.module),
            "ema": ema.weights,
            "window": windows,
        }
        groups = {name: tensors for name, tensors in groups.items() if tensors}
        save_checkpoint(run.checkpoints, Checkpoint(done, groups, {}), run.config.keep_last, run.config.keep_every)
    run.accelerator.wait_for_everyone()
