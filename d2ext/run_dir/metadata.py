"""run.json and config.yaml: what a run is, where it runs and since when."""

import copy
import datetime
import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from d2ext import __version__
from d2ext.config.yaml_io import saved_text
from d2ext.errors import UserError
from d2ext.files import replaced, write_json
from d2ext.launch.topology import Layout
from d2ext.preflight.plan import Plan

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "detectron2", "sal-detectron2", "numpy", "timm", "hotcoco")


def run_name(config_file: str) -> str:
    """Of a recipe; a run's config.yaml is called like its folder."""
    path = Path(config_file)
    return path.resolve().parent.name if path.suffix == ".yaml" else path.stem


def describe(
    config_file: str, argv: Sequence[str], layout: Layout, validate: bool = True
) -> dict[str, Any]:
    """What is known of a run from its command.

    Args:
        config_file: of the command line.
        argv: the command line.
        layout: of `find_layout`.
        validate: whether the run evaluates while it trains.

    Returns:
        `name`, `config_file`, `command`, and `start`: the words that start as many processes, to be
        followed by a config and overrides.
    """
    tool = [*layout.starting(), os.path.relpath(argv[0])]
    return {
        "name": run_name(config_file),
        "config_file": config_file,
        "command": shlex.join([*tool, *argv[1:]]),
        "start": [*tool, *layout.flags(), *["--no-validate"] * (not validate)],
    }


def write_about(out: Path, plan: Plan, about: dict[str, Any]) -> None:
    """Writes run.json at the start; a resumed run keeps its first start and its seconds.

    Args:
        out: folder of the run.
        plan: of `plan_run`.
        about: of `describe`.
    """
    versions = {"d2ext": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    before = _read(out) if plan.resume else {}
    content = {
        **{k: v for k, v in about.items() if k != "start"},
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
        content |= {"resumed_from": str(plan.resume), "resumed_by": about["command"]}
    if "train_seconds" in before:
        content["seconds_before"] = before["train_seconds"]
    write_json(out / "run.json", content)


def finish_about(out: Path, started: float, stopped_by: str | None) -> None:
    """Adds how long the training took, and the signal that ended it early.

    The seconds are those of all its parts that came to an orderly end.
    """
    content = _read(out)
    seconds = content.pop("seconds_before", 0) + time.monotonic() - started
    content["train_seconds"] = round(seconds, 1)
    if stopped_by:
        content["stopped_by"] = stopped_by
    write_json(out / "run.json", content)


def tell_how_to_repeat(out: Path, about: dict[str, Any]) -> None:
    """Adds the command that trains the same again from config.yaml."""
    again = ["--config-file", str(out / "config.yaml"), "--work-dir", f"{out}_again"]
    write_json(out / "run.json", {**_read(out), "reproduce": shlex.join([*about["start"], *again])})


def save_config(cfg: Any, out: Path) -> bool:
    """Writes config.yaml, which resumes where it lies; returns whether it can be loaded."""
    cfg = copy.deepcopy(cfg)
    cfg.train.output_dir = str(out)
    text, problem = saved_text(cfg)
    if problem:
        logger.warning("config.yaml is for reading only, start with the recipe: %s", problem)
    with replaced(out / "config.yaml") as f:
        f.write(text)
    return not problem


def tell_failure(out: Path, message: str, details: str = "") -> None:
    """Leaves in log.txt, run.json and the report why a run has failed.

    Args:
        out: folder of the run.
        message: what a user can understand.
        details: for log.txt, a traceback.
    """
    from d2ext.report import write_report  # here, because a training need not wait for Jinja

    try:
        with open(out / "log.txt", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} E d2ext: error: {message}\n{details}")
        write_json(out / "run.json", {**_read(out), "ended_by": message})
        write_report(out)
    except (OSError, UserError) as e:  # the disk may be what failed
        print(f"warning: {out} does not tell of the failure: {e}", file=sys.stderr)


def _read(out: Path) -> dict[str, Any]:
    path = out / "run.json"
    return json.loads(path.read_text()) if path.is_file() else {}
