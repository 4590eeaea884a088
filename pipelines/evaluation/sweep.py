"""The settings of an evaluation of samples: all checked before anything is loaded or computed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from codegrid.errors import CodegridError, require
from codegrid.names import shown
from codegrid.pipelines.data.records import DataConfig, PicturesConfig
from codegrid.prior import SequenceConfig
from codegrid.prior.architectures import architecture_of
from codegrid.prior.sampling import SamplingConfig
from codegrid.prior.way import way_to_draw

VARIED = ("guidance_scale", "temperature", "top_k", "top_p")  # set by the options; other settings are the pipeline's
_SAMPLING = ("guidance_scales", "temperatures", "top_k", "top_p", "num_steps")
LEAST_IMAGES = 10  # the classifier's score is a mean over ten parts
# As in `DataConfig`: what a reference cannot use is refused if it differs.
_UNUSED = {"validation_split": None, "validation_fraction": 0.05, "streaming": False}


@dataclass(frozen=True)
class ReferenceConfig(PicturesConfig):
    """Where the real pictures come from.

    Args:
        source: the real pictures, as in the other commands; or an .npz file of statistics (mu and sigma) or pictures
            (arr_0). --reference is another name for it.
        validation_split: not used here.
        validation_fraction: not used here.
        streaming: not used here.
    """

    source: str = ""


@dataclass(frozen=True)
class Request:
    """The numbers and names of an evaluation of samples.

    Raises:
        CodegridError: one is out of range, or two exclude each other.
    """

    pipeline: str | None
    samples: str | None
    num_images: int
    batch_size: int
    seed: int
    num_reference: int
    judge_images: int
    guidance_scales: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()
    top_k: int | None = None
    top_p: float | None = None
    npz: bool = False
    save_statistics: str | None = None
    num_steps: tuple[int, ...] = ()
    num_workers: int = 0

    def __post_init__(self) -> None:
        least_values = {"num_images": LEAST_IMAGES, "batch_size": 1, "seed": 0, "judge_images": 0, "num_workers": 0}
        for name, least in least_values.items():
            value = getattr(self, name)
            require(value >= least, f"{name} is {value}.", f"Give at least {least}.")
        require(
            self.num_reference == 0 or self.num_reference >= 4,
            f"num_reference is {self.num_reference}.",
            "Give at least 4, or 0 for all: precision and recall look at each picture's three nearest ones.",
        )
        both = self.pipeline is not None and self.samples is not None
        require(not both, "Both pipeline and samples are given.", "Give the one whose samples are to be scored.")
        require(
            both or self.pipeline or self.samples,
            "There is nothing to score.",
            "Give --pipeline, or --samples with a folder of pictures or an .npz file of them.",
        )
        self.settings(SamplingConfig())  # their ranges
        for steps in self.num_steps:
            require(steps >= 1, f"num_steps has {steps}.", "Give at least 1.")
        if self.samples is not None:
            named = [name for name in _SAMPLING if getattr(self, name) not in ((), None)]
            named += ["npz"] * self.npz
            require(
                not named,
                f"samples is {self.samples!r}, and {', '.join(named)} can only be set for a pipeline.",
                "Leave them out: these samples are made already.",
            )
        if self.save_statistics is not None:
            path = Path(self.save_statistics)
            require(path.suffix == ".npz", f"save_statistics is {shown(path)}.", "Give a name that ends in .npz.")
            require(not path.exists(), f"{shown(path)} is there already.", "Give another name, or move it.")

    def settings(self, default: SamplingConfig) -> list[SamplingConfig]:
        """One setting a row: each guidance scale with each temperature; what is not given is `default`'s.

        Raises:
            CodegridError: a value is out of its range.
        """
        given = {"top_k": self.top_k, "top_p": self.top_p}
        fixed = replace(default, **{name: value for name, value in given.items() if value is not None})
        pairs = itertools.product(
            self.guidance_scales or (default.guidance_scale,), self.temperatures or (default.temperature,)
        )
        return [
            replace(fixed, guidance_scale=scale, temperature=temperature) for scale, temperature in dict.fromkeys(pairs)
        ]


def check_settings(
    settings: Sequence[SamplingConfig], sequence: SequenceConfig, prior: PreTrainedModel, steps: Sequence[int] = ()
) -> None:
    """Refuse what this prior cannot be sampled with.

    Raises:
        CodegridError: guidance of a prior without classes or a null class, a condition other than classes, or several
            codes a step of a prior of raster order.
    """
    record = architecture_of(prior)
    for number in steps:
        way_to_draw("before" if record is None else record.reads, sequence, 1, None, number, 0.0)
    require(
        sequence.condition is None,
        "Samples are evaluated of priors with classes or none, and this one's follow "
        f"{sequence.conditioning.describe()}.",
        "Sample from it yourself, and give the folder of the images: --samples FOLDER.",
    )
    guided = [setting.guidance_scale for setting in settings if setting.guidance_scale != 1]
    require(
        not guided or sequence.can_be_guided,
        f"guidance_scales has {', '.join(f'{scale:g}' for scale in guided)}, and this prior cannot be guided: it has "
        "no classes, or has not learned the null class (class_dropout 0).",
        "Leave --guidance-scales out, or give 1.",
    )


def reference_config(data: DataConfig, reference: str | None, split: str | None) -> DataConfig:
    """The reference by any of its names.

    Args:
        reference: another name for `data.source`.
        split: another name for `data.split`.

    Raises:
        CodegridError: there is none, or two; or an option that a reference cannot use.
    """
    require(
        not (reference and data.source),
        f"reference is {reference!r}, and data.source {data.source!r}: they are two names of one option.",
        "Give one of them.",
    )
    source = reference or data.source
    require(source, "There is no reference.", "Give --reference, with the real pictures or an .npz file of statistics.")
    if split is not None and data.split not in ("train", split):
        raise CodegridError(f"reference_split is {split!r}, and data.split {data.split!r}.", "Give one of them.")
    for name, unused in _UNUSED.items():
        value = getattr(data, name)
        require(
            value == unused,
            f"data.{name} is {value!r}: a reference does not use it.",
            "Leave it out; --data.split names the split to compare with.",
        )
    values = {**vars(data), "source": source, "split": split or data.split}
    return DataConfig(**values)
