"""Fast help texts: empty stand-ins replace the heavy libraries while a command's options are read."""

from __future__ import annotations

import abc
import contextlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

# Libraries that load slowly and do not matter to help texts: they only give bases, decorators and annotations.
HEAVY = {"torch", "torchvision", "transformers", "datasets", "accelerate", "torchmetrics", "huggingface_hub"}
HEAVY |= {"safetensors", "pyarrow", "tensorboard", "psutil", "PIL", "numpy", "tqdm", "yaml", "fsspec"}


@contextlib.contextmanager
def stand_ins() -> Iterator[bool]:
    """Replace the heavy libraries by stand-ins in the body. Our modules that saw a stand-in are unloaded afterwards.

    If one of the libraries is loaded already, there are no stand-ins: imports in the meantime would keep them.
    Yields whether there are.
    """
    if any(name.partition(".")[0] in HEAVY for name in sys.modules):
        yield False
        return
    before, finder = set(sys.modules), _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield True
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            top, _, last = name.rpartition(".")
            if name.partition(".")[0] in {*HEAVY, "codegrid"}:
                vars(sys.modules.get(top, types)).pop(last, None)  # a module is also an attribute of its package
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
            return super().__call__(*args, **kwargs)  # our own class
        decorates = len(args) == 1 and not kwargs and isinstance(args[0], (types.FunctionType, type))
        return args[0] if decorates else _new(cls.__name__)

    def register(cls, *args: Any, **kwargs: Any) -> Any:
        """`register` of transformers' registries and of abstract classes."""

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


def _new(name: str) -> Any:
    return _Meta(name, (), {"_is_stand_in": True})
