"""Quicker starts of the tools that train and predict, in less memory.

torch's compiler (`torch._dynamo`) is imported by torchvision, by each step of an optimizer and by
Detectron2's convolutions, which merely ask it whether something is being compiled. That takes a
quarter of the time to the first step, and 160 MB in each process; Python's garbage collector, which
looks at all modules again and again while they are imported, takes a tenth more
(`start` and `peak_rss` in benchmarks/RESULTS.md).
"""

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import sys
import threading
import types
from typing import Any

_executing = threading.RLock()


def begin_imports() -> None:
    """For a tool's first lines: nothing is collected, and the compiler waits until it is used."""
    gc.disable()
    if "torch._dynamo" not in sys.modules and importlib.util.find_spec("torch"):
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
        trace_rules=types.SimpleNamespace(clear_lru_cache=lambda: None),
    )

    def is_compile_supported(device_type: Any) -> bool:
        _execute(utils)
        return utils.is_compile_supported(device_type)

    sys.meta_path.insert(0, _PackageFirst())
    utils = dynamo.utils = _postpone(
        "torch._dynamo.utils",
        is_compile_supported=is_compile_supported,
        get_optimize_ddp_mode=lambda: "ddp_optimizer",
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


class _PackageFirst(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Has a postponed package executed before anything else in it is imported, as ever."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        package = sys.modules.get(name.rpartition(".")[0])
        if type(package) is not _Postponed:
            return None
        _execute(package)
        if (module := sys.modules.get(name)) is None:
            return None
        # The package has imported it. The import system would execute it again, by its spec.
        spec = importlib.machinery.ModuleSpec(name, self, loader_state=module.__spec__)
        vars(module)["__spec__"] = spec  # torch's modules of settings let no attribute be set
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__spec__"] = module.__spec__.loader_state


def _postpone(name: str, **known: Any) -> types.ModuleType:
    """Puts the module into `sys.modules`, not executed; `known` are its attributes until it is."""
    path = None
    for part in itertools.accumulate(name.split("."), "{}.{}".format):
        spec = importlib.machinery.PathFinder.find_spec(part, path)
        path = spec.submodule_search_locations
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Postponed
    vars(module).update(known, known=known)
    sys.modules[name] = module
    return module


def _execute(module: types.ModuleType) -> None:
    with _executing:
        package = sys.modules.get(module.__name__.rpartition(".")[0])
        if type(package) is _Postponed:  # it comes first, as in any import
            _execute(package)
        if type(module) is _Postponed:
            module.__class__ = types.ModuleType
            for name in vars(module).pop("known"):
                delattr(module, name)
            module.__spec__.loader.exec_module(module)
