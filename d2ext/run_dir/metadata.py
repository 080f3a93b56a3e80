"""Write and read run.json (command, machine, versions and times of a run) and config.yaml."""

import contextlib
import copy
import datetime
import json
import logging
import os
import platform
import shlex
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from d2ext import __version__
from d2ext.config.yaml_io import saved_text
from d2ext.data.datasets.register import declare_registered
from d2ext.files import atomic_write, write_json
from d2ext.run_dir.schema import RunInfo, valid_part, write_record

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "detectron2", "sal-detectron2", "numpy", "timm", "hotcoco")


def write_run_info(out: Path, info: RunInfo) -> None:
    """Write run.json at the start; a resumed run keeps its command, start and training time.

    Args:
        out: Run directory.
        info: Fields from the config and command; `started` is added, `versions` and `machine` are
            completed.
    """
    before = RunInfo()
    if info.resumed_from:
        before = read_run_info(out)
        if _read_content(out) is None:
            logger.warning(
                "%s is damaged and has been replaced: the command, start and training time of the"
                " earlier starts are lost",
                out / "run.json",
            )
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    seconds = before.train_seconds
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    info = replace(
        info,
        command=before.command or info.command,
        started=before.started or now,
        versions=installed_versions() | info.versions,
        machine=", ".join(filter(None, [machine, info.machine])),
        seconds_before=before.seconds_before if seconds is UNSET else seconds,
    )
    write_record(out / "run.json", info)


def installed_versions() -> dict[str, str]:
    versions = {"d2ext": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def finish_run_info(out: Path, started: float, stopped_by: str | None) -> None:
    """Record the training time, and the signal that ended the run early.

    The time is the total of all starts, without those that were killed.
    """
    seconds = (read_run_info(out).seconds_before or 0) + time.monotonic() - started
    update_run_info(
        out,
        seconds_before=UNSET,
        train_seconds=round(seconds, 1),
        stopped_by=stopped_by or UNSET,
    )


def write_repro_command(out: Path, start: Sequence[str]) -> None:
    """Record the command that repeats the run from config.yaml.

    Args:
        out: Run directory.
        start: Words of a command that starts the same number of processes; the config follows.
    """
    flags = ["--config-file", str(out / "config.yaml"), "--work-dir", f"{out}_again"]
    update_run_info(out, reproduce=shlex.join([*start, *flags]))


def update_run_info(out: Path, **fields: Any) -> None:
    """Replace fields of run.json, and keep all others, including unknown ones.

    A damaged file is left unchanged, with a warning.

    Args:
        out: Run directory.
        **fields: New values by key; UNSET removes a key.
    """
    content = _read_content(out)
    if content is None:
        lost = ", ".join(f"{key}={x}" for key, x in fields.items() if x is not UNSET)
        logger.warning("%s is damaged, so this is not recorded: %s", out / "run.json", lost)
        return
    content |= fields
    write_json(out / "run.json", {key: x for key, x in content.items() if x is not UNSET})


def read_run_info(out: Path) -> RunInfo:
    """Read run.json; missing and invalid fields have their defaults."""
    return valid_part(_read_content(out) or {}, RunInfo)


def _read_content(out: Path) -> dict[str, Any] | None:
    """Return run.json as plain values: {} if there is no file, None if it is damaged."""
    file = out / "run.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def save_config(cfg: Any, out: Path) -> bool:
    """Write config.yaml, whose output directory is `out`; return whether it can be loaded.

    Datasets that the original config file registered itself are declared in it.
    """
    cfg = copy.deepcopy(cfg)
    cfg.train.output_dir = str(out)
    declare_registered(cfg)
    text, problem = saved_text(cfg)
    if problem:
        why = f"cannot be loaded, because it cannot hold {problem}"
        logger.warning("config.yaml %s; keep the config file of this run", why)
        text = f"# This file {why}.\n{text}"
    with atomic_write(out / "config.yaml") as f:
        f.write(text)
    return not problem
