"""Helpers of the benchmarks: alternating measurements, their record, and the machine."""

import datetime
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from d2ext.data.prepare.balloon import describe_balloon
from d2ext.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results.json"
TABLES = Path(__file__).parent / "tables.json"
# The original balloon photos, so that figures stay comparable: `prepare_data.py balloon --full`.
# run_all.py sets the variable to the reduced photos where the originals cannot be downloaded.
ORIGINALS = Path(os.environ.get("DETECTRON2_DATASETS") or ROOT / "datasets").resolve()
OVER_LIMIT = 3  # exit status of a script that has measured, and exceeds a limit of its own


def machine() -> str:
    """Return CPU, cores, Python, torch and the date in one line."""
    with open("/proc/cpuinfo") as f:
        names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0))
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{gpu}{cpu}, {cores} cores, Python {platform.python_version()}, torch {version('torch')},"
        f" {datetime.date.today().isoformat()}"
    )


def paired(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> list[tuple[float, float]]:
    """Measure both in turn, so that disturbances affect both, after a round that warms caches."""
    ours(), theirs()
    return [(ours(), theirs()) for _ in range(rounds)]


def photos() -> str:
    """Return which balloon photos `ORIGINALS` holds: `original` or `reduced`."""
    return "reduced" if "reduced" in describe_balloon(ORIGINALS / "balloon") else "original"


def record(
    name: str, pairs: Sequence[tuple[float, float]], unit: str, on_photos: bool = True
) -> None:
    """Print a figure and store it in results.json: medians, and the median of the pairs' ratios.

    Args:
        name: Name of the figure.
        pairs: (ours, theirs) of each round.
        unit: Unit of the values. With `.../s` more is better, with all others less. The ratio is
            above 1 if ours is better.
        on_photos: Whether the balloon photos were used; if so, their kind is stored.
    """
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    more_is_better = unit.endswith("/s")
    ratio = statistics.median(a / b if more_is_better else b / a for a, b in pairs)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[name] = {
        "ours": round(ours, 4),
        "theirs": round(theirs, 4),
        "ratio": round(ratio, 3),
        "unit": unit,
        "pairs": len(pairs),
        "photos": photos() if on_photos else None,
        "machine": machine(),
    }
    write_json(RESULTS, dict(sorted(known.items())))
    print(f"{name}: {ours:.4g} {unit}, theirs {theirs:.4g} {unit}, ratio {ratio:.2f}", flush=True)


def keep(name: str, rows: list[dict]) -> None:
    """Store the rows of a table in tables.json, from which run_all.py makes it."""
    known = json.loads(TABLES.read_text()) if TABLES.exists() else {}
    known[name] = {"machine": machine(), "rows": rows}
    write_json(TABLES, known)
