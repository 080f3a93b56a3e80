"""Functions that a saved config.yaml calls in place of objects that YAML cannot hold."""

import functools
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf


def partial_of(function: Callable, **arguments: Any) -> functools.partial:
    """Return `functools.partial(function, **arguments)`, whose own first parameter has no name.

    Args:
        function: Any callable.
        **arguments: Its arguments; lists and dicts of a config become plain ones.
    """
    plain = {
        k: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for k, v in arguments.items()
    }
    return functools.partial(function, **plain)
