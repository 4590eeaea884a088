"""Stage one: train a tokenizer."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torchvision.utils import make_grid

from codegrid.names import shown
from codegrid.pipelines.artifacts.export import export_tokenizer
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence, load_tokenizer
from codegrid.pipelines.data.batches import AugmentedImages, ImageBatch, check_channels, image_batches, prepared_batches
from codegrid.pipelines.data.classes import check_labelled, decoder_classes, record_labels
from codegrid.pipelines.data.contents import Contents
from codegrid.pipelines.data.depth import DepthWatch
from codegrid.pipelines.data.records import DataError, ImageSource, picture_contents, picture_marks
from codegrid.pipelines.data.sources import split_images
from codegrid.pipelines.evaluation.reconstruction import evaluate_reconstruction
from codegrid.pipelines.generation.to_folder import weights_fingerprint
from codegrid.pipelines.pictures.grids import differences
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.devices import evaluating
from codegrid.pipelines.system.files import write_text
from codegrid.pipelines.system.numbers import number
from codegrid.pipelines.system.randomness import key, seed_step
from codegrid.pipelines.training.announcement import announce_tokenizer, estimate_of_tokenizer
from codegrid.pipelines.training.checkpoint import Tensors, load_optimizer_tensors, optimizer_tensors
from codegrid.pipelines.training.claim import Identity
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.loop import Scores, Stage, check_stage, fit, resume
from codegrid.pipelines.training.memory_estimate import MemoryEstimate
from codegrid.pipelines.training.run import Run, TrainingError
from codegrid.pipelines.training.switches import check_compiler, compile_learners, not_compiled, prepare_learners
from codegrid.pipelines.training.tokenizer.disturbance import check_disturbance, disturb
from codegrid.pipelines.training.tokenizer.frozen import freeze, training_mode
from codegrid.pipelines.training.tokenizer.guards import replay, watch
from codegrid.pipelines.training.tokenizer.overlap import overlap_of_run, save_overlap
from codegrid.pipelines.training.tokenizer.sizes import check_nets
from codegrid.pipelines.training.tokenizer.smaller import describe_smaller
from codegrid.pipelines.training.tokenizer.step import make_learners, train_step
from codegrid.pipelines.training.window import Window
from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.images import for_people, to_model, to_uint8
from codegrid.tokenizer.metrics import relative_counts, usage_and_perplexity
from codegrid.tokenizer.moving import to_device

_SKIPPED_NAME = "skipped.txt"


def train_tokenizer(config: TokenizerTrainingConfig) -> Path:
    """Train a tokenizer, or resume a stopped run of the same config; return the run's folder.

    Raises:
        DataError: the images cannot be read as configured.
        OutputError: the folder holds something else, or the disk is full.
        CodegridError: the config contradicts itself.
    """
    check_disturbance(config)
    check_nets(config)
    train_images, validation_images = split_images(config.data)
    for images in (train_images, validation_images):
        if images is not None:
            check_channels(images, config.preprocessing, config.backbone.in_channels)
    _check_labels(config, train_images, validation_images)
    smaller = describe_smaller(train_images, config.preprocessing)
    run = Run(config, "tokenizer", _identity(config, train_images, validation_images))
    torch.manual_seed(key(config.seed, "initialisation"))
    stage, window = TokenizerStage(run, config, train_images, validation_images), Window()
    check_stage(run, stage)
    if config.compile:
        check_compiler(run.accelerator.device)
    overlap = overlap_of_run(run, config, train_images, validation_images)
    with run, resumable():  # claims the folder: whatever can fail without it has been tried
        run.listen_for_signals()
        start = resume(run, stage, window)
        stage.begin(start)
        notes = f"  {smaller}\n" if smaller else ""
        if overlap is not None and validation_images is not None:
            save_overlap(run, overlap, train_images, validation_images)
            notes += f"  {overlap.sentence()}\n"
        stage.flops_a_sample = announce_tokenizer(
            run, config, stage.learners, train_images, validation_images, start, notes
        )
        if config.compile:
            compile_learners(stage.learners)
        fit(run, stage, window, start)
        folder = shown(run.folder)
        run.log(
            f"The tokenizer is in {folder} (VQModel.from_pretrained); pictures in {shown(run.folder / 'pictures')}."
        )
    return run.folder


class TokenizerStage(Stage):
    """A VQModel, and its discriminator if the objective has one."""

    shown = ("l1", "l2", "smooth_l1", "log_laplace", "dssim", "code_usage")

    def __init__(
        self, run: Run, config: TokenizerTrainingConfig, images: ImageSource, validation: ImageSource | None
    ) -> None:
        self.run, self.config, self.images, self.validation = run, config, images, validation
        self.device = run.accelerator.device
        classes = images.class_names if config.needs_labels else []
        model = _make_model(config, classes)
        freeze(model, config.freeze)
        self.learners = make_learners(
            model,
            config.objective,
            config.optimizer.for_batch(config.batch_size),
            config.discriminator_optimizer.for_batch(config.batch_size),
            config.ema_decay,
            run.accelerator,
            len(classes),
        )
        prepare_learners(self.learners, config)
        self.model: VQModel = self.learners.model.module
        names = images.class_names
        self.disturbance = disturb(self.model, config.disturbance, names) if config.finetune_decoder else None
        self.optimizers = {"learning_rate": self.learners.model.optimizer}
        # Learners beside the model, by the names of their files in a checkpoint.
        beside = {"discriminator": self.learners.discriminator, "rate": self.learners.predictor}
        self.beside = {name: learner for name, learner in beside.items() if learner is not None}
        for name, learner in self.beside.items():
            self.optimizers[f"{name}_learning_rate"] = learner.optimizer
        self.contents = Contents(images)
        self.tokens_a_sample = math.prod(self.model.config.codes_shape)

    def begin(self, start: int) -> None:
        """Restore the state at step `start`: the position in the data, the skipped pictures and the guards' memory."""
        config, accelerator = self.config, self.run.accelerator
        self.batches = _training_batches(self.run, config, self.images, start)
        self.skipped = _read_skipped(self.run)
        self.depth = DepthWatch(config.preprocessing)
        self.watched = replay(self.run.earlier_metrics(), config, math.prod(self.model.config.grid_shape))
        training_mode(self.learners.model.module, config.freeze)
        self.rank = accelerator.process_index

    def step(self, step: int) -> dict[str, Tensor]:
        batches = list(itertools.islice(self.batches, self.config.gradient_accumulation_steps))
        pictures = [to_model(to_device(batch.pixels, self.device)) for batch in batches]  # each [B, C, S, S]
        labels = (
            [to_device(_known_labels(batch), self.device) for batch in batches] if self.config.needs_labels else None
        )
        for batch in batches:
            self.skipped.update(batch.skipped)
            self.depth.add(batch.peaks)
            self.contents.add(batch.rows, batch.contents)
        self.last_batch = ", ".join(batches[-1].source_ids[:8])
        if self.disturbance is not None:
            self.disturbance.expect([batch.labels for batch in batches])
        seed_step(self.config.seed, step, self.rank)
        return train_step(self.learners, self.config, pictures, step, self.run.accelerator, labels=labels)

    def evaluate(self, done: int | None) -> Scores:
        """Scores on the validation images, and a picture of originals above reconstructions."""
        run, scores = self.run, {}
        with self.learners.ema.applied(), not_compiled():
            if self.validation is not None:
                distances, size = self.learners.distances, run.micro_batch_size
                found = evaluate_reconstruction(
                    self.model, self.validation, run.accelerator, size, distances, num_workers=self.config.num_workers
                )
                scores = {name: value for name, value in asdict(found).items() if value is not None}
            if done is not None:
                self._report(done, scores)
        return scores

    def _report(self, done: int, scores: Scores) -> None:
        if scores:
            self.run.metrics(done, "validation", scores)
            precision = self.run.accelerator.policy.precision
            said = "" if precision == "float32" else f" (in {precision}; `codegrid evaluate` takes float32)"
            values = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
            self.run.log(f"step {done}{said}: {values}")
        if self.run.is_main:
            shown = self.images if self.validation is None else self.validation
            picture = reconstruction_grid(self.model, shown, self.config.num_pictures)
            if picture is not None:
                self.run.picture("reconstructions", done, picture)

    def memory(self) -> MemoryEstimate:
        return estimate_of_tokenizer(self.run, self.config, self.learners)

    def groups(self) -> dict[str, Tensors]:
        model = self.learners.model
        groups = {
            "model": model.module.state_dict(),
            "optimizer": optimizer_tensors(model.optimizer, model.module),
            "ema": self.learners.ema.weights,
            "running_logits": self.learners.running_logits,
            "contents": self.contents.tensors(),
        }
        for name, learner in self.beside.items():
            groups[name] = learner.module.state_dict()
            groups[f"{name}_optimizer"] = optimizer_tensors(learner.optimizer, learner.module)
        return groups

    def load(self, groups: dict[str, Tensors]) -> None:
        model = self.learners.model
        model.module.load_state_dict(groups["model"])
        load_optimizer_tensors(model.optimizer, model.module, groups.get("optimizer", {}), self.run.log)
        self.learners.ema.load(groups.get("ema", {}))
        self.contents.load(groups.get("contents", {}))
        for name, mean in groups.get("running_logits", {}).items():
            self.learners.running_logits[name] = mean.to(self.device)
        for name, learner in self.beside.items():
            learner.module.load_state_dict(groups[name])
            state = groups.get(f"{name}_optimizer", {})  # empty before its first step
            load_optimizer_tensors(learner.optimizer, learner.module, state, self.run.log)

    def export(self, scores: Scores) -> None:
        if not self.run.is_main:
            return
        with self.learners.ema.applied():
            export_tokenizer(self.model, self.run.folder, self.config.data.source, scores)

    def read(self, counts: dict[str, Tensor]) -> tuple[Scores, dict[str, Tensor]]:
        """How many codes the window used, and how evenly. In the histogram, 1 is a code of mean usage."""
        used, quantizer = counts["code_counts"], self.model.config.quantizer_config
        usage, perplexity = usage_and_perplexity(used, quantizer.depth, quantizer.codebook_size)
        values = {"code_usage": usage, "code_perplexity": perplexity}
        return values, {"code_usage": relative_counts(used, quantizer.codebook_size, quantizer.depth)}

    def watch(self, line: dict[str, Any]) -> list[str]:
        for found, (rows, contents) in gather_object([(self.skipped, self.contents.take_new())]):
            self.skipped.update(found)
            self.contents.add(rows, contents)
        if self.skipped and self.run.is_main:
            lines = [f"{name}\t{reason}\n" for name, reason in sorted(self.skipped.items())]
            write_text(self.run.folder / _SKIPPED_NAME, "".join(lines))
        self.watched, warnings = watch(self.watched, line, self.config, math.prod(self.model.config.grid_shape))
        sentence = self.depth.sentence(last=line["step"] == self.config.max_steps)
        return [*warnings, sentence] if sentence else warnings


