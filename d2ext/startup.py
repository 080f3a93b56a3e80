"""Quicker starts of the tools that train and predict, in less memory.

torch's compiler (`torch._dynamo`) is imported by torchvision, by each step of an optimizer and by
Detectron2's convolutions, which merely ask it whether something is being compiled. That takes a
quarter of the time to the first step, and 160 MB in each process; Python's garbage collector, which
looks at all modules again and again while they are imported, takes a tenth more
(`start` and `peak_rss` in benchmarks/RESULTS.md).
"""

import functools
import gc
import importlib.abc
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
    """For a tool that needs torch: no garbage is collected, and the compiler waits."""
    gc.disable()
    postpone_compiler()


def end_imports() -> None:
    """Collects garbage again, but leaves alone whatever there is by now: it is there to stay."""
    gc.freeze()
    gc.enable()


def postpone_compiler() -> None:
    """Has `torch._dynamo` wait until somebody compiles, or wants more of it than is known here.

    Before that nothing is being compiled: `is_compiling` is False, and there is no graph to break.
    """
    if "torch._dynamo" in sys.modules:
        return
    waiting = []

    def disable(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        if not isinstance(fn, types.FunctionType):  # a model, a class, or a decorator is wanted
            _execute(dynamo)
            return dynamo.disable(fn, recursive, **options)
        call = fn

        @functools.wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)

        def disable_really() -> None:
            nonlocal call
            call = dynamo.disable(fn, recursive, **options)
            vars(wrapper).update(vars(call))  # by which the compiler knows it

        waiting.append(disable_really)
        return wrapper

    def behind() -> None:
        for disable_really in waiting:
            disable_really()

    def is_compile_supported(device_type: Any) -> bool:
        _execute(utils)
        return utils.is_compile_supported(device_type)

    dynamo = _postpone(
        "torch._dynamo",
        behind,
        is_compiling=lambda: False,
        graph_break=lambda *_, **__: None,
        disable=disable,
        trace_rules=types.SimpleNamespace(clear_lru_cache=lambda: None),
    )
    utils = dynamo and _postpone(
        "torch._dynamo.utils",
        is_compile_supported=is_compile_supported,
        get_optimize_ddp_mode=lambda: "ddp_optimizer",
    )
    if dynamo:
        dynamo.utils = utils
        sys.meta_path.insert(0, _PackageFirst())


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


def _postpone(
    name: str, behind: Callable[[], None] = lambda: None, **known: Any
) -> types.ModuleType | None:
    """Puts the module into `sys.modules`, not executed; does nothing where there is none.

    Args:
        name: of the module.
        behind: called once it has been executed.
        known: its attributes until then.
    """
    # Not `find_spec` of the whole name, which imports the package.
    if (spec := importlib.util.find_spec(name.partition(".")[0])) is None:
        return None
    for part in list(itertools.accumulate(name.split("."), "{}.{}".format))[1:]:
        spec = importlib.machinery.PathFinder.find_spec(part, spec.submodule_search_locations)
        if spec is None:
            return None
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Postponed
    spec.loader_state = (behind, known)
    vars(module).update(known)
    sys.modules[name] = module
    return module


def _execute(module: types.ModuleType) -> None:
    with _executing:
        package = sys.modules.get(module.__name__.rpartition(".")[0])
        if type(package) is _Postponed:  # it comes first, as in any import
            _execute(package)
        if type(module) is not _Postponed:
            return
        spec = module.__spec__
        behind, known = spec.loader_state
        module.__class__ = types.ModuleType
        for name, value in known.items():
            if not callable(value):  # the import system would take it for the module of that name
                delattr(module, name)
        spec._initializing = True  # other threads' imports wait, as for any module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            vars(module).update(known)
            module.__class__ = _Postponed
            raise
        finally:
            spec._initializing = False
        for name, value in known.items():
            if vars(module).get(name) is value:  # this version of it has no such thing
                delattr(module, name)
        behind()
