"""Checkpoints: folders of safetensors, without pickles. They appear whole and are verified before older ones go.

checkpoints/step-000000500/
    model.safetensors, ...    one file per named group of tensors
    state.json                counters that are not tensors
    manifest.json             step, and the sha256 and size of every file; written last
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from codegrid.errors import CodegridError
from codegrid.names import shown
from codegrid.pipelines.system.files import GO_ON, OutputError, fsync, sha256, write_json
from codegrid.pipelines.system.numbers import memory
from codegrid.pipelines.training.divided import divided_like

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: groups of tensors by name, and counters."""

    step: int
    groups: dict[str, Tensors]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep_last: int, keep_every: int = 0) -> Path:
    """Write a temporary folder, flush, rename and verify it; only then remove all but the newest `keep_last`.

    Args:
        folder: the run's `checkpoints`.
        keep_every: checkpoints at multiples of this step are never removed; 0 for none.

    Raises:
        OutputError: the disk is full or read-only. Older checkpoints are untouched.
    """
    target, aside = folder / f"step-{checkpoint.step:09d}", folder / f".tmp-step-{checkpoint.step}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, tensors in checkpoint.groups.items():
            save_file(_apart(tensors), aside / f"{name}.safetensors")
        write_json(aside / "state.json", checkpoint.state)
        files = {file.name: {"sha256": sha256(file), "bytes": file.stat().st_size} for file in sorted(aside.iterdir())}
        for name in files:
            fsync(aside / name)
        write_json(aside / "manifest.json", {"step": checkpoint.step, "files": files})
        shutil.rmtree(target, ignore_errors=True)  # only a broken checkpoint of the same step can be there
        os.rename(aside, target)
        fsync(folder)
    except Exception as error:  # safetensors raises its own error on a full disk
        shutil.rmtree(aside, ignore_errors=True)
        raise OutputError(
            f"Could not write the checkpoint of step {checkpoint.step} into {shown(folder)}: {error}. The earlier ones "
            "are intact.",
            GO_ON,
        ) from error
    problem = what_is_wrong(target)
    if problem:
        raise OutputError(
            f"The checkpoint {shown(target)} does not read back ({problem}).",
            "Look at the disk, which may be failing; then run the same command again, or copy the run to another disk.",
        )
    _rotate(folder, checkpoint.step, keep_last, keep_every)
    return target


def check_space(folder: Path, stored: Iterable[Tensor], optimizers: Iterable[Optimizer]) -> None:
    """Check that the first checkpoint of a run fits on the disk.

    Args:
        folder: the run's; it may not exist yet.
        stored: what a checkpoint has but the state of the optimizers, which grows to two numbers a weight.

    Raises:
        OutputError: it does not fit.
    """
    trained = (weight for each in optimizers for group in each.param_groups for weight in group["params"])
    needed = sum(each.nbytes for each in stored) + 2 * sum(weight.nbytes for weight in trained)
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OutputError(
            f"A checkpoint of this run takes about {memory(needed)}, and {shown(there)} has {memory(free)} free.",
            GO_ON,
        )


def newest_checkpoint(folder: Path, log: Any = print) -> Path | None:
    """The newest checkpoint that verifies, or None. The others are logged with a reason and skipped.

    Every file is read: of several ranks, one should look and tell the others.
    """
    for path in reversed(_list(folder)):
        problem = what_is_wrong(path) or _unreadable(path)
        if problem is None:
            return path
        log(f"Passed over the checkpoint {path}: {problem}.")
    return None


def load_newest_checkpoint(folder: Path, log: Any = print) -> Checkpoint | None:
    """The content of the `newest_checkpoint`, or None."""
    path = newest_checkpoint(folder, log)
    return None if path is None else load_checkpoint(path)