def _training_batches(
    run: Run, config: TokenizerTrainingConfig, images: ImageSource, start: int
) -> Iterator[ImageBatch]:
    """This rank's micro-batches from step `start` on."""
    parts, accelerator = config.gradient_accumulation_steps, run.accelerator
    augmented = AugmentedImages(
        images, config.preprocessing, config.backbone.in_channels, config.augmentation, config.seed
    )
    return image_batches(
        augmented,
        start * parts,
        config.max_steps * parts,
        run.micro_batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        config.num_workers,
    )


def _identity(config: TokenizerTrainingConfig, images: ImageSource, validation: ImageSource | None) -> Identity:
    """The pictures of both splits, and the tokenizer that training starts from."""
    fixed: dict[str, Any] = {}
    if config.needs_labels:
        fixed["classes"] = images.class_names
    if config.init_from:
        fixed["init_from"] = load_tokenizer(config.init_from).fingerprint()
    if config.disturbance.prior:
        fixed["disturbance.prior"] = weights_fingerprint(load_prior_and_sequence(config.disturbance.prior)[0])
    # Held-out pictures without a split of their own come from the same source.
    sources = [images] if validation is None or validation.reader is images.reader else [images, validation]
    description = " and ".join(source.description.partition(";")[0] for source in sources)
    marks = (mark for source in sources for mark in picture_marks(source))
    return Identity.of(
        description, fixed, marks, lambda: (each for source in sources for each in picture_contents(source))
    )


