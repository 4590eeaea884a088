"""Damaged checkpoints, full disks and read-only folders: what was finished stays, and the next run goes on from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from fault_commands import (
    PRIOR,
    TOKENIZER,
    Command,
    different,
    files_of,
    newest_step,
    run,
    run_files,
    tokenizing,
    training,
)

from codegrid.pipelines.training.checkpoint import what_is_wrong

JOBS = {"tokenizer": TOKENIZER, "prior": PRIOR}
ADVICE = "run the same command again"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def resumed(job: str, clean: Path, folder: Path, **options) -> Command:
    arguments = [*JOBS[job].split(), *training(clean, job), "--output-dir", folder]
    return run(f"train_{job}", *arguments, folder=folder.parent, **options)


def without_last_save(clean: Path, job: str, folder: Path) -> Path:
    """A copy of a clean run that was stopped before its last checkpoint."""
    shutil.copytree(clean / job, folder)
    shutil.rmtree(folder / "checkpoints" / f"step-{newest_step(folder):09d}")
    for name in ("model.safetensors", "config.json", "README.md", "generation_config.json", "sequence_config.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.mark.faults
@pytest.mark.parametrize("job", JOBS)
def test_each_file_of_the_newest_checkpoint_may_be_damaged(job, clean, tmp_path, tally):
    names = sorted(path.name for path in (clean / job / "checkpoints" / "step-000000150").iterdir())
    assert len(names) >= 5
    with tally(f"a file of the newest checkpoint truncated, zeroed, deleted ({job})") as row:
        for name in names:
            for damage in (truncate, zero, Path.unlink):
                folder = tmp_path / f"{name}-{damage.__name__}"
                shutil.copytree(clean / job, folder)
                damage(folder / "checkpoints" / "step-000000150" / name)
                row.tries += 1
                output = resumed(job, clean, folder).output
                assert "Passed over the checkpoint" in output
                assert f"step-000000150: {name}" in output
                assert f"Resuming {folder} after step 148." in output
                assert not different(run_files(folder), run_files(clean / job))
                row.survived += 1
        row.lost = "0 bits"


def check_refusal(command: Command) -> None:
    error = command.error
    assert ADVICE in error, error


@pytest.mark.faults
@pytest.mark.parametrize("job", JOBS)
def test_no_space_at_any_write_of_training(job, clean, tmp_path, tally):
    """No file may grow to the size that it has in a clean run, size by size: each kind of file fails once."""
    sizes = {len(content) for name, content in run_files(clean / job).items() if "step-000000148" not in name}
    with tally(f"no space at a write, training the {job}") as row:
        for limit in sorted({0, *(size - 1 for size in sizes)}):
            folder = without_last_save(clean, job, tmp_path / str(limit))
            row.tries += 1
            check_refusal(resumed(job, clean, folder, most_bytes=limit, status=1))
            assert what_is_wrong(folder / "checkpoints" / "step-000000148") is None
            resumed(job, clean, folder)
            assert not different(run_files(folder), run_files(clean / job))
            row.survived += 1
            shutil.rmtree(folder)
        row.lost = "0 bits"


@pytest.mark.faults
def test_no_space_at_any_write_of_tokenizing(clean, tmp_path, tally):
    arguments = tokenizing(clean)
    sizes = sorted({len(content) for content in files_of(clean / "codes").values()} - {0})
    with tally("no space at a write, tokenizing") as row:
        for limit in sorted({0, *(size - 1 for size in sizes[:: max(1, len(sizes) // 10)]), sizes[-1] - 1}):
            folder = tmp_path / str(limit)
            row.tries += 1
            starved = run(
                "tokenize_dataset", *arguments, "--output-dir", folder, folder=tmp_path, most_bytes=limit, status=1
            )
            check_refusal(starved)
            run("tokenize_dataset", *arguments, "--output-dir", folder, folder=tmp_path)
            assert not different(files_of(folder), files_of(clean / "codes"))
            row.survived += 1
        row.lost = "0 rows"


def mounted(folder: Path, options: str) -> bool:
    folder.mkdir(exist_ok=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(options)`: (re)mount a file system in memory; skips where that is not allowed."""
    folder = tmp_path / "disk"

    def make(options: str) -> Path:
        again = "remount," if folder.is_mount() else ""
        if not mounted(folder, again + options):
            pytest.skip("mounting a tmpfs is not allowed here")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("job", JOBS)
