"""Reads a config dataclass from a dictionary, with errors that name the field."""

from __future__ import annotations

import types
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from codegrid.errors import CodegridError, require

T = TypeVar("T")


def younger(default: Any, before: Any = MISSING) -> Any:
    """A config's field that was added after configs had been saved; see `established`.

    `before` is the value that `from_dict` gives to saved configs without the field, if it differs from `default`.
    """
    return field(default=default, metadata={"younger": True, "before": default if before is MISSING else before})


def established(config: Any) -> dict[str, Any]:
    """A dataclass's fields as a dictionary, without `younger` ones whose value is that of a config without the field.

    So a value computed from a config, such as a fingerprint, stays the same when the config gets a new field.
    """
    found = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if not (entry.metadata.get("younger") and value == entry.metadata["before"]):
            found[entry.name] = established(value) if is_dataclass(value) else value
    return found


def from_dict(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Make dataclass `cls` from plain JSON values; nested dataclasses and tuples come from dictionaries and lists.

    Args:
        where: the user's name for this part of the config, for error messages.

    Raises:
        CodegridError: `values` is not a dictionary, has an unknown key, or a value of another type than its field; or
            `cls` is the base of registered configs, and none of them has the `type` of `values`.
    """
    require(
        isinstance(values, dict),
        f"{where} is no dictionary of fields, but {type(values).__name__}.",
        "Give a dictionary of fields.",
    )
    if "registered" in vars(cls):
        return from_dict(_kind(cls.registered, values, where), values, where)
    hints = get_type_hints(cls)
    known = {entry.name for entry in fields(cls) if entry.init}
    unknown = sorted(set(values) - known)
    require(
        not unknown,
        f"Unknown keys in {where}: {', '.join(unknown)}.",
        f"{cls.__name__} knows {', '.join(sorted(known))}.",
    )
    values = {**_meant(cls), **values}
    return cls(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def register(kind: type[T], base: type) -> type[T]:
    """Let `from_dict` make a `kind` for a field of type `base` if the dictionary has the `type` of `kind`.

    Args:
        kind: a frozen dataclass derived from `base`, with a default for every field and its own `type`.
        base: has `registered`, a dictionary of its kinds by their `type`.

    Raises:
        CodegridError: `kind` is not such a class, or another class has its `type`.
    """
    derived = isinstance(kind, type) and is_dataclass(kind) and issubclass(kind, base) and kind is not base
    require(derived, f"{kind!r} cannot be registered.", f"Make it a dataclass derived from {base.__name__}.")
    name = kind.type
    require(isinstance(name, str) and bool(name), f"{kind.__name__}.type is {name!r}.", "Give it a name.")
    there = base.registered.get(name, kind)
    # Running a notebook's cell again defines the same class again.
    same = (there.__module__, there.__qualname__) == (kind.__module__, kind.__qualname__)
    require(same, f"{kind.__name__}.type is {name!r}, which is the name of {there.__qualname__}.", "Take another.")
    base.registered[name] = kind
    return kind


def _kind(registered: dict[str, type], values: dict[str, Any], where: str) -> type:
    name = values.get("type")
    known = ", ".join(map(repr, registered))
    require(isinstance(name, str) and name in registered, f"{where}.type is {name!r}.", f"Choose one of {known}.")
    return registered[name]


def _meant(cls: type) -> dict[str, Any]:
    """Values of younger fields that a saved config lacks, where these are not the default of new configs."""
    entries = [entry for entry in fields(cls) if entry.metadata.get("younger")]
    return {entry.name: entry.metadata["before"] for entry in entries if entry.metadata["before"] != entry.default}


def completed(cls: type, values: Any) -> Any:
    """A saved config as plain values, with the younger fields that it lacks."""
    if not (is_dataclass(cls) and isinstance(values, dict)):
        return values
    hints = get_type_hints(cls)
    known = {entry.name for entry in fields(cls)}
    filled = {key: completed(hints[key], value) if key in known else value for key, value in values.items()}
    return {**_meant(cls), **filled}


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [kind for kind in args if kind is not type(None)]
        if len(kinds) == 1:
            return _convert(value, kinds[0], where)
        if isinstance(value, dict):  # the `type` field selects the member of a union of dataclasses
            for kind in kinds:
                if is_dataclass(kind) and getattr(kind, "type", None) == value.get("type"):
                    return from_dict(kind, value, where)
            known = ", ".join(repr(kind.type) for kind in kinds if hasattr(kind, "type"))
            require(not known, f"{where} is {value!r}.", f"Give a config whose type is one of {known}.")
        for kind in kinds:
            if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
                return value
            if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
                return _convert(value, kind, where)
    elif origin is Literal:
        require(value in args, f"{where} is {value!r}.", f"Choose one of {', '.join(map(repr, args))}.")
        return value
    elif origin is tuple:
        require(isinstance(value, (list, tuple)), f"{where} is {value!r}.", "Give a list.")
        inner = args[0] if args else Any
        return tuple(_convert(item, inner, f"{where}[{index}]") for index, item in enumerate(value))
    elif is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise CodegridError(f"{where} is {value!r}.", f"Give a value of type {hint}.")
