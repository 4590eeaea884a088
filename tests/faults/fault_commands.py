"""The project's commands as processes that can be killed, starved and damaged.

A command runs in a process of its own, from its script, by its command line. So that hundreds of them take minutes, the
processes are forked from one that has imported the libraries and done nothing else (`forkserver`); `fresh=True` starts
a new interpreter instead.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
PRELOAD = [
    "codegrid.pipelines.system.console",
    "codegrid.pipelines.generation.to_folder",
    "codegrid.pipelines.codes.tokenize",
    "codegrid.pipelines.training.tokenizer.presets",
    "codegrid.pipelines.training.prior.train",
    "codegrid.pipelines.training.tokenizer.train",
    "codegrid.pipelines.codes.verify",
    "datasets",
    "torchmetrics.functional.image",
    "tyro",
]
# A command of this suite takes seconds; one that has not ended by then hangs.
PATIENCE = 240.0

TOKENIZER = "quickstart --max-steps 150 --batch-size 4 --save-every 2 --eval-every 50 --log-every 5 --ema-decay 0.9"
TOKENIZER += " --mixed-precision no --preprocessing.image-size 16 --num-pictures 2 --tracking"
TOKENIZER += " --backbone.resolution 16 --backbone.ch 8 --backbone.norm-groups 4 --backbone.z-channels 8"
TOKENIZER += " --backbone.dropout 0.1 --quantizer.codebook-size 32 --quantizer.code-dim 4"
TOKENIZER += " --objective.adversarial-weight 0.5 --objective.adversarial-start 20"
TOKENIZER += " --objective.discriminator.ndf 8 --objective.discriminator.n-layers 1"
PRIOR = "quickstart --max-steps 150 --batch-size 4 --save-every 2 --eval-every 50 --log-every 5 --ema-decay 0.9"
PRIOR += " --mixed-precision no --validation-fraction 0.2 --tracking"
PRIOR += " --model.hidden-size 16 --model.num-hidden-layers 1 --model.num-attention-heads 2"
PRIOR += " --model.attention-dropout 0.1"

_context = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Set up the process that the others are forked from; once, before the first command."""
    folders = [str(Path(__file__).parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    os.environ["OMP_NUM_THREADS"] = "1"
    _context.set_forkserver_preload(PRELOAD)


def _main(script: str, arguments: list[str], environment: dict[str, str], log: str, most_bytes: int | None) -> None:
    """In the forked process: become the command."""
    os.setsid()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if most_bytes is not None:  # what the command says goes through a pipe, which has no limit
        output = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output).stdin.fileno()
    os.dup2(output, 1)
    os.dup2(output, 2)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    if "FAULT" in environment:
        import inject

        inject.plant(environment["FAULT"])
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


class Command:
    """A running command.

    Args:
        most_bytes: no file may grow larger (RLIMIT_FSIZE): what a full disk does to a write.
        fault: planted into the process, see inject.py.
        fresh: start a new interpreter.
    """

    def __init__(
        self,
        name: str,
        *arguments: object,
        folder: Path,
        environment: dict[str, str] | None = None,
        most_bytes: int | None = None,
        fault: str = "",
        fresh: bool = False,
    ) -> None:
        self.log = folder / f"{name}-{time.monotonic_ns()}-{random.randrange(10**9)}.log"
        environment = {**(environment or {}), **({"FAULT": fault} if fault else {})}
        script, values = str(SCRIPTS / f"{name}.py"), [str(argument) for argument in arguments]
        if fresh:
            with self.log.open("w") as log:
                self._popen = subprocess.Popen(
                    [sys.executable, script, *values], stdout=log, stderr=log, env={**os.environ, **environment},
                    start_new_session=True,
                )  # fmt: skip
            self._process = None
        else:
            self._process = _context.Process(
                target=_main, args=(script, values, environment, str(self.log), most_bytes)
            )
            self._process.start()
        self.pid = self._popen.pid if fresh else self._process.pid

    def poll(self) -> int | None:
        """Exit status (the signal's number, negative, where one ended it); None while it runs."""
        return self._popen.poll() if self._process is None else self._process.exitcode

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the end; a command that hangs is killed and fails the test."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"Hung for {seconds} s:\n{self.output}")
            time.sleep(0.005)
        return self.poll()

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)
            if number == signal.SIGKILL:
                while self.poll() is None:
                    time.sleep(0.002)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def error(self) -> str:
        """The sentence that the command ended with; a traceback fails the test."""
        assert "Traceback" not in self.output, self.output
        sentences = [line for line in self.output.splitlines() if line.startswith("error: ")]
        assert len(sentences) == 1, self.output
        return sentences[0]


def run(name: str, *arguments: object, folder: Path, status: int = 0, **options: Any) -> Command:
    """Run a command to its end; it must end with `status`."""
    command = Command(name, *arguments, folder=folder, **options)
    assert command.wait() == status, command.output
    return command


class Ranks:
    """The same command on several ranks, with the environment that torchrun gives them."""

    def __init__(self, number: int, name: str, *arguments: object, folder: Path, **options: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.commands = []
        for rank in range(number):
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            values = {key: str(value) for key, value in environment.items()} if number > 1 else {}
            self.commands.append(Command(name, *arguments, folder=folder, environment=values, **options))

    def running(self) -> bool:
        return all(command.poll() is None for command in self.commands)

    def kill(self, ranks: list[int], number: int = signal.SIGKILL) -> None:
        for rank in ranks:  # all at once, before one can notice
            if self.commands[rank].poll() is None:
                os.kill(self.commands[rank].pid, number)
        if number == signal.SIGKILL:
            for rank in ranks:
                self.commands[rank].wait()

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        return [command.wait(seconds) for command in self.commands]

    @property
    def output(self) -> str:
        return "\n".join(command.output for command in self.commands)


def wait_until(condition: Callable[[], bool], while_true: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait for `condition` as long as `while_true`; whether it came."""
    end = time.monotonic() + seconds
    while not condition():
        if not while_true() or time.monotonic() > end:
            return condition()
        time.sleep(0.002)
    return True


def newest_step(run_folder: Path) -> int:
    """Of the checkpoints of a run."""
    steps = [int(path.name[5:]) for path in (run_folder / "checkpoints").glob("step-*")]
    return max(steps, default=0)


def files_of(folder: Path, *left_out: str) -> dict[str, bytes]:
    """All files below a folder by path, less those whose path starts with one of `left_out`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(left_out or ("\0",))}


def different(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of the files that are not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def run_files(folder: Path) -> dict[str, bytes]:
    """What a training run leaves, less what names its own folder."""
    return files_of(folder, "training_config.json", "README.md", ".lock")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text().splitlines())


def make_images(folder: Path, number: int, first: int = 0) -> Path:
    """Grey 16x16 PNGs in two classes, `image-0007.png` and so on."""
    for index in range(first, first + number):
        pixels = np.random.default_rng(index).integers(0, 256, (4, 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        path = folder / ("even", "odd")[index % 2] / f"image-{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def training(clean: Path, job: str) -> list[object]:
    """What a training command reads, and where it goes by default; a later --output-dir wins."""
    source = ["--data.source", clean / "images"] if job == "tokenizer" else ["--codes", clean / "codes"]
    return [*source, "--output-dir", clean / job]


def tokenizing(clean: Path) -> list[object]:
    return ["--tokenizer", clean / "tokenizer", "--data.source", clean / "images", "--images-per-shard", 2, "--flip"]
