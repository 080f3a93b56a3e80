"""Annotation formats: each module reads one into Detectron2's dataset dicts, without torch."""

from d2ext.data.formats import registry

__all__ = ["registry"]
