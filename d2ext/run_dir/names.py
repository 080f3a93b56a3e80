"""Names of files in the run directory that more than one module of d2ext uses."""

import hashlib
import os
import shlex
from pathlib import Path

from d2ext.invocation import command

LAST = "last_checkpoint"  # Detectron2's pointer file: the name of the newest checkpoint
BEST = "model_best.pth"
FINAL = "model_final.pth"
CONFIG = "config.yaml"
RESAMPLES = "resamples"  # folder with the draws of evaluations


def digest_of(samples: Path) -> str:
    """Return the name, without suffix, under which a file belongs in resamples/."""
    return hashlib.sha256(samples.read_bytes()).hexdigest()[:16]


def run_folder(config_file: str | os.PathLike) -> Path | None:
    """Return the run directory, possibly moved, whose saved config this file is, else None."""
    path = Path(config_file)
    return path.parent if path.name == CONFIG and (path.parent / "run.json").is_file() else None


def saved_config_hint(name: str, weights: Path, flags: str = "") -> str:
    """Return a hint to use the saved config of the run that weights belong to; "" without one.

    Args:
        name: Name of the command to suggest.
        weights: File of the weights.
        flags: Flags of the command.
    """
    file = weights.parent / CONFIG
    if not run_folder(file) or not file.is_file():
        return ""
    line = f"{command(name)} {shlex.quote(str(weights.parent))} {flags}".strip()
    return f"; `{line}` uses the config that its run has saved"


def run_name(config_file: str | os.PathLike) -> str:
    """Return a run's name: the stem of its config file, or the folder of a saved config.yaml."""
    path = Path(config_file)
    return path.resolve().parent.name if path.name == CONFIG else path.stem


def usual_weights(folder: Path) -> str | None:
    """Return a run's weights to use by default: `best`, else `last`; None if it has neither."""
    if (folder / BEST).is_file():
        return "best"
    return "last" if any((folder / name).is_file() for name in (LAST, FINAL)) else None