def _check_labels(config: TokenizerTrainingConfig, images: ImageSource, validation: ImageSource | None) -> None:
    """Check that all pictures have labels where training or its evaluations need them."""
    if config.needs_labels:
        name = "class_conditional" if config.class_conditional else "objective.discriminator.conditional"
        check_labelled(images, name)
    if config.class_conditional and validation is not None:  # a decoder reconstructs by class, nothing else is asked
        check_labelled(validation, "class_conditional")


def _make_model(config: TokenizerTrainingConfig, classes: list[str]) -> VQModel:
    """A model with fresh weights, or with those of `config.init_from`."""
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
        if {"encoder", "quantizer"} <= set(config.freeze):
            model.keep_codes_of(start)
    return model


def _load_start(model: VQModel, start: VQModel, name: str) -> None:
    """Load the weights of `start`. Weights for class-conditioning may be new: they change nothing at the start.

    Classes are matched by name; one that `start` does not know begins as the mean of those that it knows.

    Raises:
        TrainingError: the networks differ.
    """
    own, given = model.state_dict(), start.state_dict()
    table = "class_embedding.weight"  # [classes, E]
    if table in own and table in given:
        places = {known: place for place, known in enumerate(start.config.class_names or ())}
        mean = given[table].mean(0)
        rows = [given[table][places[each]] if each in places else mean for each in model.config.class_names]
        given[table] = torch.stack(rows)
    wrong = [key for key in own if key in given and given[key].shape != own[key].shape]
    wrong += [key for key in own if key not in given and not re.search(r"\.modulation$|^class_embedding\.", key)]
    wrong += [key for key in given if key not in own]
    if wrong:
        raise TrainingError(
            f"backbone and quantizer are not those of the tokenizer {shown(name)}, as init_from needs: they differ in "
            f"{', '.join(wrong[:4])} ({len(wrong)} weights in all).",
            "Leave backbone and quantizer out (on the command line they come from that tokenizer), or init_from.",
        )
    model.load_state_dict(given, strict=False)


