"""The configuration of a training run: frozen dataclasses, named alike in Python, on the command line and on disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from codegrid.errors import require
from codegrid.pipelines.data.batches import AugmentationConfig
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.prior import PriorConfig
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig
from codegrid.tokenizer.fields import younger
from codegrid.tokenizer.losses import ObjectiveConfig
from codegrid.tokenizer.quantizers import QuantizerConfig

MOST_PROFILED = 100  # steps


@dataclass(frozen=True)
class TrainingConfig:
    """Settings shared by the runs of both stages.

    Args:
        output_dir: the run's folder. To resume, run the same command again.
        seed: seed of all random draws: initialisation, order, augmentation, dropout.
        max_steps: optimizer steps of the whole run; the learning rate schedule ends there.
        batch_size: samples per step, over all ranks and micro-steps.
        gradient_accumulation_steps: forward passes per step.
        mixed_precision: "auto" is bf16 if the device computes in it, else float32.
        device: "auto" is the device that Accelerate finds.
        deterministic: on a GPU, use only operations that give the same bits every time, and no TF32. This is slower,
            but a resumed run then equals an uninterrupted one bit for bit, as on a CPU. An operation without a
            deterministic form ends the run.
        num_workers: processes per rank that load samples; 0 loads in the training process. No result depends on it.
        ema_decay: decay of the EMA of the weights, which is evaluated and exported; 0 exports the weights themselves.
        log_every: steps between lines of metrics.
        eval_every: steps between evaluations; the last step is always evaluated.
        save_every: steps between checkpoints; there is one before each evaluation and after the last step as well.
        keep_last: number of newest checkpoints to keep.
        keep_every: checkpoints at multiples of this step are kept as well; 0 for none.
        profile: write a trace of this many steps, after the first three, into the run's folder; 0 for none. It opens at
            https://ui.perfetto.dev.
        tracking: tracker that shows metrics and pictures, besides metrics.jsonl and pictures/.
    """

    output_dir: str = ""
    seed: int = 0
    max_steps: int = 100_000
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    device: Literal["auto", "cpu"] = "auto"
    deterministic: bool = False
    num_workers: int = 0
    ema_decay: float = 0.0
    log_every: int = 50
    eval_every: int = 1_000
    save_every: int = 1_000
    keep_last: int = 2
    keep_every: int = 0
    profile: int = younger(0)
    tracking: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "log_every",
            "eval_every",
            "save_every",
            "keep_last",
        ):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}.", "It must be at least 1.")
        for name in ("seed", "num_workers", "keep_every"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}.", "It must not be negative.")
        require(
            0 <= self.profile <= MOST_PROFILED,
            f"profile is {self.profile}.",
            f"Give 0 to {MOST_PROFILED}: a step's trace takes megabytes.",
        )
        require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}.", "It must lie in [0, 1).")

    def micro_batch_size(self, ranks: int) -> int:
        """Samples per forward pass on one rank.

        Raises:
            ValueError: `batch_size` does not split evenly.
        """
        parts = ranks * self.gradient_accumulation_steps
        require(
            self.batch_size % parts == 0,
            f"batch_size {self.batch_size} does not split over {ranks} ranks x {self.gradient_accumulation_steps} "
            "gradient_accumulation_steps.",
            f"Make it a multiple of {parts}.",
        )
        return self.batch_size // parts


def check_frozen(freeze: tuple[str, ...], known: tuple[str, ...], init_from: str | None, kind: str) -> None:
    """Raises CodegridError: `freeze` names other parts than `known`, all of them, or parts that nobody trained."""
    require(set(freeze) <= set(known), f"freeze is {list(freeze)}.", f"It is made of {', '.join(known)}.")
    require(
        not freeze or bool(init_from),
        f"freeze is {list(freeze)} without init_from: these parts would keep weights that nobody trained.",
        f"Name the {kind} that they come from with --init-from.",
    )
    require(set(freeze) != set(known), "freeze names all parts.", "Leave out the one that is to be trained.")


@dataclass(frozen=True)
class DisturbanceConfig:
    """How codes are disturbed for a decoder that is trained on (`finetune_decoder`; https://arxiv.org/abs/2509.12474).

    Args:
        share: the largest share of a picture's codes that are replaced; each picture draws its own, evenly from 0 to
            this.
        neighbours: a replaced code becomes one of so many nearest codes (of all others, where there are fewer), each
            equally likely.
        prior: folder or Hub name of a prior on the tokenizer's codes. A replaced code then becomes one that this prior
            draws given the picture's own codes before it, and `neighbours` is not read.
    """

    share: float = 0.5
    neighbours: int = 16
    prior: str | None = None

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, f"disturbance.share is {self.share}.", "Give a number above 0, at most 1.")
        require(self.neighbours >= 1, f"disturbance.neighbours is {self.neighbours}.", "Give at least 1.")


AS_IT_COMES = DisturbanceConfig()


@dataclass(frozen=True)
class TokenizerTrainingConfig(TrainingConfig):
    """Settings of stage one, the training of a tokenizer.

    Args:
        class_conditional: give the decoder each picture's class (see `VQModelConfig.num_classes`); the data defines the
            classes. The discriminator has its own switch, objective.discriminator.conditional.
        init_from: folder or Hub name of a tokenizer whose weights training starts from; without it, weights are fresh.
            On the command line, backbone, quantizer and preprocessing come from that tokenizer too. The discriminator
            and the optimizers are always new.
        freeze: parts that keep the weights of `init_from` bit for bit, with their averages and counters: "encoder",
            "quantizer", "decoder". With encoder and quantizer frozen, pictures have the same codes afterwards.
        finetune_decoder: train the decoder of `init_from` on with disturbed codes, encoder and quantizer frozen: it
            then gives better pictures of what a prior draws. Code data sets and priors stay valid.
        disturbance: how the codes are disturbed; read only with finetune_decoder.
        revive_until: share of the run after which dead-code restarts stop, so that the end of training settles.
        onset_bound: the run warns if a reconstruction term rises, after the discriminator's start, above this many
            times its mean in the last window before.
        usage_warning: the run warns if a window uses less than this share of the codes that it could use; 0 never
            warns.
        num_pictures: held-out images in the picture of an evaluation; 0 for no picture.
        channels_last: use the channels-last layout for convolutions and images; it was faster wherever it was measured.
        gradient_checkpointing: recompute the residual and attention blocks in the backward pass instead of storing
            their activations: less memory, a slower step, the same gradients.
        compile: compile encoder, decoder and perceptual net with torch.compile: minutes at the start, then faster
            steps. It changes neither evaluation nor the names in a checkpoint, so these three may change when a run
            resumes.
    """

    init_from: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    quantizer: QuantizerConfig = field(default_factory=VectorQuantizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    class_conditional: bool = False
    revive_until: float = 0.6
    onset_bound: float = 1.5
    usage_warning: float = 0.2
    num_pictures: int = 8
    channels_last: bool = True
    gradient_checkpointing: bool = False
    compile: bool = False
    freeze: tuple[Literal["encoder", "quantizer", "decoder"], ...] = younger(())
    finetune_decoder: bool = younger(False)
    disturbance: DisturbanceConfig = younger(AS_IT_COMES)  # noqa: RUF009  (frozen, so that sharing it is safe)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_finetuning()
        self._check_frozen()
        self._check_rate()
        require(0 <= self.revive_until <= 1, f"revive_until is {self.revive_until}.", "It must lie in [0, 1].")
        require(self.onset_bound >= 1, f"onset_bound is {self.onset_bound}.", "It must be at least 1.")
        require(0 <= self.usage_warning < 1, f"usage_warning is {self.usage_warning}.", "It must lie in [0, 1).")
        require(self.num_pictures >= 0, f"num_pictures is {self.num_pictures}.", "It must not be negative.")

    def _check_finetuning(self) -> None:
        if not self.finetune_decoder:
            return
        require(
            bool(self.init_from),
            "finetune_decoder is set without init_from: there is no decoder to train on.",
            "Name the tokenizer with --init-from.",
        )
        require(
            "decoder" not in self.freeze,
            "finetune_decoder trains the decoder, and freeze names it.",
            "Leave freeze out: encoder and quantizer are frozen in any case.",
        )
        object.__setattr__(self, "freeze", ("encoder", "quantizer"))

    def _check_frozen(self) -> None:
        check_frozen(self.freeze, ("encoder", "quantizer", "decoder"), self.init_from, "tokenizer")
        require(
            "decoder" not in self.freeze or not (self.objective.adversarial_weight and self.objective.adaptive_weight),
            "freeze names the decoder, and objective.adaptive_weight reads the gradients of its last layer.",
            "Turn objective.adaptive_weight off, or set objective.adversarial_weight to 0.",
        )

    def _check_rate(self) -> None:
        weight = self.objective.rate_weight
        require(
            not weight or self.quantizer.has_distances,
            f"objective.rate_weight is {weight:g}, and the quantizer {self.quantizer.type!r} has no table of codes of "
            "which each position takes the nearest one.",
            "Set it to 0, or take quantizer.type vq or simvq.",
        )
        require(
            not weight or not {"encoder", "quantizer"} <= set(self.freeze),
            f"objective.rate_weight is {weight:g}, and encoder and quantizer are frozen: no code can change.",
            "Set it to 0, or freeze less.",
        )

    @property
    def needs_labels(self) -> bool:
        """Whether the decoder or the discriminator is class-conditional."""
        return self.class_conditional or (
            self.objective.adversarial_weight > 0 and self.objective.discriminator.conditional
        )


@dataclass(frozen=True)
class PriorTrainingConfig(TrainingConfig):
    """Settings of stage two, the training of a prior.

    Args:
        codes: folder or Hub name of a code data set; vocabulary, length and classes are read from it.
        init_from: folder or Hub name of a prior whose weights training starts from, with its sizes (`model` is then not
            read); its codes must be of the same codebook and grid. Classes are matched by name; new ones start as an
            image of no class does. With an `order`, a Llama or GPT-2 of raster order becomes one of any order. None
            starts from fresh weights.
        tokenizer: folder or Hub name of the tokenizer that must have made the codes; without it, this is not checked.
        class_dropout: share of the samples whose class (or other condition) is replaced by null, for classifier-free
            guidance; of several, of the others' samples each is lost with this share too.
        class_balance: how far an epoch evens out the classes, in [0, 1]: a class of n images comes n^(1 - balance)
            times as often as one of a single image. 0 takes each image once, 1 each class equally often.
        validation_fraction: share of the source images whose codes are held out, with all variants of an image.
        label_smoothing: label smoothing of the cross-entropy in training.
        gradient_checkpointing: recompute the blocks in the backward pass instead of storing their activations: less
            memory, a slower step, the same gradients.
        fast_forward: train with the forward pass of `prior/teacher_forcing.py` (1.1 times as fast on two CPU cores,
            docs/benchmarks.md). False uses the forward pass of transformers. The gradients agree up to rounding.
        compile: compile the blocks with torch.compile: a minute or more at the start, then faster steps. Evaluation
            does not change, so these two may change when a run resumes.
        sharding: "fsdp2" divides weights, gradients, moments and average among the ranks (torch's `fully_shard`), for
            priors that do not fit on one GPU; the losses are those of whole models up to rounding, and checkpoints and
            the finished prior are whole. No samples are drawn while it trains. It may change when a run resumes.
        num_samples: images to sample at each evaluation, always with the same seeds; 0 for none. They need a tokenizer:
            `tokenizer`, or the folder that the codes name.
        order: the order of an image's codes in training. "raster"; "random", another one for each sample; "annealed":
            random in the first half of the steps, then a falling share, which after three quarters stays at
            `random_share` (RAR, arXiv:2411.00776); "mixed": `random_share` from the first step. A prior that learned
            random orders fills in any part of a picture.
            With `model.architecture` "auto" it is an "any_order_llama". A masked prior ("bert") has no order.
        random_share: share of the samples in random order at the end of an "annealed" run, and all along a "mixed" one,
            in [0, 1].
        freeze: parts that keep the weights of `init_from` bit for bit: "embeddings" (of the tokens and positions),
            "blocks", "head" (the last norm and the output layer). With blocks and head frozen, a prior learns new
            classes and forgets nothing of the old ones' codes.
    """

    codes: str = ""
    init_from: str | None = None
    tokenizer: str | None = None
    class_dropout: float = 0.1
    validation_fraction: float = 0.05
    label_smoothing: float = 0.0
    gradient_checkpointing: bool = False
    fast_forward: bool = True
    compile: bool = False
    sharding: Literal["none", "fsdp2"] = younger("none")
    num_samples: int = 20
    model: PriorConfig = field(default_factory=PriorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    order: Literal["raster", "random", "annealed", "mixed"] = younger("raster")
    random_share: float = younger(0.5)
    class_balance: float = younger(0.0)
    freeze: tuple[Literal["embeddings", "blocks", "head"], ...] = younger(())

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_order()
        check_frozen(self.freeze, ("embeddings", "blocks", "head"), self.init_from, "prior")
        require(
            self.fast_forward or not self.gradient_checkpointing,
            "gradient_checkpointing is part of fast_forward, and that is off.",
            "Turn fast_forward on, or gradient_checkpointing off.",
        )
        require(
            self.model.record.checkpointing or not self.gradient_checkpointing,
            f"gradient_checkpointing is not there for the architecture {self.model.record.name!r}.",
            "Turn it off, or use 'llama'.",
        )
        self._check_sharding()
        require(self.num_samples >= 0, f"num_samples is {self.num_samples}.", "It must not be negative.")
        require(0 <= self.class_balance <= 1, f"class_balance is {self.class_balance}.", "It must lie in [0, 1].")
        for name in ("class_dropout", "validation_fraction", "label_smoothing"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}.", "It must lie in [0, 1).")

    def _check_sharding(self) -> None:
        require(
            self.sharding in ("none", "fsdp2"),
            f"sharding is {self.sharding!r}.",
            "Choose one of 'none' and 'fsdp2'.",
        )
        require(
            self.sharding == "none" or self.optimizer.type != "muon",
            f"sharding is {self.sharding!r} and optimizer.type 'muon', which orthogonalizes whole matrices, and each "
            "rank has a part of each.",
            "Choose --optimizer.type adamw, or --sharding none.",
        )
        require(
            self.sharding == "none" or not self.compile,
            f"sharding is {self.sharding!r} and compile is on: nobody has tried the two together.",
            "Turn one of them off.",
        )

    def _check_order(self) -> None:
        require(
            self.order in ("raster", "random", "annealed", "mixed"),
            f"order is {self.order!r}.",
            "Choose one of 'raster', 'random', 'annealed' and 'mixed'.",
        )
        require(0 <= self.random_share <= 1, f"random_share is {self.random_share}.", "It must lie in [0, 1].")
        model = self.model
        if self.order != "raster" and model == replace(model, architecture="auto", positions="rotary", qk_norm=False):
            object.__setattr__(self, "model", replace(model, architecture="any_order_llama"))
        reads = self.model.record.reads
        require(
            self.order == "raster" or reads == "any order" or self.init_from is not None,
            f"order is {self.order!r}, and the architecture {self.model.record.name!r} has "
            + ("no order." if reads == "around" else "raster order only."),
            "Turn model.qk_norm off (--model.no-qk-norm), or leave out the order."
            if model.qk_norm
            else "Leave model.architecture out, or the order.",
        )
        require(
            self.order != "raster" or reads != "any order" or self.init_from is not None,
            f"The architecture {self.model.record.name!r} is for codes in any order, and order is 'raster'.",
            "Set --order to 'annealed', 'mixed' or 'random', or choose the architecture 'gpt2'.",
        )
