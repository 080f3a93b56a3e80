"""Names of the files that more than one module of d2ext looks for in a run directory."""

LAST = "last_checkpoint"  # Detectron2's pointer file: the name of the newest checkpoint
BEST = "model_best.pth"
FINAL = "model_final.pth"
