"""run.json and config.yaml: what a run is, where it runs and since when."""

import copy
import datetime
import json
import logging
import os
import platform
import shlex
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from d2ext import __version__
from d2ext.config.saved import saved_text
from d2ext.engine.preflight import Plan
from d2ext.files import replaced, write_json

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "detectron2", "sal-detectron2", "numpy", "timm", "hotcoco")


def describe(config_file: str, argv: list[str]) -> dict[str, str]:
    """Name, config file and command of a run; a run's config.yaml is called like its folder."""
    path = Path(config_file)
    return {
        "name": path.resolve().parent.name if path.suffix == ".yaml" else path.stem,
        "config_file": config_file,
        "command": shlex.join(["python", os.path.relpath(argv[0]), *argv[1:]]),
    }


def write_about(out: Path, plan: Plan, about: dict[str, Any]) -> float:
    """Writes run.json at the start; a resumed run keeps its first start and its seconds.

    Args:
        out: folder of the run.
        plan: of `plan_run`.
        about: of `describe`.

    Returns:
        The start on the monotonic clock, for `finish_about`.
    """
    versions = {"d2ext": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    before = _read(out) if plan.resume else {}
    content = {
        **about,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **{k: v for k, v in before.items() if k in ("started", "seconds_before")},
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "device": plan.device,
        "classes": plan.classes,
        "datasets": plan.datasets,
        "max_iter": plan.schedule and plan.schedule.max_iter,
        "batch_size": plan.schedule and plan.schedule.batch_size,
    }
    if "train_seconds" in before:
        content["seconds_before"] = before["train_seconds"]
    write_json(out / "run.json", content)
    return time.monotonic()


def finish_about(out: Path, started: float, stopped_by: str | None) -> None:
    """Adds how long the training took, over all its parts, and the signal that ended it early."""
    content = _read(out)
    seconds = content.pop("seconds_before", 0) + time.monotonic() - started
    content["train_seconds"] = round(seconds, 1)
    if stopped_by:
        content["stopped_by"] = stopped_by
    write_json(out / "run.json", content)


def save_config(cfg: Any, out: Path) -> None:
    """Writes config.yaml, which resumes where it lies, whole or not at all."""
    cfg = copy.deepcopy(cfg)
    cfg.train.output_dir = str(out)
    text, problem = saved_text(cfg)
    if problem:
        logger.warning("config.yaml is for reading only, start with the recipe: %s", problem)
    with replaced(out / "config.yaml") as f:
        f.write(text)


def _read(out: Path) -> dict[str, Any]:
    path = out / "run.json"
    return json.loads(path.read_text()) if path.is_file() else {}
