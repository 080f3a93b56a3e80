"""Read pickles without running code from them.

https://docs.python.org/3/library/pickle.html#restricting-globals
"""

import codecs
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import IO, Any

import numpy as np

_PLAIN = {
    ("_codecs", "encode"): codecs.encode,  # Python 3 writes byte strings this way
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],
    ("numpy.core.multiarray", "scalar"): np.float64(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.empty(1).__reduce_ex__(5)[0],
}


def read_pickle(
    file: IO[bytes], remedy: str, more: Mapping[tuple[str, str], Any] | None = None
) -> Any:
    """Read numpy arrays and plain containers from a pickle, and refuse everything else.

    Args:
        file: Pickle, possibly of Python 2.
        remedy: Advice for the error.
        more: Other harmless types to accept, by module and name.

    Raises:
        UnpicklingError: The file holds something else, or is damaged.
    """
    return _PlainUnpickler(file, remedy, _PLAIN | dict(more or {})).load()


class Foreign:
    """Stand-in for an object of a type that is not read: ignores whatever a pickle does to it."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> "Foreign":
        """Create an object with any arguments, as types with a `__new__` of their own do."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore the attributes."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an item of a subclass of dict."""

    def append(self, value: Any) -> None:
        """Ignore an item of a subclass of list or set."""

    extend = add = append


def foreign_pickle(allowed: Callable[[str, str], Any], found: list[str]) -> SimpleNamespace:
    """Return a pickle module for `torch.load` that replaces everything unknown by `Foreign`.

    Args:
        allowed: Returns the harmless type or function of a module and a name, or None.
        found: List to which the full names of all that is replaced are added.
    """

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            known = _PLAIN.get((module.replace("numpy._core", "numpy.core"), name))
            known = known or allowed(module, name)
            if known is None:
                found.append(f"{module}.{name}")
            return known or Foreign

    def load(file: IO[bytes], **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return SimpleNamespace(Unpickler=Unpickler, load=load, __name__="pickle")


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], remedy: str, allowed: Mapping[tuple[str, str], Any]):
        super().__init__(file, encoding="latin1")
        self._remedy = remedy
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}; only arrays and plain containers are read;"
                f" {self._remedy}"
            ) from None