def _known_labels(batch: ImageBatch) -> Tensor:
    """int64 [B]."""
    if int(batch.labels.min()) < 0:
        name = batch.source_ids[int(batch.labels.argmin())]
        raise DataError(
            f"{name} has no label, and class_conditional or objective.discriminator.conditional is set.",
            "Label it, or turn these off.",
        )
    return batch.labels


def _read_skipped(run: Run) -> dict[str, str]:
    """The images that were skipped before a resume, with the reasons."""
    path = run.folder / _SKIPPED_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name: reason for name, _, reason in (line.partition("\t") for line in lines)}


def reconstruction_grid(model: VQModel, source: ImageSource, number: int) -> Tensor | None:
    """The first images above their reconstructions and the differences, uint8 [3, H, W]; None without images."""
    batch = next(prepared_batches(model, iter(source), number)) if number else None
    if batch is None or not batch.records:
        return None
    labels = record_labels(batch.records, decoder_classes(model.config, source.class_names, source.description))
    with evaluating(model):
        images = batch.images.to(model.device)
        made = model(images, labels).reconstruction.clamp(-1, 1)
    shown = for_people(torch.cat([images, made, differences(images, made)]))
    pixels = to_uint8(shown).permute(0, 3, 1, 2).cpu()  # [3N, 1 or 3, S, S]
    return make_grid(pixels, nrow=max(1, len(images)), pad_value=255)
