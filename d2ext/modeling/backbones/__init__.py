"""Backbones that Detectron2 lacks."""
