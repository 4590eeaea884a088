"""The registry of architectures. To add one, put a file with a record beside this one and a line into the list below.

Another package adds its own with `register_architecture`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from codegrid.errors import CodegridError, require
from codegrid.prior.architectures.any_order import ANY_ORDER
from codegrid.prior.architectures.any_order_llama import ANY_ORDER_LLAMA
from codegrid.prior.architectures.base import Architecture, num_positions, shared_values
from codegrid.prior.architectures.bert import BERT
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
    """Register an architecture for `PriorConfig.architecture`, training, sampling, saving and loading.

    An architecture that is not part of transformers is also registered with `AutoModelForCausalLM`. Returns the record.

    Raises:
        CodegridError: another architecture has its name, class or model_type.
    """
    for known in ARCHITECTURES.values():
        for field in ("name", "class_name", "model_type"):
            value = getattr(record, field)
            require(
                record == known or value != getattr(known, field),
                f"There is an architecture with the {field} {value!r} already.",
                f"Give this one a {field} of its own.",
            )
    require(
        record.name != "auto",
        "An architecture is called 'auto', which is what PriorConfig.architecture is by default.",
        "Choose another name.",
    )
    ARCHITECTURES[record.name] = record
    if record.library != "transformers":
        AutoConfig.register(record.model_type, record.config_class, exist_ok=True)
        AutoModelForCausalLM.register(record.config_class, record.model_class, exist_ok=True)
    return record


for _record in (LLAMA, GRID_LLAMA, QWEN3, GPT2, ANY_ORDER, ANY_ORDER_LLAMA, BERT):
    register_architecture(_record)


def architecture_named(name: str) -> Architecture:
    """The record called `name`.

    Raises:
        CodegridError: there is none. The message lists the registered names.
    """
    if name not in ARCHITECTURES:
        raise CodegridError(f"architecture is {name!r}.", f"Choose 'auto' or one of {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def architecture_of(model: PreTrainedModel) -> Architecture | None:
    """The record of a model's class or of its base class; None for a wrapped or unknown model."""
    by_class = {record.model_class: record for record in ARCHITECTURES.values()}
    return next((by_class[kind] for kind in type(model).__mro__ if kind in by_class), None)


def architecture_of_class(name: str) -> Architecture | None:
    """The record by the name of the model class, as in config.json and model_index.json; None if unknown."""
    return next((record for record in ARCHITECTURES.values() if record.class_name == name), None)
