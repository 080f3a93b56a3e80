"""Export trained models as files that run without torch and Detectron2."""
