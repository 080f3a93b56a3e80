"""A model that records the memory of its process at its first calls; for memory_profile.py."""

import json
import os
from pathlib import Path
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from torch import nn

FILE = "D2EXT_MEMORY_MARKS"  # environment variable: the file for the marks, one JSON per line
STAGES = (
    "imports, config, data",
    "model",
    "weights, optimizer, first batch",
    "activations of the first step",
    "gradients, momentum, second batch",
)


def marked(**arguments: Any) -> nn.Module:
    """Return a `GeneralizedRCNN` that records the stages up to its second call."""
    _mark(STAGES[0])
    model = GeneralizedRCNN(**arguments)
    _mark(STAGES[1])
    stages = iter(STAGES[2:])

    def mark(*_: Any) -> None:
        if stage := next(stages, None):
            _mark(stage)

    model.register_forward_pre_hook(mark)
    model.register_forward_hook(mark)
    return model


def _mark(stage: str) -> None:
    """Append a line: own and mapped memory of this process, and what its children add, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    children = Path("/proc/self/task").glob("*/children")
    content = {
        "stage": stage,
        "own": int(status["RssAnon"]) / 1024,
        "files": int(status["RssFile"]) / 1024,
        "children": sum(_unshared(int(c)) for file in children for c in file.read_text().split()),
    }
    with open(os.environ[FILE], "a") as f:
        f.write(json.dumps(content) + "\n")


def _unshared(process: int) -> float:
    """Return the MB that only this process holds."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024
