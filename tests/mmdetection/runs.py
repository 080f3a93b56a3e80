"""Run trainings in processes of their own, kill them, and read what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.conftest import REPO, checkout_env

_CLOCK = ("time", "data_time", "eta_seconds", "memory_mb")


def start(folder: Path, recipe: str, threads: int, *options: str | Path) -> subprocess.Popen[str]:
    """Start a training; the caller kills it at the end.

    Args:
        folder: Run directory.
        recipe: Recipe in configs/.
        threads: Number of threads of each rank, on which the order of sums depends.
        options: Flags, then overrides.
    """
    command = [sys.executable, REPO / "tools/train_net.py", "--work-dir", folder]
    return subprocess.Popen(
        [*command, "--config-file", REPO / "configs" / recipe, "--no-validate", *options],
        env=checkout_env() | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and its session, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def kill_after_a_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    """Kill a training as soon as its directory holds a checkpoint."""
    try:
        while process.poll() is None and not (folder / "last_checkpoint").is_file():
            time.sleep(0.01)
    finally:
        kill(process)
    assert process.returncode == -signal.SIGKILL


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a training to succeed, and return its output."""
    try:
        output = process.communicate(timeout=300)[0]
    finally:
        kill(process)
    assert process.returncode == 0, output
    return output


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the final weights of a run."""
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def metrics(folder: Path) -> dict[int, dict[str, Any]]:
    """Return all metrics of a run except times and memory, by iteration."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {x["iteration"]: {k: v for k, v in x.items() if k not in _CLOCK} for x in lines}


def assert_falls(folder: Path, loss: str, ratio: float) -> None:
    """Check that the mean of a loss in the last 5 steps is below its mean in the first 5.

    Args:
        folder: Run directory.
        loss: Name of the loss in metrics.json.
        ratio: Upper bound of the later mean, divided by the earlier one.
    """
    values = [x[loss] for _, x in sorted(metrics(folder).items()) if loss in x]
    assert len(values) >= 20 and sum(values[-5:]) < ratio * sum(values[:5]), values
