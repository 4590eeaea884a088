"""SIGKILL at 20 seeded points of each job, SIGTERM at 10: what the run ends with is what an undisturbed one does."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_commands import (
    PRIOR,
    SCRIPTS,
    TOKENIZER,
    Ranks,
    different,
    files_of,
    newest_step,
    run_files,
    tokenizing,
    training,
    wait_until,
)

JOBS = {"tokenizer": TOKENIZER, "prior": PRIOR}
KILLS = 20


def kill_once(ranks: Ranks, folder: Path, draw: random.Random) -> list[int]:
    """Kill one or all ranks: soon after the start, some steps on, or while a checkpoint is written. Gives whom."""
    kind, start = draw.choice(["start", "step", "step", "writing"]), newest_step(folder)
    saves, delay = draw.randint(1, 3), draw.uniform(0, 0.06)
    victims = draw.choice([[0], [len(ranks.commands) - 1], list(range(len(ranks.commands)))])
    if kind == "start":  # ranks that have not met yet cannot miss each other: torchrun ends them all
        victims = list(range(len(ranks.commands)))
        time.sleep(draw.uniform(0, 1.5))
    else:
        assert wait_until(lambda: newest_step(folder) >= start + 2 * saves, ranks.running), ranks.output
        if kind == "writing":
            wait_until(lambda: any((folder / "checkpoints").glob(".tmp-*")), ranks.running, seconds=1.0)
        else:
            time.sleep(delay)
    ranks.kill(victims)
    return victims


@pytest.mark.faults
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("job", JOBS)
def test_training_survives_sigkill(job, number, request, tmp_path, tally):
    clean = request.getfixturevalue("clean" if number == 1 else "clean_two")
    arguments = [*JOBS[job].split(), *training(clean, job), "--output-dir", tmp_path / "run"]
    expected = run_files(clean / (job if number == 1 else f"{job}2"))
    draw = random.Random(f"{job}{number}")
    with tally(f"SIGKILL, training the {job}, {number} rank{'s' * (number > 1)}") as row:
        for _ in range(KILLS):
            ranks = Ranks(number, f"train_{job}", *arguments, folder=tmp_path)
            victims = kill_once(ranks, tmp_path / "run", draw)
            row.tries += 1
            statuses = ranks.wait(seconds=60)  # a rank that lost its partner ends by itself
            assert all(statuses[rank] == -signal.SIGKILL for rank in victims), ranks.output
            assert 0 not in statuses, "the run was over before it was killed"
            for rank in set(range(number)) - set(victims):
                assert "Another process of this job has died" in ranks.commands[rank].output, ranks.output
            row.survived += 1
        ranks = Ranks(number, f"train_{job}", *arguments, folder=tmp_path)
        assert set(ranks.wait()) == {0}, ranks.output
        wrong = different(run_files(tmp_path / "run"), expected)
        row.lost = f"{len(wrong)} files differ" if wrong else "0 bits"
        assert not wrong


@pytest.mark.faults
@pytest.mark.parametrize("job", JOBS)
def test_training_survives_sigterm(job, clean, tmp_path, tally):
    arguments = [*JOBS[job].split(), *training(clean, job), "--output-dir", tmp_path / "run"]
    draw, folder = random.Random(f"term{job}"), tmp_path / "run"
    with tally(f"SIGTERM and Ctrl-C, training the {job}") as row:
        for index in range(10):
            ranks, start = Ranks(1, f"train_{job}", *arguments, folder=tmp_path), newest_step(folder)
            assert wait_until(lambda start=start: newest_step(folder) >= start + 2, ranks.running), ranks.output
            time.sleep(draw.uniform(0, 0.1))
            before = newest_step(folder)
            ranks.kill([0], signal.SIGINT if index % 3 == 2 else signal.SIGTERM)
            row.tries += 1
            assert ranks.wait(60) == [143], ranks.output
            assert "Traceback" not in ranks.output
            assert f"Stopped after step {newest_step(folder)};" in ranks.output
            assert newest_step(folder) >= before
            row.survived += 1
        assert set(Ranks(1, f"train_{job}", *arguments, folder=tmp_path).wait()) == {0}
        wrong = different(run_files(folder), run_files(clean / job))
        # The checkpoint of the last step is the same; one more old one may be kept than an undisturbed run has.
        row.lost = f"{len(wrong)} files differ" if wrong else "0 bits"
        assert not wrong


@pytest.mark.faults
@pytest.mark.parametrize("number", [1, 2])
def test_tokenizing_survives_sigkill(number, clean, tmp_path, tally):
    arguments = [*tokenizing(clean), "--output-dir", tmp_path / "codes"]
    draw = random.Random(number)

    def done() -> int:
        return len(list((tmp_path / "codes" / ".shards").glob("*.json")))

    with tally(f"SIGKILL, tokenizing, {number} rank{'s' * (number > 1)}") as row:
        for _ in range(KILLS):
            ranks, start = Ranks(number, "tokenize_dataset", *arguments, folder=tmp_path), done()
            victims = [draw.randrange(number)]
            if draw.random() < 0.3:
                victims = list(range(number))
                time.sleep(draw.uniform(0, 1.0))
            else:
                wanted = start + draw.randint(1, 2)
                assert wait_until(lambda wanted=wanted: done() >= wanted, ranks.running), ranks.output
                time.sleep(draw.uniform(0, 0.02))
            ranks.kill(victims)
            row.tries += 1
            statuses = ranks.wait(120)  # the other rank does its share, and then finds that it is alone
            assert -signal.SIGKILL in statuses, "it was over before it was killed"
            row.survived += 1
            if done() > 30:  # the other rank has finished its share: begin again, so that there is something to kill
                shutil.rmtree(tmp_path / "codes")
        ranks = Ranks(number, "tokenize_dataset", *arguments, folder=tmp_path)
        assert set(ranks.wait()) == {0}, ranks.output
        wrong = different(files_of(tmp_path / "codes"), files_of(clean / "codes"))
        row.lost = f"{len(wrong)} files differ" if wrong else "0 rows"
        assert not wrong


def children(pid: int) -> list[int]:
    """Processes that load images for `pid`: they are forked from a child of it that does nothing else.

    What that one starts while it imports (a library asks the system's tools) is a fork of it for an instant, too.
    """
    found = [worker for server in _forked(pid) for worker in _forked(server)]
    time.sleep(0.05)
    return [worker for server in _forked(pid) for worker in _forked(server) if worker in found]


def _forked(pid: int) -> list[int]:
    """Children of `pid` that are, or were forked from, a server of forks."""
    found = []
    with contextlib.suppress(OSError):  # one has just ended
        for task in Path(f"/proc/{pid}/task").glob("*"):
            for child in (task / "children").read_text().split():
                if b"multiprocessing.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_tokenizing_survives_dead_workers(workers, clean, tmp_path, tally):
    """In rounds, 40% of the workers (at least one) are killed; the next round takes another number of them."""
    # So many that the workers cannot have read all before they are killed.
    for file in sorted((clean / "images").glob("*/*")):
        for copy in range(12):
            target = tmp_path / "images" / file.parent.name / f"{copy}-{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    arguments = [*tokenizing(clean), "--data.source", tmp_path / "images", "--images-per-shard", 41]
    assert set(
        Ranks(1, "tokenize_dataset", *arguments, "--output-dir", tmp_path / "whole", folder=tmp_path).wait()
    ) == {0}
    arguments += ["--output-dir", tmp_path / "codes"]
    draw = random.Random(workers)
    with tally(f"40% of {workers} loading processes killed") as row:
        for round_ in range(2):
            count = (workers + round_ - 1) % 3 + 1
            ranks = Ranks(1, "tokenize_dataset", *arguments, "--num-workers", count, folder=tmp_path)
            pid = ranks.commands[0].pid
            assert wait_until(lambda pid=pid, count=count: len(children(pid)) == count, ranks.running), ranks.output
            time.sleep(draw.uniform(0, 0.3))
            ranks.kill([0], signal.SIGSTOP)  # it takes no batch until they are dead
            workers_now = children(pid)
            for victim in draw.sample(workers_now, min(len(workers_now), max(1, round(0.4 * count)))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            ranks.kill([0], signal.SIGCONT)
            row.tries += 1
            assert ranks.wait() == [1], ranks.output
            # (A worker that was just starting says in a traceback of Python's own that its parent is gone.)
            assert "error: A process that loads images was killed. Run the same command again" in ranks.output
            row.survived += 1
        ranks = Ranks(1, "tokenize_dataset", *arguments, "--num-workers", workers, folder=tmp_path)
        assert ranks.wait() == [0], ranks.output
        wrong = different(files_of(tmp_path / "codes"), files_of(tmp_path / "whole"))
        row.lost = f"{len(wrong)} files differ" if wrong else "0 rows"
        assert not wrong


@pytest.mark.faults
def test_a_rank_that_dies_ends_the_run_for_all(clean_two, tmp_path, tally):
    """Under torchrun itself, and SIGTERM to torchrun."""
    arguments = [*PRIOR.split(), *training(clean_two, "prior"), "--output-dir", tmp_path / "run"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch = [*torchrun, SCRIPTS / "train_prior.py", *map(str, arguments)]
    with tally("a rank of torchrun killed; torchrun stopped") as row:
        for how in ("rank", "stop"):
            start = newest_step(tmp_path / "run")
            with (tmp_path / "log").open("w") as log:
                agent = subprocess.Popen(launch, stdout=log, stderr=log, start_new_session=True)
            alive = lambda agent=agent: agent.poll() is None  # noqa: E731
            assert wait_until(lambda start=start: newest_step(tmp_path / "run") >= start + 4, alive)
            if how == "rank":
                ranks = [
                    int(child)
                    for task in Path(f"/proc/{agent.pid}/task").glob("*")
                    for child in (task / "children").read_text().split()
                    if b"train_prior" in Path(f"/proc/{child}/cmdline").read_bytes()
                ]
                assert len(ranks) == 2
                subprocess.run(["kill", "-9", str(ranks[1])], check=True)
            else:
                agent.send_signal(signal.SIGTERM)
            row.tries += 1
            assert agent.wait(60) != 0
            row.survived += 1
        assert "Stopped after step" in (tmp_path / "log").read_text()
        result = subprocess.run(launch, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        wrong = different(run_files(tmp_path / "run"), run_files(clean_two / "prior2"))
        row.lost = f"{len(wrong)} files differ" if wrong else "0 bits"
        assert not wrong


def test_a_killed_run_is_resumed_bit_for_bit(clean, tmp_path, tally):
    """The short form for every day: three kills of one run, the first in an interpreter of its own."""
    arguments = [*PRIOR.split(), *training(clean, "prior"), "--output-dir", tmp_path / "run"]
    with tally("SIGKILL, training the prior (short)") as row:
        for index in range(3):
            start = newest_step(tmp_path / "run")
            ranks = Ranks(1, "train_prior", *arguments, folder=tmp_path, fresh=index == 0)
            assert wait_until(lambda start=start: newest_step(tmp_path / "run") > start + 10, ranks.running), (
                ranks.output
            )
            ranks.kill([0])
            row.tries += 1
            assert json.loads((tmp_path / "run" / "training_config.json").read_text())["stage"] == "prior"
            row.survived += 1
        assert Ranks(1, "train_prior", *arguments, folder=tmp_path).wait() == [0]
        wrong = different(run_files(tmp_path / "run"), run_files(clean / "prior"))
        row.lost = f"{len(wrong)} files differ" if wrong else "0 bits"
        assert not wrong
