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
from collections.abc import Callable, Sequence
from typing import Any

_executing = threading.RLock()


def begin_imports() -> None:
    """For a tool that needs torch: no garbage is collected, and the compiler waits."""
    gc.disable()
    postpone_compiler()


def end_imports() -> None:
    """Collects garbage again, but leaves alone what there is by now: modules, which stay.

    Looking for garbage among them first takes 0.25 s, and finds next to nothing.
    """
    gc.freeze()
    gc.enable()


def postpone_compiler() -> None:
    """Has `torch._dynamo` wait until somebody compiles, or wants more of it than is known here.

    Before that nothing is being compiled: `is_compiling` is False, and there is no graph to break.
    """
    if "torch._dynamo" in sys.modules:
        return
    dynamo, utils = _unexecuted("torch._dynamo"), _unexecuted("torch._dynamo.utils")
    if dynamo is None or utils is None:  # no torch
        return
    behind = []

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

        behind.append(disable_really)
        return wrapper

    def is_compile_supported(device_type: Any) -> bool:
        _execute(utils)
        return utils.is_compile_supported(device_type)

    _postpone(
        dynamo,
        behind,
        is_compiling=_answer(dynamo, "is_compiling", False),
        graph_break=_answer(dynamo, "graph_break", None),
        disable=disable,
        trace_rules=types.SimpleNamespace(clear_lru_cache=lambda: None),
    )
    _postpone(
        utils,
        [],
        is_compile_supported=is_compile_supported,
        get_optimize_ddp_mode=_answer(utils, "get_optimize_ddp_mode", "ddp_optimizer"),
    )
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


def _unexecuted(name: str) -> types.ModuleType | None:
    """The module, which is neither executed nor known to the import system; None if there is none.

    Not by `find_spec` of the whole name, which imports the package.
    """
    package, *parts = itertools.accumulate(name.split("."), "{}.{}".format)
    spec = importlib.util.find_spec(package)
    for part in parts:
        path = spec and spec.submodule_search_locations
        spec = path and importlib.machinery.PathFinder.find_spec(part, path)
    return importlib.util.module_from_spec(spec) if spec else None


def _postpone(module: types.ModuleType, behind: Sequence[Callable[[], None]], **known: Any) -> None:
    """Makes an unexecuted module importable.

    Args:
        module: of `_unexecuted`.
        behind: what is called once it has been executed.
        known: its attributes until then.
    """
    module.__class__ = _Postponed
    module.__spec__.loader_state = (behind, known)
    vars(module).update(known)
    sys.modules[module.__name__] = module


def _answer(module: types.ModuleType, name: str, answer: Any) -> Callable:
    """A function of a postponed module: it gives `answer`, once executed what the module does."""

    def function(*args: Any, **kwargs: Any) -> Any:
        if module.__spec__.loader_state:
            return answer
        return getattr(module, name)(*args, **kwargs)

    return function


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
        spec.loader_state = None
        for call in behind:
            call()
