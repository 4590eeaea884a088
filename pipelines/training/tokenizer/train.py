"""Stage one: train a tokenizer."""

from __future__ import annotations

import itertools
import math
import re
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torchvision.utils import make_grid

from codegrid.pipelines.artifacts.export import export_tokenizer
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.batches import AugmentedImages, ImageBatch, image_batches
from codegrid.pipelines.data.classes import decoder_classes, record_labels
from codegrid.pipelines.data.records import DataError, ImageSource
from codegrid.pipelines.data.sources import split_images
from codegrid.pipelines.evaluation.reconstruction import evaluate_reconstruction, prepared_batches
from codegrid.pipelines.pictures.grids import differences
from codegrid.pipelines.system.devices import evaluating
from codegrid.pipelines.system.files import write_text
from codegrid.pipelines.system.randomness import key, seed_step
from codegrid.pipelines.training.announcement import announce_tokenizer
from codegrid.pipelines.training.checkpoint import (
    Checkpoint,
    load_newest_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.run import Run, TrainingError, check_bad_steps, stop_run
from codegrid.pipelines.training.switches import compile_learners, not_compiled, prepare_learners
from codegrid.pipelines.training.tokenizer.guards import replay, watch
from codegrid.pipelines.training.tokenizer.step import TokenizerLearners, make_learners, train_step
from codegrid.pipelines.training.window import gather_windows, own_window
from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.images import to_model, to_uint8
from codegrid.tokenizer.metrics import usage_and_perplexity

_SKIPPED_NAME = "skipped.txt"
# What the progress bar shows, where it is there.
_IN_BAR = ("l1", "l2", "smooth_l1", "log_laplace", "code_usage")


def train_tokenizer(config: TokenizerTrainingConfig) -> Path:
    """Train a tokenizer, or go on where a run of the same config stopped; gives the run's folder.

    Raises:
        DataError: the images cannot be read as asked.
        OutputError: the folder holds something else, or the disk is full.
        CodegridError: the config contradicts itself.
    """
    train_images, validation_images = split_images(config.data)
    with Run(config, stage="tokenizer") as run:
        run.listen_for_signals()
        torch.manual_seed(key(config.seed, "initialisation"))
        classes = _classes(config, train_images)
        model = _make_model(config, classes)
        learners = make_learners(
            model,
            config.objective,
            config.optimizer.for_batch(config.batch_size),
            config.discriminator_optimizer.for_batch(config.batch_size),
            config.ema_decay,
            run.accelerator,
            len(classes),
        )
        prepare_learners(learners, config)
        start = _resume(run, learners)
        announce_tokenizer(run, config, learners, train_images, validation_images, start)
        if config.compile:
            compile_learners(learners)
        scores = _train(run, config, learners, train_images, validation_images, start)
        if run.is_main:
            with learners.ema.applied():
                export_tokenizer(model, run.folder, config.data.source, scores)
        run.accelerator.wait_for_everyone()
        run.log(f"The tokenizer is in {run.folder} (VQModel.from_pretrained); pictures in {run.folder / 'pictures'}.")
    return run.folder


def _classes(config: TokenizerTrainingConfig, images: ImageSource) -> list[str]:
    """The data's classes where the training needs them, else none."""
    if config.needs_labels and not images.class_names:
        raise DataError(
            f"{images.description}: there are no labels, and class_conditional or objective.discriminator.conditional "
            "is set. Put the pictures into a subfolder for each class, name data.label_column, or set both off."
        )
    return images.class_names if config.needs_labels else []


def _make_model(config: TokenizerTrainingConfig, classes: list[str]) -> VQModel:
    """Fresh weights, or those of `config.init_from`."""
    start = load_tokenizer(config.init_from) if config.init_from else None
    conditional = {"num_classes": len(classes), "id2label": dict(enumerate(classes))}
    model = VQModel(
        VQModelConfig(
            backbone=config.backbone,
            quantizer=config.quantizer,
            preprocessing=config.preprocessing,
            provenance=start.config.provenance if start else None,
            **(conditional if config.class_conditional else {}),
        )
    )
    if start:
        _load_start(model, start, config.init_from)
    return model


def _load_start(model: VQModel, start: VQModel, name: str) -> None:
    """The weights of `start`; what makes a decoder class-conditional may be new: it changes nothing at the start.

    Raises:
        TrainingError: the networks are not the same.
    """
    own, given = model.state_dict(), start.state_dict()
    wrong = [key for key in own if key in given and given[key].shape != own[key].shape]
    wrong += [key for key in own if key not in given and not re.search(r"\.modulation$|^class_embedding\.", key)]
    wrong += [key for key in given if key not in own]
    if wrong:
        raise TrainingError(
            f"backbone and quantizer are not those of the tokenizer {name}, as init_from needs: they differ in "
            f"{', '.join(wrong[:4])} ({len(wrong)} weights in all)."
        )
    model.load_state_dict(given, strict=False)


def _train(
    run: Run,
    config: TokenizerTrainingConfig,
    learners: TokenizerLearners,
    train_images: ImageSource,
    validation_images: ImageSource | None,
    start: int,
) -> dict[str, float]:
    """The loop: load, step, log, evaluate, save. Gives the last evaluation's scores."""
    accumulation, rank, ranks = (
        config.gradient_accumulation_steps,
        run.accelerator.process_index,
        run.accelerator.num_processes,
    )
    images = AugmentedImages(
        train_images, config.preprocessing, config.backbone.in_channels, config.augmentation, config.seed
    )
    batches = image_batches(
        images,
        start * accumulation,
        config.max_steps * accumulation,
        run.micro_batch_size,
        rank,
        ranks,
        config.num_workers,
    )
    learners.model.module.train()
    scores: dict[str, float] = {}
    bad_steps, skipped = 0, _read_skipped(run)
    codes_per_image = math.prod(learners.model.module.config.grid_shape)
    watched = replay(run.earlier_metrics(), config, codes_per_image)
    bar, began = run.progress(start), time.monotonic()
    for step in range(start, config.max_steps):
        micro_batches, labels = [], [] if config.needs_labels else None
        for batch in itertools.islice(batches, accumulation):
            micro_batches.append(to_model(batch.pixels).to(run.accelerator.device))
            skipped.update(batch.skipped)
            if labels is not None:
                labels.append(_known_labels(batch).to(run.accelerator.device))
        seed_step(config.seed, step, rank)
        values = train_step(learners, config, micro_batches, step, run.accelerator, labels=labels)
        bad_steps = bad_steps + 1 if values["skipped_steps"] else 0
        check_bad_steps(bad_steps, step, ", ".join(batch.source_ids[:8]))
        _add_to_window(learners.window, values)
        done = step + 1
        bar.update()
        if done % config.log_every == 0 or done == config.max_steps:
            line = _log_window(run, learners, done, bar, (done - start) / (time.monotonic() - began), skipped)
            watched, warnings = watch(watched, {"step": done, **line}, config, codes_per_image)
            for warning in warnings:
                run.log(warning)
        if done % config.eval_every == 0 or done == config.max_steps:
            scores = _evaluate(run, config, learners, train_images, validation_images, done)
        stopping = run.should_stop()
        if done % config.save_every == 0 or done == config.max_steps or stopping:
            _save(run, learners, done)
        if stopping and done < config.max_steps:
            stop_run(run, done)
    return scores or _evaluate(run, config, learners, train_images, validation_images, config.max_steps, report=False)


def _known_labels(batch: ImageBatch) -> Tensor:
    """int64 [B]."""
    if int(batch.labels.min()) < 0:
        name = batch.source_ids[int(batch.labels.argmin())]
        raise DataError(f"{name} has no label, and class_conditional or objective.discriminator.conditional is set.")
    return batch.labels


def _add_to_window(window: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Add up a step; of a skipped one only that it was: its terms, not finite, would make the window's means so."""
    skipped = values["skipped_steps"]
    for name, value in ({"skipped_steps": skipped} if skipped else {**values, "steps": torch.ones(())}).items():
        window[name] = window[name] + value.cpu() if name in window else value.cpu().clone()


def _log_window(
    run: Run, learners: TokenizerLearners, done: int, bar, rate: float, skipped: dict[str, str]
) -> dict[str, float]:
    """Means since the last line, over all ranks, and the codes' usage; skipped steps are only counted."""
    window = {name: value.to(run.accelerator.device) for name, value in learners.window.items()}
    values = {"skipped_steps": int(window.pop("skipped_steps"))}
    if window:  # some step was not skipped
        counts = run.accelerator.reduce(window.pop("code_counts"), "sum")
        steps, depth = window.pop("steps"), learners.model.module.config.quantizer_config.depth
        names = sorted(window)
        means = run.accelerator.reduce(torch.stack([window[name].float() for name in names]) / steps, "mean").tolist()
        values.update(zip(names, means, strict=True))
        values["code_usage"], values["code_perplexity"] = usage_and_perplexity(counts, depth)
        run.histogram("code_usage", done, counts / counts.float().mean())  # 1: a code used as often as the mean one
    values["learning_rate"] = learners.model.optimizer.param_groups[0]["lr"]
    if learners.discriminator is not None:
        values["discriminator_learning_rate"] = learners.discriminator.optimizer.param_groups[0]["lr"]
    run.metrics(done, "train", values)
    run.timing(done, {"steps_per_second": rate, "images_per_second": rate * run.config.batch_size})
    bar.set_postfix({name: f"{values[name]:.4g}" for name in _IN_BAR if name in values})
    learners.window.clear()
    for found in gather_object([skipped]):
        skipped.update(found)
    if skipped and run.is_main:
        lines = [f"{name}\t{reason}\n" for name, reason in sorted(skipped.items())]
        write_text(run.folder / _SKIPPED_NAME, "".join(lines))
    return values


def _read_skipped(run: Run) -> dict[str, str]:
    """The images that could not be used before a resume, with the reasons."""
    path = run.folder / _SKIPPED_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name: reason for name, _, reason in (line.partition("\t") for line in lines)}


def _evaluate(
    run: Run,
    config: TokenizerTrainingConfig,
    learners: TokenizerLearners,
    train_images: ImageSource,
    validation_images: ImageSource | None,
    done: int,
    report: bool = True,
) -> dict[str, float]:
    """Scores of the averaged weights on the validation images, and a picture: originals above reconstructions."""
    model = learners.model.module
    with learners.ema.applied(), not_compiled():
        scores: dict[str, float] = {}
        if validation_images is not None:
            result = evaluate_reconstruction(
                model, validation_images, run.accelerator, run.micro_batch_size, learners.distances
            )
            scores = {name: value for name, value in asdict(result).items() if value is not None}
        if report:
            if scores:
                run.metrics(done, "validation", scores)
                shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
                run.log(f"step {done}: {shown}")
            if run.is_main:
                shown_images = train_images if validation_images is None else validation_images
                picture = reconstruction_grid(model, shown_images, config.num_pictures)
                if picture is not None:
                    run.picture("reconstructions", done, picture)
    return scores


def reconstruction_grid(model: VQModel, source: ImageSource, number: int) -> Tensor | None:
    """The first images above their reconstructions and the differences, uint8 [3, H, W]; None where there are none."""
    batch = next(prepared_batches(model, iter(source), number)) if number else None
    if batch is None or not batch.records:
        return None
    labels = record_labels(batch.records, decoder_classes(model.config, source.class_names, source.description))
    with evaluating(model):
        images = batch.images.to(model.device)
        made = model(images, labels).reconstruction.clamp(-1, 1)
    pixels = to_uint8(torch.cat([images, made, differences(images, made)])).permute(0, 3, 1, 2).cpu()  # [3N, C, S, S]
    return make_grid(pixels, nrow=max(1, len(images)), pad_value=255)


def _resume(run: Run, learners: TokenizerLearners) -> int:
    """Load the newest good checkpoint into the learners; gives the number of steps that are done."""
    checkpoint = load_newest_checkpoint(run.checkpoints, run.log)
    run.forget_metrics_after(checkpoint.step if checkpoint else 0)
    if checkpoint is None:
        return 0
    groups = checkpoint.groups
    learners.model.module.load_state_dict(groups["model"])
    load_optimizer_tensors(learners.model.optimizer, learners.model.module, groups.get("optimizer", {}))
    learners.ema.load(groups.get("ema", {}))
    learners.window.update(own_window(groups.get("window", {}), run.accelerator))
    for name, mean in groups.get("running_logits", {}).items():
        learners.running_logits[name] = mean.to(run.accelerator.device)
    if learners.discriminator is not None:
        learners.discriminator.module.load_state_dict(groups["discriminator"])
        discriminator = learners.discriminator
        state = groups.get("discriminator_optimizer", {})  # none before its first step
        load_optimizer_tensors(discriminator.optimizer, discriminator.module, state)
    run.log(f"Resuming {run.folder} after step {checkpoint.step}.")
    return checkpoint.step


def _save(run: Run, learners: TokenizerLearners, done: int) -> None:
    windows = gather_windows(learners.window, run.accelerator)
    if run.is_main:
        groups = {
            "model": learners.model.module.state_dict(),
            "optimizer": optimizer_tensors(learners.model.optimizer, learners.model.module),
            "ema": learners.ema.weights,
            "window": windows,
            "running_logits": learners.running_logits,
        }
        if learners.discriminator is not None:
            groups["discriminator"] = learners.discriminator.module.state_dict()
            groups["discriminator_optimizer"] = optimizer_tensors(
                learners.discriminator.optimizer, learners.discriminator.module
            )
        groups = {name: tensors for name, tensors in groups.items() if tensors}
        save_checkpoint(run.checkpoints, Checkpoint(done, groups, {}), run.config.keep_last, run.config.keep_every)
    run.accelerator.wait_for_everyone()
