"""What benchmarks are told: each option is written and described once, and a benchmark has those that it reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator

from codegrid.errors import require
from codegrid.pipelines.benchmarks.report import Row, write_report
from codegrid.pipelines.system.devices import Policy, machine, make_accelerator


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is measured beside other ways of computing the same; its fields are its options.

    Args:
        threads: of the CPU; 0 leaves torch's own choice.
        output: JSON file for the machine, the settings and the rows; none writes no file.

    Raises:
        CodegridError: a value is out of its range.
    """

    name: ClassVar[str]  # the word behind `codegrid dev benchmark`
    threads: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        require(self.threads >= 0, f"threads is {self.threads}.", "It must be at least 1, or 0 for torch's own choice.")

    def measure(self) -> list[Row]:
        """The rows of the table, each printed as soon as it is there."""
        raise NotImplementedError

    def machine(self) -> str:
        """For people: what computes."""
        return machine()

    def announcement(self) -> str:
        """What is printed above the table."""
        return self.machine()

    def run(self) -> None:
        """Print what computes and the table, and write the report where one is asked for."""
        if self.threads:
            torch.set_num_threads(self.threads)
        print(self.announcement())
        rows = self.measure()
        if self.output:
            write_report(self.output, self.machine(), {"what": self.name, **asdict(self)}, rows)


@dataclass(frozen=True, kw_only=True)
class Timed(Benchmark):
    """One that takes times. All ways run in turn, again and again, and a ratio is the median over these rounds of the
    first one's time by theirs: a machine that slows down for a while slows down both.

    Args:
        repeats: rounds that a median is taken over.
        only: parts to measure, where all of them take long; none measures all. A part is one of the benchmark's
            shapes, batches or precisions, and of two such names both have to fit.
    """

    parts: ClassVar[tuple[tuple[str, ...], ...]] = ()  # the names of parts, those of one kind together
    repeats: int = 9
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.repeats >= 1, f"repeats is {self.repeats}.", "It must be at least 1.")
        known = [name for kind in self.parts for name in kind]
        unknown = [name for name in self.only if name not in known]
        remedy = f"Its parts are {', '.join(known)}." if known else "This benchmark has one part: leave it out."
        require(
            not unknown, f"only is {', '.join(self.only)}, and {self.name} has no part {', '.join(unknown)}.", remedy
        )

    def wants(self, *names: str) -> bool:
        """Whether the part of these names is to be measured."""
        kinds = [[name for name in self.only if name in kind] for kind in self.parts]
        return all(not asked or any(name in asked for name in names) for asked in kinds)

    def announcement(self) -> str:
        return f"{super().announcement()}\nmedians of {self.repeats} rounds"


@dataclass(frozen=True, kw_only=True)
class OnDevice(Timed):
    """One that computes on a GPU where there is one.

    Args:
        device: that computes; "auto" is what Accelerate finds.
    """

    device: Literal["auto", "cpu"] = "auto"

    def accelerator(self, precision: str = "no", training: bool = False) -> Accelerator:
        """The device, which computes from now on as it does in training, or where codes are made (`Policy`)."""
        return make_accelerator(self.device, precision, training)

    def precisions(self) -> tuple[str, ...]:
        """Those of Accelerate that are worth timing: "bf16" where the device has instructions for it."""
        policy = Policy.decide(self.device, "auto", training=False, deterministic=False)
        return ("no", "bf16") if policy.precision == "bfloat16" else ("no",)

    def machine(self) -> str:
        return machine(Policy.decide(self.device, "no", training=False, deterministic=False).device)


@dataclass(frozen=True, kw_only=True)
class BesideBefore(OnDevice):
    """One that can run the first version of this project too.

    Args:
        before: folder of a checkout of its commit be0a219, to run it beside today's code, with ratios to its time;
            none leaves it out.
    """

    before: str | None = None


@dataclass(frozen=True, kw_only=True)
class BesideLlamaGen(OnDevice):
    """One that can run LlamaGen's code too.

    Args:
        llamagen: folder of a clone of https://github.com/FoundationVision/LlamaGen, to run its own code beside ours;
            none leaves it out.
    """

    llamagen: str | None = None


@dataclass(frozen=True, kw_only=True)
class BesidePeers(BesideLlamaGen):
    """One that can run both peers' code, and ours compiled.

    Args:
        taming: folder of a clone of https://github.com/CompVis/taming-transformers, likewise.
        compile: time ours compiled as well; compiling takes minutes.
    """

    taming: str | None = None
    compile: bool = False
