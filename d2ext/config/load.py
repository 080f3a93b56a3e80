"""A config file and overrides to a config."""

import builtins
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2ext.config.overrides import apply_overrides
from d2ext.errors import UserError

_SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train", "datasets")


def load_config(config_file: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Loads a LazyConfig file (.py, or the config.yaml of a run) and applies strict overrides.

    Args:
        config_file: path of the file.
        overrides: `key=value` strings, see `apply_overrides`.

    Returns:
        An omegaconf DictConfig with all sections that a training needs.

    Raises:
        UserError: the file is absent, is no LazyConfig, fails, or an override is wrong.
    """
    path = Path(config_file)
    if not path.is_file():
        raise UserError(f"the config file {path} does not exist{_similar(path)}")
    if path.suffix not in (".py", ".yaml", ".yml"):
        raise UserError(f"the config file {path} is neither .py nor .yaml")
    cfg = _execute(path)
    missing = [name for name in _SECTIONS if name not in cfg]
    if missing:
        raise UserError(
            f"{path} has no section {', '.join(missing)}; a LazyConfig for d2ext has"
            f" {', '.join(_SECTIONS)}" + (" (this looks like a yacs config)" * ("MODEL" in cfg))
        )
    if "dist_params" in cfg:  # the guide's name for it
        _merge_dist(cfg, path)
    # Which of the two lengths an override sets decides; a file that sets both is ambiguous.
    if cfg.train.get("max_epochs") and cfg.train.get("max_iter"):
        raise UserError(f"{path} sets both train.max_epochs and train.max_iter; set one to None")
    apply_overrides(cfg, overrides)
    return cfg


def _merge_dist(cfg: Any, path: Path) -> None:
    given = cfg.pop("dist_params")
    known = ("backend", "port", "url")
    if unknown := set(given) - set(known):
        raise UserError(
            f"{path}: dist_params has {', '.join(unknown)}; it takes {', '.join(known)}"
        )
    cfg.train.dist = {**cfg.train.get("dist", {}), **given}


def _execute(path: Path) -> Any:
    from detectron2.config import LazyConfig

    original = builtins.__import__
    try:
        return LazyConfig.load(str(path))
    except UserError:
        raise
    except Exception as e:  # a config is code: whatever it raises is a mistake in that file
        cause = e.__cause__ if isinstance(e.__cause__, SyntaxError) else e
        raise UserError(f"{_place(path, cause)}: {type(cause).__name__}: {cause}") from e
    finally:
        # Detectron2 leaves its patched import in place when a config raises.
        builtins.__import__ = original


def _place(path: Path, error: BaseException) -> str:
    """`file:line` of the last frame inside a config file."""
    if isinstance(error, SyntaxError) and error.lineno:
        name = error.filename if error.filename != "<unknown>" else path
        return f"{name}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    # Frames of compiled configs carry the path as it was opened, below that of the top file.
    root = str(path.parent.parent)
    mine = [f for f in frames if f.filename == str(path) or f.filename.startswith(root)]
    inside = [f for f in mine if "site-packages" not in f.filename]
    return f"{inside[-1].filename}:{inside[-1].lineno}" if inside else str(path)


def _similar(path: Path) -> str:
    import difflib

    if not path.parent.is_dir():
        return f" (nor does the folder {path.parent})"
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
