"""Stage two: train a prior on codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import CodegridError
from codegrid.names import shown
from codegrid.pipelines.artifacts.export import export_prior
from codegrid.pipelines.artifacts.fit import misfits
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence, load_tokenizer
from codegrid.pipelines.generation.to_folder import weights_fingerprint
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.devices import evaluating, looks
from codegrid.pipelines.system.randomness import SampleOrder, key, seed_step, torch_generator
from codegrid.pipelines.training.announcement import announce_prior, estimate_of_prior
from codegrid.pipelines.training.checkpoint import Tensors, load_optimizer_tensors, optimizer_tensors
from codegrid.pipelines.training.claim import Identity
from codegrid.pipelines.training.config import PriorTrainingConfig
from codegrid.pipelines.training.divided import divided_like
from codegrid.pipelines.training.ema import EMA
from codegrid.pipelines.training.learner import Learner, not_finite, update_together
from codegrid.pipelines.training.loop import Scores, Stage, check_stage, fit, resume
from codegrid.pipelines.training.memory_estimate import MemoryEstimate
from codegrid.pipelines.training.prior.balance import class_weights
from codegrid.pipelines.training.prior.frozen import freeze
from codegrid.pipelines.training.prior.orders import RASTER, Orders, TrainingOrders, check_order
from codegrid.pipelines.training.prior.samples import rows_to_follow, sample_picture, samples_tokenizer
from codegrid.pipelines.training.prior.sharding import of_each_rank, shard, whole
from codegrid.pipelines.training.run import Run
from codegrid.pipelines.training.switches import check_compiler, compile_prior, not_compiled
from codegrid.pipelines.training.window import Window
from codegrid.prior import PriorObjective, SequenceConfig, bits_per_code, make_prior, prior_loss
from codegrid.prior.architectures import architecture_of
from codegrid.prior.codes import CodeDataset, CodesError, open_codes
from codegrid.prior.conditions import parts_of
from codegrid.prior.transfer import transferred
from codegrid.tokenizer.moving import to_device

_ROWS_AT_ONCE = 4096  # of codes, when all are looked at
_MOST_NAMES = 8  # of classes, in a line


def train_prior(config: PriorTrainingConfig) -> Path:
    """Train a prior, or resume a stopped run of the same config; return the run's folder.

    Raises:
        CodesError: the codes are unfinished, damaged, or from another tokenizer than `config.tokenizer`.
        OutputError: the folder holds something else, or the disk is full.
        CodegridError: the config contradicts itself.
    """
    codes = open_codes(config.codes)
    if config.tokenizer is not None:
        check_tokenizer(codes, config.tokenizer)
    _check_ids(codes)
    run = Run(config, "prior", _identity(config, codes))
    torch.manual_seed(key(config.seed, "initialisation"))
    stage, window = PriorStage(run, config, codes), Window()
    check_stage(run, stage)
    if config.compile:
        check_compiler(run.accelerator.device)
    with run, resumable():  # claims the folder: whatever can fail without it has been tried
        run.listen_for_signals()
        start = resume(run, stage, window)
        rows, held_out = len(stage.rows), len(stage.held_out)
        stage.flops_a_sample = announce_prior(
            run, config, stage.objective, stage.sequence, rows, held_out, start, stage.memory
        )
        if line := _never_seen(codes, stage.rows):
            run.log(line)
        if config.compile:
            compile_prior(stage.objective)
        fit(run, stage, window, start)
        run.log(f"The prior is in {shown(run.folder)}.")
    return run.folder


def check_tokenizer(codes: CodeDataset, tokenizer: str) -> None:
    """Refuse codes that another tokenizer made.

    Raises:
        CodesError: fingerprint, codebook, grid, depth or order differ.
    """
    model, manifest = load_tokenizer(tokenizer), codes.manifest
    theirs = f"codes that {shown(manifest.tokenizer)} made"
    if sentence := misfits(model, manifest, f"The tokenizer {shown(tokenizer)}", theirs):
        raise CodesError(sentence, "Make the codes again with this tokenizer, or name the tokenizer that made them.")


def _check_ids(codes: CodeDataset) -> None:
    """Read all codes and conditions once: one out of range would end the run at the step that meets it.

    Raises:
        CodesError: a code is beyond the codebook, a label beyond the classes, or a value beyond its condition's.
    """
    classes = codes.manifest.class_names
    if (
        classes is not None
        and codes.labels is not None
        and (highest := int(codes.labels.max(initial=-1))) >= len(classes)
    ):
        raise CodesError(
            f"{highest} is a label in the codes, and there are {len(classes)} classes.",
            "The data set is damaged, or others wrote it: make it again.",
        )
    condition = codes.manifest.sequence_config().conditioning
    for first in range(0, len(codes), _ROWS_AT_ONCE):
        rows = np.arange(first, min(first + _ROWS_AT_ONCE, len(codes)))
        codes.codes(rows)
        values, _ = codes.condition_values(rows)
        if values is not None and codes.manifest.condition is not None:
            try:
                condition.prefix(values)
            except CodegridError as error:
                raise CodesError(
                    f"These codes follow {condition.describe()}, and their rows do not: {error.what.rstrip('.')}.",
                    "The data set is damaged, or others wrote it: make it again.",
                ) from error


def _identity(config: PriorTrainingConfig, codes: CodeDataset) -> Identity:
    """The identity of the codes, shard by shard, so that a data set may grow by more shards."""
    manifest = codes.manifest
    names = ("tokenizer_fingerprint", "codebook_size", "grid_shape", "depth", "order", "class_names", "precision")
    fixed = {name: getattr(manifest, name) for name in names}
    if manifest.condition is not None:
        fixed["condition"] = manifest.condition
    if config.init_from:
        fixed["init_from"] = weights_fingerprint(load_prior_and_sequence(config.init_from)[0])
    description = f"{manifest.num_rows:,} rows of codes of {manifest.tokenizer} ({manifest.tokenizer_fingerprint[:12]})"
    return Identity.of(description, fixed, (bytes.fromhex(shard.sha256) for shard in manifest.shards))


def _make_model(config: PriorTrainingConfig, sequence: SequenceConfig, log: Callable[[str], None]) -> PreTrainedModel:
    """Fresh weights, or those of `config.init_from`."""
    if not config.init_from:
        return make_prior(config.model, sequence)
    model, before = load_prior_and_sequence(config.init_from)
    check_order(config, model)
    if before.tokenizer_fingerprint != sequence.tokenizer_fingerprint:
        log(f"{config.init_from} was trained on the codes of another tokenizer: its weights are a start, and no more.")
    record = architecture_of(model)
    raster = record is None or record.reads == "before"
    return transferred(model, before, sequence, any_order=raster and config.order != "raster")


class PriorStage(Stage):
    """A transformer over the code sequences of a data set."""

    shown = ("loss",)

    def __init__(self, run: Run, config: PriorTrainingConfig, codes: CodeDataset) -> None:
        self.run, self.config, self.codes = run, config, codes
        self.device = run.accelerator.device
        self.rows, self.held_out = codes.split(config.validation_fraction)
        if not len(self.rows):
            raise CodesError(
                f"No codes are left to train on: validation_fraction is {config.validation_fraction}, of "
                f"{len(self.held_out)} rows.",
                "Lower validation_fraction, or tokenize more pictures.",
            )
        labels = None if codes.labels is None else codes.labels[self.rows]
        self.order = SampleOrder(len(self.rows), config.seed, class_weights(labels, config.class_balance))
        self.sequence = sequence_of(codes, config, self.rows, self.order)
        self.model = _make_model(config, self.sequence, run.log)
        freeze(self.model, config.freeze)
        self.objective = PriorObjective(
            self.model, self.sequence.codebook_size, config.gradient_checkpointing, config.fast_forward
        )
        optimizer = config.optimizer.for_batch(config.batch_size)
        self.orders = TrainingOrders(config, self.sequence, self.model)
        self.sharded = config.sharding != "none" and run.num_ranks > 1
        # Only the main process samples images, and of a divided prior it has a part.
        samples = run.is_main and not self.sharded
        self.tokenizer = samples_tokenizer(config, codes.manifest, run.log) if samples else None
        self._divided_memory = None
        if self.sharded:
            self._divided_memory = of_each_rank(self.memory(), self.model, run.num_ranks)
            shard(self.objective, run.accelerator)
        self.learner = Learner.make(self.model, optimizer, run.accelerator, self.objective)
        self.ema = EMA(self.model, config.ema_decay)
        self.optimizers = {"learning_rate": self.learner.optimizer}
        self.tokens_a_sample = self.sequence.length
        self.model.train()

    def step(self, step: int) -> dict[str, Tensor]:
        accelerator, parts, size = self.run.accelerator, self.config.gradient_accumulation_steps, self.config.batch_size
        rank, ranks = accelerator.process_index, accelerator.num_processes
        rows = self.rows[self.order.indices(step * size, size)]  # [batch_size], the same on every rank
        dropped = _dropped(self.config, step, len(parts_of(self.sequence.conditioning)))
        orders = self.orders.of_step(step)
        seed_step(self.config.seed, step, rank)
        loss = torch.zeros((), device=self.device)
        for part in range(parts):
            mine = slice(part * ranks + rank, None, ranks * parts)  # every (ranks * parts)-th row of the global batch
            with self.learner.exchanging_gradients(accelerator, part == parts - 1):
                with accelerator.autocast():
                    part_loss = self._loss(self.learner.wrapped, rows[mine], dropped[mine], orders.part(mine))
                accelerator.backward(part_loss / parts)
            loss += part_loss.detach() / parts
        norms = update_together([self.learner], step, self.config.max_steps)
        skipped = not_finite(norms)
        known = looks(step, skipped.device)
        if not known or not skipped:
            self.ema.update(step, None if known else skipped)
        self.last_batch = f"rows {rows[:8].tolist()}"
        return {"loss": loss, "grad_norm": norms[0], "skipped_steps": skipped}

    def _loss(
        self, model: torch.nn.Module, rows: np.ndarray, dropped: Tensor | None, orders: Orders = RASTER
    ) -> Tensor:
        """Mean cross-entropy of `rows` in nats per code. `dropped`, bool [B] or [B, parts], lose their condition."""
        labels, unknown = self.codes.condition_values(rows)
        if labels is not None:  # unlabelled images among labelled ones train the null class
            dropped = unknown if dropped is None else dropped | unknown
            labels = to_device(labels, self.device)
        codes = to_device(torch.from_numpy(self.codes.codes(rows)), self.device)  # [B, L]
        drop = None
        if labels is not None and dropped is not None and self.sequence.null_class:
            drop = to_device(dropped, self.device)
        smoothing = self.config.label_smoothing if model.training else 0.0
        options = {"label_smoothing": smoothing, "validate": False, **orders.to(self.device)._asdict()}
        return prior_loss(model, codes, labels, drop, self.sequence, **options)

    def evaluate(self, done: int | None) -> Scores:
        """The held-out loss (cross-entropy), and a picture of samples."""
        scores = self._held_out_scores()
        if done is None:
            return scores
        if scores:
            self.run.metrics(done, "validation", scores)
            nats, bits = scores["cross_entropy"], scores["bits_per_code"]
            others = (
                "" if (other := scores.get("cross_entropy_any_order")) is None else f"; {other:.4f} in random orders"
            )
            self.run.log(f"step {done}: held-out cross-entropy {nats:.4f} nats a code, {bits:.3f} bits{others}")
        if self.tokenizer is not None:
            with self.ema.applied():
                number = self.config.num_samples
                rows = rows_to_follow(self.codes, self.held_out if len(self.held_out) else self.rows, number)
                picture = sample_picture(self.model, self.tokenizer, self.sequence, number, rows)
            self.run.picture("samples", done, picture)
        return scores

    def _held_out_scores(self) -> Scores:
        accelerator, size = self.run.accelerator, self.run.micro_batch_size
        if not len(self.held_out):
            return {}
        ranks, model = accelerator.num_processes, self.objective if self.sharded else self.model
        places = np.arange(len(self.held_out))[accelerator.process_index :: ranks]
        sums = torch.zeros(3, device=self.device)  # nats, nats in random orders, rows
        with self.ema.applied(), evaluating(model), not_compiled(), accelerator.autocast():
            for first in range(0, -(-len(self.held_out) // ranks), size):
                mine = places[first : first + size]
                if not len(mine) and not self.sharded:
                    break
                # Ranks that gather weights from each other take equally many steps; one without a row reads any.
                read = mine if len(mine) else np.zeros(1, np.int64)
                raster, random = self.orders.held_out(read)
                loss = self._loss(model, self.held_out[read], None, raster)
                other = loss if random is None else self._loss(model, self.held_out[read], None, random)
                sums[0] += loss.float() * len(mine)
                sums[1] += other.float() * len(mine)
                sums[2] += len(mine)
        total, other, number = accelerator.reduce(sums, "sum").tolist()
        scores = {"cross_entropy": total / number, "bits_per_code": bits_per_code(total / number)}
        return scores | ({"cross_entropy_any_order": other / number} if self.orders.reads == "any order" else {})

    @property
    def num_samples(self) -> int:
        """Images that an evaluation samples at once, on the main process."""
        return 0 if self.tokenizer is None else self.config.num_samples

    def memory(self) -> MemoryEstimate:
        if self._divided_memory is not None:
            return self._divided_memory
        return estimate_of_prior(self.run, self.config, self.objective, self.sequence, self.num_samples)

    def groups(self) -> dict[str, Tensors]:
        return {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.learner.optimizer, self.model),
            "ema": self.ema.weights,
        }

    def load(self, groups: dict[str, Tensors]) -> None:
        own = self.model.state_dict()
        weights = {name: divided_like(value, own.get(name, value)) for name, value in groups["model"].items()}
        self.model.load_state_dict(weights)
        load_optimizer_tensors(self.learner.optimizer, self.model, groups.get("optimizer", {}), self.run.log)
        self.ema.load(groups.get("ema", {}))

    def export(self, scores: Scores) -> None:
        with self.ema.applied():
            model = whole(self.model, self.run.is_main) if self.sharded else self.model
            if model is not None and self.run.is_main:
                codes, made_by = self.config.codes, self.codes.manifest.tokenizer
                export_prior(model, self.sequence, self.run.folder, codes, scores, made_by)


def sequence_of(
    codes: CodeDataset, config: PriorTrainingConfig, rows: np.ndarray, order: SampleOrder
) -> SequenceConfig:
    """The meaning of the tokens. If no sample of the run loses its condition and none lacks one, the null token is
    never trained, so there is nothing to guide away from.

    Args:
        rows: the rows to train on, in the `order` in which the run takes them.
    """
    sequence = codes.manifest.sequence_config()
    if sequence.conditioning.vocab_size == 0:
        return sequence
    parts = (rows[first : first + _ROWS_AT_ONCE] for first in range(0, len(rows), _ROWS_AT_ONCE))
    known = [codes.condition_values(part)[1] for part in parts]
    unknown = torch.cat([part for part in known if part is not None]).numpy()  # bool [rows] or [rows, parts]
    for step in range(config.max_steps):  # mostly one: a share of each batch loses its class
        taken = order.indices(step * config.batch_size, config.batch_size)
        if (config.class_dropout > 0 and bool(_dropped(config, step).any())) or unknown[taken].any():
            return sequence
        if config.class_dropout == 0 and not unknown.any():
            break
    return replace(sequence, null_class=False)


def _never_seen(codes: CodeDataset, rows: np.ndarray) -> str:
    """A line on classes that no row to train on is of; "" if there is none."""
    names = codes.manifest.class_names
    if names is None or codes.labels is None:
        return ""
    seen = set(np.unique(codes.labels[rows]).tolist())
    missing = [shown(name) for label, name in enumerate(names) if label not in seen]
    if not missing:
        return ""
    listed = ", ".join(missing[:_MOST_NAMES]) + (", ..." if len(missing) > _MOST_NAMES else "")
    return (
        f"No row to train on is of {len(missing)} of the {len(names)} classes, which the prior cannot learn: {listed}."
    )


def _dropped(config: PriorTrainingConfig, step: int, parts: int = 1) -> Tensor:
    """The samples of the global batch that lose their condition in this step: bool [batch_size], the same on all ranks.

    Of a condition of several parts, [batch_size, parts]: a share `class_dropout` of the samples loses all parts, and of
    the others each part is lost with that share, so that every branch of guidance is trained.
    """
    size, share = config.batch_size, config.class_dropout
    lost = torch.rand(size, generator=torch_generator(config.seed, "class dropout", step)) < share
    if parts == 1:
        return lost
    each = torch.rand(size, parts, generator=torch_generator(config.seed, "part dropout", step)) < share
    return lost[:, None] | each
