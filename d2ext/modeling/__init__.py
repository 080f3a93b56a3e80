"""Models and layers that Detectron2 does not provide."""
