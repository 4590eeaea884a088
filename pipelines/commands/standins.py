"""Help texts without the libraries: empty stand-ins take their place while a command's options are read."""

from __future__ import annotations

import abc
import contextlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

# What takes long to load, and serves no help text: a class's bases and decorators, a function's annotations.
HEAVY = {"torch", "torchvision", "transformers", "datasets", "accelerate", "torchmetrics", "huggingface_hub"}
HEAVY |= {"safetensors", "pyarrow", "tensorboard", "psutil", "PIL", "numpy", "tqdm", "yaml", "fsspec"}


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Stand-ins for the heavy libraries while the body runs. Nothing of ours that saw one is left behind.

    A process that has one of the libraries already gets none: what it imports meanwhile would keep the stand-ins.
    """
    if any(name.partition(".")[0] in HEAVY for name in sys.modules):
        yield
        return
    before, finder = set(sys.modules), _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            top, _, last = name.rpartition(".")
            if name.partition(".")[0] in {*HEAVY, "codegrid"}:
                vars(sys.modules.get(top, types)).pop(last, None)  # a module is an attribute of its package as well
                del sys.modules[name]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for every module of a heavy library."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        heavy = name.partition(".")[0] in HEAVY
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if heavy else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _StandInModule(types.ModuleType):
    """A module that has every name."""

    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _new(name)
        setattr(self, name, value)
        return value


class _Meta(abc.ABCMeta):
    """Classes that can be subclassed, called, subscripted, and used as decorators."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _new(name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not vars(cls).get("_is_stand_in"):
            return super().__call__(*args, **kwargs)  # a class of ours
        decorates = len(args) == 1 and not kwargs and isinstance(args[0], (types.FunctionType, type))
        return args[0] if decorates else _new(cls.__name__)

    def register(cls, *args: Any, **kwargs: Any) -> Any:
        """What transformers' registries have, and abstract classes have otherwise."""

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


def _new(name: str) -> Any:
    return _Meta(name, (), {"_is_stand_in": True})
