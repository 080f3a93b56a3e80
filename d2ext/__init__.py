"""d2ext: MMDetection's training workflow for Detectron2's LazyConfig files."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names of `_MODULES`, for type checkers and documentation
    from d2ext.config.load import load_config as load_config
    from d2ext.config.recipes import get_config as get_config
    from d2ext.data.datasets.declare import Dataset as Dataset
    from d2ext.data.formats.format import Format as Format
    from d2ext.data.formats.format import register_format as register_format
    from d2ext.engine.api import evaluate as evaluate
    from d2ext.engine.api import train as train
    from d2ext.engine.run import Run as Run
    from d2ext.errors import UserError as UserError
    from d2ext.evaluation.metric import Metric as Metric
    from d2ext.predict.predictor import Prediction as Prediction
    from d2ext.predict.predictor import Predictor as Predictor

# Albumentations asks PyPI for updates when it is imported, as any look-up of a `_target_` may do.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.2.0"
__all__ = [
    "Dataset",
    "Format",
    "Metric",
    "Prediction",
    "Predictor",
    "Run",
    "UserError",
    "evaluate",
    "get_config",
    "load_config",
    "register_format",
    "train",
]

_MODULES = {
    "Dataset": "d2ext.data.datasets.declare",
    "Format": "d2ext.data.formats.format",
    "Metric": "d2ext.evaluation.metric",
    "Prediction": "d2ext.predict.predictor",
    "Predictor": "d2ext.predict.predictor",
    "Run": "d2ext.engine.run",
    "UserError": "d2ext.errors",
    "evaluate": "d2ext.engine.api",
    "get_config": "d2ext.config.recipes",
    "load_config": "d2ext.config.load",
    "register_format": "d2ext.data.formats.format",
    "train": "d2ext.engine.api",
}


if not TYPE_CHECKING:  # type checkers would accept every name

    def __getattr__(name: str) -> Any:
        """Import a public name when it is asked for: `import d2ext` itself takes no time."""
        if name not in _MODULES:
            raise AttributeError(f"module 'd2ext' has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)
