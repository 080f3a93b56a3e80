"""d2ext: MMDetection's training workflow for Detectron2's LazyConfig files."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    """`d2ext.Predictor`, which needs torch, when it is asked for."""
    if name == "Predictor":
        from d2ext.predict.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'd2ext' has no attribute {name!r}")
