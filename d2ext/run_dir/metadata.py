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
from d2ext.config.yaml_io import saved_text
from d2ext.files import atomic_write, write_json

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "detectron2", "sal-detectron2", "numpy", "timm", "hotcoco")


def write_run_info(out: Path, plan: Any, run_info: dict[str, Any]) -> None:
    """Writes run.json at the start; a resumed run keeps its first start and its seconds.

    Args:
        out: folder of the run.
        plan: of `plan_run`.
        run_info: of `describe`.
    """
    versions = {"d2ext": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    before = read_run_info(out) if plan.resume else {}
    content = {
        **{k: v for k, v in run_info.items() if k != "start"},
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **{k: v for k, v in before.items() if k in ("command", "started", "seconds_before")},
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "device": plan.device,
        "classes": plan.classes,
        "datasets": plan.datasets,
        "weights": plan.weights,
        "max_iter": plan.schedule and plan.schedule.max_iter,
        "batch_size": plan.schedule and plan.schedule.batch_size,
    }
    if plan.resume:
        content |= {"resumed_from": str(plan.resume), "resumed_by": run_info["command"]}
    if "train_seconds" in before:
        content["seconds_before"] = before["train_seconds"]
    write_json(out / "run.json", content)


def finish_run_info(out: Path, started: float, stopped_by: str | None) -> None:
    """Adds how long the training took, and the signal that ended it early.

    The seconds are those of all its parts that came to an orderly end.
    """
    content = read_run_info(out)
    seconds = content.pop("seconds_before", 0) + time.monotonic() - started
    content["train_seconds"] = round(seconds, 1)
    if stopped_by:
        content["stopped_by"] = stopped_by
    write_json(out / "run.json", content)


def write_repro_command(out: Path, run_info: dict[str, Any]) -> None:
    """Adds the command that trains the same again from config.yaml."""
    again = ["--config-file", str(out / "config.yaml"), "--work-dir", f"{out}_again"]
    command = shlex.join([*run_info["start"], *again])
    write_json(out / "run.json", {**read_run_info(out), "reproduce": command})


def save_config(cfg: Any, out: Path) -> bool:
    """Writes config.yaml, which resumes where it lies; returns whether it can be loaded."""
    cfg = copy.deepcopy(cfg)
    cfg.train.output_dir = str(out)
    text, problem = saved_text(cfg)
    if problem:
        logger.warning("config.yaml is for reading only, start with the recipe: %s", problem)
    with atomic_write(out / "config.yaml") as f:
        f.write(text)
    return not problem


def read_run_info(out: Path) -> dict[str, Any]:
    path = out / "run.json"
    return json.loads(path.read_text()) if path.is_file() else {}
