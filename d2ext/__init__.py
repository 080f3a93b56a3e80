"""d2ext: MMDetection's training workflow for Detectron2's LazyConfig files."""

__version__ = "0.1.0"
