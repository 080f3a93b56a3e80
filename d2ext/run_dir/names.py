"""Names of files in the run directory that more than one module of d2ext uses."""

from pathlib import Path

LAST = "last_checkpoint"  # Detectron2's pointer file: the name of the newest checkpoint
BEST = "model_best.pth"
FINAL = "model_final.pth"


def usual_weights(folder: Path) -> str:
    """Return what a run's weights are without `--weights`: `best` where it is there, or `last`."""
    return "best" if (folder / BEST).is_file() else "last"