def test_a_full_disk(job, clean, tmp_path, small_disk, tally):
    whole = sum(len(content) for content in run_files(clean / job).values())
    with tally(f"a full disk, training the {job}") as row:
        for share in (0.05, 0.3, 0.5, 0.7, 0.9):
            folder = small_disk(f"size={int(whole * share) // 4096 * 4096 + 4096}") / "run"
            row.tries += 1
            check_refusal(resumed(job, clean, folder, status=1))
            checkpoints = sorted((folder / "checkpoints").glob("step-*"))
            assert all(what_is_wrong(path) is None for path in checkpoints)
            row.survived += 1
        assert checkpoints, "no size let a checkpoint through"
        small_disk("size=64m")
        assert "Resuming" in resumed(job, clean, folder).output
        assert not different(run_files(folder), run_files(clean / job))
        row.lost = "0 bits"


@pytest.mark.faults
def test_a_read_only_folder(clean, tmp_path, small_disk, tally):
    disk = small_disk("size=64m")
    folder = without_last_save(clean, "prior", disk / "run")
    with tally("a folder that is read-only") as row:
        small_disk("ro")
        for name, arguments in {
            "train_prior": [*PRIOR.split(), *training(clean, "prior"), "--output-dir", folder],
            "tokenize_dataset": [*tokenizing(clean), "--output-dir", disk / "codes"],
            "generate": ["--pipeline", clean / "pipeline", "--num-images", 1, "--output-dir", disk / "samples"],
        }.items():
            row.tries += 1
            check_refusal(run(name, *arguments, folder=tmp_path, status=1))
            row.survived += 1
        small_disk("rw")
        resumed("prior", clean, folder)
        assert not different(run_files(folder), run_files(clean / "prior"))
        row.lost = "0 bits"


@pytest.mark.faults
def test_a_folder_is_one_process_s_own(clean, tmp_path, tally):
    with tally("two processes in one folder") as row:
        for name, arguments in {
            "train_prior": [*PRIOR.split(), *training(clean, "prior")],
            "tokenize_dataset": tokenizing(clean),
        }.items():
            folder = tmp_path / name
            first = Command(name, *arguments, "--output-dir", folder, folder=tmp_path)
            while not (folder / ".lock").exists():
                assert first.poll() is None, first.output
                time.sleep(0.001)
            row.tries += 1
            second = Command(name, *arguments, "--output-dir", folder, folder=tmp_path)
            assert second.wait() in (0, 1)  # 0: the first was done before the second looked
            if second.poll() == 1:
                assert "Another process is" in second.error
            assert first.wait() == 0, first.output
            row.survived += 1
        wrong = different(files_of(tmp_path / "tokenize_dataset"), files_of(clean / "codes"))
        assert not wrong
        row.lost = "0 rows"


def test_a_truncated_checkpoint_is_passed_over(clean, tmp_path, tally):
    """The short form for every day."""
    folder = tmp_path / "run"
    shutil.copytree(clean / "prior", folder)
    with tally("a file of the newest checkpoint truncated (short)") as row:
        row.tries += 1
        truncate(folder / "checkpoints" / "step-000000150" / "model.safetensors")
        assert "step-000000150: model.safetensors" in resumed("prior", clean, folder).output
        assert not different(run_files(folder), run_files(clean / "prior"))
        assert json.loads((folder / "checkpoints" / "step-000000150" / "manifest.json").read_text())["step"] == 150
        row.survived, row.lost = 1, "0 bits"
