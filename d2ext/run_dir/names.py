"""Names of files in the run directory that more than one module of d2ext uses."""

LAST = "last_checkpoint"  # Detectron2's pointer file: the name of the newest checkpoint
BEST = "model_best.pth"
FINAL = "model_final.pth"
