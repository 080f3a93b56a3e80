"""Load a config file and apply overrides."""

import builtins
import os
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from d2ext._compat import innermost_config
from d2ext.config.adapters import lazy, yacs
from d2ext.config.adapters.own_data import names_own_data, splits_own_data, use_own_data
from d2ext.config.by_hand import record_by_hand
from d2ext.config.check import SECTIONS, check_config
from d2ext.config.mmdetection.read import is_mmdetections
from d2ext.config.options import Dist
from d2ext.config.overrides import apply_overrides
from d2ext.config.registrations import registering
from d2ext.config.renamed import moved_import, rename_targets
from d2ext.config.tiles import use_tiles
from d2ext.config.yaml_io import parse_saved
from d2ext.errors import UserError
from d2ext.invocation import command
from d2ext.text import closest

RECIPES = Path(__file__).resolve().parent.parent / "configs"  # in a checkout, a link to configs/
_OWN_DATA = RECIPES / "common" / "data" / "custom.py"


def load_config(config_file: str | os.PathLike, overrides: Sequence[str] = ()) -> Any:
    """Load a LazyConfig file (.py, or the config.yaml of a run) and apply strict overrides.

    Args:
        config_file: Path of the file.
        overrides: `key=value` strings; see `apply_overrides`.

    Returns:
        An omegaconf DictConfig with all sections that training needs; see `check_config`.

    Raises:
        UserError: The file does not exist, is not a LazyConfig or fails, or an override is invalid.

    Examples:
        >>> import d2ext
        >>> cfg = d2ext.load_config("runs/trained/config.yaml", ["optimizer.lr=0.001"])
        >>> cfg.optimizer.lr
        0.001
    """
    from omegaconf import DictConfig

    path = Path(config_file)
    if os.path.isdir(path):  # unlike pathlib's, false for a name that is too long
        raise UserError(f"the config {path} is a folder; give a .py or .yaml file in it")
    if not os.path.isfile(path):
        raise UserError(f"the config file {path} does not exist{_similar(path)}")
    if path.suffix not in (".py", ".yaml", ".yml"):
        raise UserError(f"the config file {path} is neither .py nor .yaml")
    cfg, overrides = _executed(path, overrides)
    given = cfg if isinstance(cfg, DictConfig) and len(cfg) else {}  # else a list, or empty
    missing = [n for n in SECTIONS if n not in given or not isinstance(given[n], DictConfig)]
    if missing:
        raise UserError(
            f"{path} has no section {', '.join(missing)}; a LazyConfig for d2ext needs"
            f" {', '.join(SECTIONS)}, and one for Detectron2 {', '.join(lazy.SECTIONS)}"
        )
    rename_targets(cfg)
    if "dist_params" in cfg:  # MMDetection's name of `train.dist`
        _merge_dist(cfg, path)
    # An override of one length clears the other, but a file that sets both is ambiguous.
    if cfg.train.get("max_epochs") is not None and cfg.train.get("max_iter") is not None:
        raise UserError(f"{path} sets both train.max_epochs and train.max_iter; set one to None")
    if names_own_data(overrides):
        use_own_data(cfg, execute_config(_OWN_DATA), overrides)
    before, warmup = _lengths(cfg), _warmup(cfg)
    apply_overrides(cfg, overrides)
    record_by_hand(cfg, overrides)
    splits_own_data(cfg)
    if warmup and _warmup(cfg) and cfg.lr_multiplier.warmup_length == warmup[0]:
        cfg.train.warmup_iters = warmup[1]
    now = _lengths(cfg)
    if _adapted(cfg) and now != before and now["warmup_iters"] == before["warmup_iters"]:
        cfg.train.warmup_iters = None  # the warm-up keeps its share of a run of another length
    check_config(cfg)
    use_tiles(cfg)  # datasets are not registered yet, but a printed config shows the tiles
    if setup := cfg.train.get("yacs_setup"):
        yacs.yacs_defaults(setup)  # may register datasets
    return cfg


