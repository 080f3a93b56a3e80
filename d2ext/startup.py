"""Quicker starts of the tools that train and predict, in less memory.

torch's compiler (`torch._dynamo`) is imported by torchvision, by each step of an optimizer and by
Detectron2's convolutions, which merely ask it whether something is being compiled. That takes a
quarter of the time to the first step, and 160 MB in each process; Python's garbage collector, which
looks at all modules again and again while they are imported, takes a tenth more
(`start` and `peak_rss` in benchmarks/RESULTS.md).
"""

import gc
import importlib.machinery
import importlib.util
import itertools
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

_executing = threading.RLock()


def begin_imports() -> None:
    """For a tool's first lines: nothing is collected, and the compiler waits until it is used."""
    gc.disable()
    _postpone_compiler()


def end_imports() -> None:
    """Collects garbage again, but leaves alone whatever there is by now: it will stay."""
    gc.freeze()
    gc.enable()


def _postpone_compiler() -> None:
    """Has `torch._dynamo` wait until somebody compiles, or wants more of it than is known here.

    Before that nothing is being compiled: `is_compiling` is False, there is no graph to break, and
    no function to keep from being compiled.
    """
    dynamo = _postpone(
        "torch._dynamo",
        is_compiling=lambda: False,
        graph_break=lambda *_, **__: None,
        disable=lambda fn, *_, **__: fn,
    )

    def is_compile_supported(device_type: Any) -> bool:
        _execute(utils)
        return utils.is_compile_supported(device_type)

    utils = dynamo.utils = _postpone(
        "torch._dynamo.utils", is_compile_supported=is_compile_supported
    )


class _Postponed(types.ModuleType):
    """A module that is executed when it is asked for what it does not have.

    `importlib.util.LazyLoader` makes such modules, too, but any attribute of theirs does it, as
    the import of something inside them.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of modules at large: the import system asks for `__path__`
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        _execute(self)
        return getattr(self, name)


def _postpone(name: str, **known: Callable) -> types.ModuleType:
    """Puts the module into `sys.modules`, not executed; `known` are attributes of it by then."""
    path = None
    for part in itertools.accumulate(name.split("."), "{}.{}".format):
        spec = importlib.machinery.PathFinder.find_spec(part, path)
        path = spec.submodule_search_locations
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Postponed
    vars(module).update(known)
    sys.modules[name] = module
    return module


def _execute(module: types.ModuleType) -> None:
    with _executing:
        if type(module) is _Postponed:
            module.__class__ = types.ModuleType
            module.__spec__.loader.exec_module(module)