def _unreadable(path: Path) -> str | None:
    """Why a checkpoint whose bytes are those of its manifest cannot be read, or None. Of tensors the header is read."""
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"it cannot be read ({file.name}: {error})"
    try:
        json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        return f"it cannot be read (state.json: {error})"
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """The content of a checkpoint that verifies."""
    manifest, groups = json.loads((path / "manifest.json").read_text()), {}
    for name in (name for name in manifest["files"] if name.endswith(".safetensors")):
        try:
            groups[Path(name).stem] = load_file(path / name)
        except SafetensorError as error:
            raise CodegridError(f"{name}: {error}.", "An older checkpoint is taken.") from error
    return Checkpoint(manifest["step"], groups, json.loads((path / "state.json").read_text()))


def _apart(tensors: Tensors) -> Tensors:
    """Contiguous copies on the CPU, each in its own memory: safetensors refuses shared tensors (tied embeddings)."""
    apart, seen = {}, set()
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        apart[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return apart


def what_is_wrong(path: Path) -> str | None:
    """None if all files of a checkpoint have the size and sha256 of its manifest, else a description of the fault."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files = manifest["files"]
        if not isinstance(manifest["step"], int) or "state.json" not in files:
            return "manifest.json is not that of a checkpoint"
        for name, entry in files.items():
            file = path / name
            if Path(name).name != name or not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
            if sha256(file) != entry["sha256"]:
                return f"{name} is damaged (its sha256 differs)"
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read ({error})"
    return None


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> Tensors:
    """An optimizer's state as flat tensors: `<slot>/<parameter name>`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{slot}/{names[id(parameter)]}": value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def load_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: Tensors, log: Any = print) -> None:
    """The inverse of `optimizer_tensors`. `step` stays on the CPU, where the optimizer keeps it.

    Muon and AdamW keep different slots of a parameter. If a parameter has changed from one to the other since, its
    saved state is dropped, `log` gets a line, and the parameter starts without state.
    """
    parameters = dict(model.named_parameters())
    changed = _of_another_kind(optimizer, parameters, tensors)
    if changed:
        log(
            f"The checkpoint's optimizer state of {', '.join(changed)} is not what the optimizer keeps of it today: it "
            "starts anew there."
        )
    for key, value in tensors.items():
        slot, name = key.split("/", 1)
        if name in changed:
            continue
        parameter = parameters[name]
        if slot == "step":
            loaded = value.to(parameter.device if _steps_on_device(optimizer) else "cpu", copy=True)
        else:
            # Keep the parameter's memory format: the fused AdamW pairs weights and moments by their place in memory.
            loaded = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
            loaded.copy_(divided_like(value, parameter))
        optimizer.state[parameter][slot] = loaded


def _of_another_kind(optimizer: Optimizer, parameters: dict[str, Tensor], tensors: Tensors) -> list[str]:
    """Names of the parameters whose slots in `tensors` differ from those of the optimizer's group."""
    by_muon = {id(one) for group in optimizer.param_groups if group.get("momentum") for one in group["params"]}
    slots: dict[str, set[str]] = {}
    for slot, name in (key.split("/", 1) for key in tensors):
        slots.setdefault(name, set()).add(slot)
    return [name for name, found in slots.items() if ("momentum_buffer" in found) != (id(parameters[name]) in by_muon)]


def _steps_on_device(optimizer: Optimizer) -> bool:
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)


def _list(folder: Path) -> list[Path]:
    paths = folder.glob("step-*")
    return sorted(path for path in paths if path.is_dir() and re.fullmatch(r"step-\d{9}", path.name))


def _rotate(folder: Path, newest: int, keep_last: int, keep_every: int) -> None:
    """`newest` is the step just verified. Later checkpoints are damaged ones that were skipped when the run resumed."""
    steps = {int(path.name.removeprefix("step-")): path for path in _list(folder)}
    rotating = [step for step in steps if step <= newest and not (keep_every and step % keep_every == 0)]
    for step in [*rotating[: -max(1, keep_last)], *(step for step in steps if step > newest)]:
        shutil.rmtree(steps[step], ignore_errors=True)