def _executed(path: Path, overrides: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """Execute a config file, and turn a config of Detectron2, lazy or yacs, into one of d2ext.

    Returns:
        The config, and the overrides that have not been applied yet.
    """
    from omegaconf import DictConfig

    if path.suffix == ".py" and is_mmdetections(path):
        how = f"{command('import-mmdet')} {shlex.quote(str(path))}"
        raise UserError(f"{path} is a config of MMDetection; `{how}` turns it into one of d2ext")
    if yacs.is_yacs(path):
        cfg, overrides = yacs.load_yacs(path, overrides)
    else:
        cfg = execute_config(path)
    if isinstance(cfg, DictConfig) and len(cfg) and lazy.is_detectron2s(cfg):
        lazy.adapt(cfg)
    return cfg, overrides


def _adapted(cfg: Any) -> bool:
    """Return whether a config was written for another project."""
    return bool("origin" in cfg and cfg.origin.format)


def _lengths(cfg: Any) -> dict[str, Any]:
    """Return the fields that determine the length of a run and of its warm-up."""
    train, keys = _section(cfg, "train"), ("max_epochs", "max_iter", "warmup_iters")
    fraction = _section(cfg, "lr_multiplier").get("warmup_length")
    return {**{key: train.get(key) for key in keys}, "fraction": fraction}


def _section(cfg: Any, name: str) -> Any:
    """Return a section; {} for anything else, which `check_config` reports."""
    section = cfg.get(name)
    return section if hasattr(section, "get") else {}


def _warmup(cfg: Any) -> tuple[float, int] | None:
    """Return the warm-up of a file, as a fraction of its run and as a number of iterations."""
    lengths = _lengths(cfg)
    fraction, length = lengths["fraction"], lengths["max_iter"]
    if lengths["warmup_iters"] is not None or _adapted(cfg):
        return None
    if not isinstance(fraction, float) or not fraction or not isinstance(length, int):
        return None
    return fraction, round(fraction * length)


def _merge_dist(cfg: Any, path: Path) -> None:
    given = cfg.pop("dist_params")
    known = [f.name for f in fields(Dist)]
    if not hasattr(given, "keys") or set(given) - set(known):
        raise UserError(
            f"{path}: dist_params={given} is not valid; give a dict of {', '.join(known)}"
        )
    cfg.train.dist = {**(cfg.train.get("dist") or {}), **given}


def execute_config(path: Path) -> Any:
    """Execute a config file and return the unchecked config that it defines.

    Raises:
        UserError: The file fails.
    """
    from detectron2.config import LazyConfig

    original = builtins.__import__
    try:
        if path.suffix != ".py":
            return parse_saved(path.read_text(encoding="utf-8"), str(path))
        # Detectron2 needs an absolute path to resolve `from ..common` in a file without a folder.
        with registering(path):
            return LazyConfig.load(os.path.abspath(path))
    except UserError:
        raise
    except (Exception, SystemExit) as e:  # a config is code, so any error is the user's
        cause = e.__cause__ if isinstance(e.__cause__, SyntaxError) else e
        # Some errors have many lines; `problem` is the informative one of YAML's.
        reason = (
            str(getattr(cause, "problem", None) or cause).strip() or "no message"
        ).splitlines()
        words = f"{_place(path, e)}: {type(cause).__name__}: {reason[0]}"
        if isinstance(cause, ModuleNotFoundError):
            words += "; modules must be in the current folder, on PYTHONPATH, or installed"
            folder, name = path.resolve().parent, (cause.name or "").partition(".")[0]
            if name and ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
                words += f"; PYTHONPATH={shlex.quote(str(folder))} finds the one next to the config"
        if "could not determine a constructor" in words:
            words += "; use the config file that the run was started with, see run.json"
        if isinstance(cause, AssertionError) and "already registered" in words:
            words = f"{words.removesuffix('!')}; choose another name for the dataset"
        raise UserError(moved_import(e) or words) from e
    finally:
        # Detectron2 leaves its patched import in place when a config raises.
        builtins.__import__ = original


def _place(path: Path, error: BaseException) -> str:
    """Return `file:line` of the innermost config file that fails, or only the file."""
    file, line = innermost_config(error.__traceback__) or (str(path), None)
    mark = getattr(error, "problem_mark", None)
    if mark and mark.name == file:  # YAML
        line = mark.line + 1
    elif isinstance(error.__cause__, SyntaxError):  # Detectron2's parser, which gives no file
        line = error.__cause__.lineno
    elif isinstance(error, SyntaxError) and error.filename and os.path.isfile(error.filename):
        file, line = error.filename, error.lineno
    file = file.removeprefix(os.path.join(os.getcwd(), ""))
    return f"{file}:{line}" if line else file


def _similar(path: Path) -> str:
    if not os.path.isdir(path.parent):
        return f" (nor does the folder {path.parent})"
    near = closest(path.name, (p.name for p in path.parent.iterdir()))
    return f"; did you mean {path.parent / near}?" if near else ""
