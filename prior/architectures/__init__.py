"""The registry of architectures. To add one: a file beside this one with a record, and a line in the list below.

Another package adds its own by `register_architecture`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from codegrid.errors import CodegridError, require
from codegrid.prior.architectures.base import Architecture, num_positions, shared_values
from codegrid.prior.architectures.gpt2 import GPT2
from codegrid.prior.architectures.grid_llama import GRID_LLAMA
from codegrid.prior.architectures.llama import LLAMA
from codegrid.prior.architectures.qwen3 import QWEN3

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "architecture_named",
    "architecture_of",
    "architecture_of_class",
    "num_positions",
    "register_architecture",
    "shared_values",
]

ARCHITECTURES: dict[str, Architecture] = {}


def register_architecture(record: Architecture) -> Architecture:
    """Make an architecture known to `PriorConfig.architecture`, training, sampling, saving and loading.

    One that is not transformers' own is made known to `AutoModelForCausalLM` too. The record is given back.

    Raises:
        CodegridError: its name, class or model_type is another architecture's.
    """
    for known in ARCHITECTURES.values():
        for field in ("name", "class_name", "model_type"):
            value = getattr(record, field)
            require(
                record == known or value != getattr(known, field),
                f"There is an architecture with the {field} {value!r} already: give this one a {field} of its own.",
            )
    require(record.name != "auto", "'auto' is what PriorConfig.architecture is by default: choose another name.")
    ARCHITECTURES[record.name] = record
    if record.library != "transformers":
        AutoConfig.register(record.model_type, record.config_class, exist_ok=True)
        AutoModelForCausalLM.register(record.config_class, record.model_class, exist_ok=True)
    return record


for _record in (LLAMA, GRID_LLAMA, QWEN3, GPT2):
    register_architecture(_record)


def architecture_named(name: str) -> Architecture:
    """The record of a name.

    Raises:
        CodegridError: there is none. The message lists those that there are.
    """
    if name not in ARCHITECTURES:
        raise CodegridError(f"architecture is {name!r}: it must be 'auto' or one of {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def architecture_of(model: PreTrainedModel) -> Architecture | None:
    """The record of a model, or of the class that it is derived from; None for a model that is wrapped or unknown."""
    by_class = {record.model_class: record for record in ARCHITECTURES.values()}
    return next((by_class[kind] for kind in type(model).__mro__ if kind in by_class), None)


def architecture_of_class(name: str) -> Architecture | None:
    """The record of a model class's name, as config.json and model_index.json have it; None if unknown."""
    return next((record for record in ARCHITECTURES.values() if record.class_name == name), None)
