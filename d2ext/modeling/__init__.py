"""Models that Detectron2 lacks."""
