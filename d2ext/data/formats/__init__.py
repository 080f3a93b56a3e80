"""Annotation formats: each module reads one into Detectron2's dataset dicts, without torch."""
