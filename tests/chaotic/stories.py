"""Stories of runs that are killed or stopped, as generators that yield while they wait."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from tests.chaotic.processes import Run, done, lines

MAX_ITER, PERIOD = 16, 3  # those of the recipe
_CLOCK = ("time", "data_time", "eta_seconds", "memory_mb")
_AIDS = "train.ema_decay=0.9 train.amp.enabled=true train.amp.dtype=bfloat16"


class Topology(NamedTuple):
    """How to start a run; runs with the same `options` and `ranks` must be equal."""

    options: str
    ranks: int = 1
    launcher: bool = False
    asynchronous: bool = False

    def start(self, folder: Path, data: Path, *flags: str) -> Run:
        options = [f"data.root={data}", *self.options.split()]
        options.append(f"train.checkpointer.asynchronous={self.asynchronous}")
        if self.launcher:
            return Run(folder, [*flags, "--num-gpus", str(self.ranks), *options])
        return Run(folder, [*flags, *options], self.ranks)

    @property
    def key(self) -> tuple[str, int]:
        """Return the part that distinguishes runs; those with equal keys must be equal."""
        return self.options, self.ranks


LAYOUTS = {
    "1 process": Topology(""),
    "logged seldom": Topology("train.log_period=4 train.eval_period=5"),
    "2 loader workers, EMA": Topology("dataloader.train.num_workers=2 train.ema_decay=0.9"),
    "accumulate 2, bf16, EMA, clip": Topology(
        f"train.accumulate=2 {_AIDS} train.clip_grad_norm=1 dataloader.train.num_workers=1"
    ),
    "asynchronous": Topology("", asynchronous=True),
    "2 ranks": Topology("dataloader.train.num_workers=1", ranks=2),
    "2 ranks, accumulate 2, bf16, EMA": Topology(f"train.accumulate=2 {_AIDS}", ranks=2),
    "2 ranks, own launcher": Topology("dataloader.train.num_workers=1", ranks=2, launcher=True),
}


def until_ended(run: Run, seconds: float = 240) -> Iterator[float | None]:
    """Wait for a run to end; kill it if it hangs."""
    while not run.ended():
        if time.monotonic() - run.started > seconds:
            run.kill("group", random)
        yield


def killed(
    folder: Path, data: Path, layout: Topology, seed: int, row: dict
) -> Iterator[float | None]:
    """Kill a run three times, resume it, and write the columns of the table to `row`.

    Its `moments` say which process each kill hit and when. There are fewer than three if the run
    ended before.
    """
    rng = random.Random(seed)
    starts, kills, row["moments"] = [], [], []
    for _ in range(3):
        before = done(folder)
        run = layout.start(folder, data, "--resume")
        whom = rng.choice(["group", "rank", "parent"]) if layout.ranks > 1 else "group"
        moment = rng.choice(["step", "step", "save", "any"])
        target, wait = rng.randint(1, PERIOD), rng.uniform(0, 0.15)
        yield from _until(run, moment, target, rng.uniform(0.3, 3))
        if moment == "step":
            end = time.monotonic() + wait
            while time.monotonic() < end:
                yield
        saving = _saving(folder)
        alive = run.status is None and not run.ended()
        run.kill(whom, rng)
        yield from until_ended(run)
        reached = max(before, done(folder)) if run.start_iter() is None else done(folder)
        starts.append(run.start_iter())
        kind = f"{whom}/{'save' if saving else 'step'}"
        kills.append(f"{kind}@{reached}" if alive else "ended")
        if alive:
            row["moments"].append(kind)
        row["reached"] = [*row.get("reached", []), reached]
    run = layout.start(folder, data, "--resume")
    yield from until_ended(run)
    starts.append(run.start_iter())
    row["kills"], row["starts"], row["status"] = kills, starts, run.status
    reached = row.pop("reached")
    # An attempt that was killed before it knew its start has trained nothing.
    pairs = [(r, next(s for s in starts[i + 1 :] if s is not None)) for i, r in enumerate(reached)]
    row["redone"] = [max(r - s, 0) for r, s in pairs]
    row["output"] = run.text()


def stopped(
    folder: Path, data: Path, layout: Topology, seed: int, row: dict
) -> Iterator[float | None]:
    """Send SIGTERM to the process group of a run, and resume the run."""
    rng = random.Random(seed)
    # With fast steps, the run takes half a second; if the signal comes after it, try again.
    for flags in ((), *[("--overwrite",)] * 7):
        run = layout.start(folder, data, *flags)
        yield from _until(run, "step", rng.randint(1, MAX_ITER - 5), 0)
        end = time.monotonic() + rng.uniform(0, 0.15)
        while time.monotonic() < end:
            yield
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGTERM)
        yield from until_ended(run)
        if run.status != 0:
            break
    reached, first = done(folder), run.status
    again = layout.start(folder, data, "--resume")
    yield from until_ended(again)
    row["kills"], row["starts"] = [f"TERM@{reached}"], [0, again.start_iter()]
    row["redone"] = [reached - (again.start_iter() or 0)]
    row["status"] = again.status if first == 75 else f"{first}, not 75"
    row["output"] = run.text() + again.text()


def difference(folder: Path, whole: Path) -> str | None:
    """Return what differs from the uninterrupted run, or None if all is equal bit for bit."""
    if not (folder / "model_final.pth").is_file():
        return "no model_final.pth"
    a, b = (torch.load(d / "model_final.pth", weights_only=True) for d in (folder, whole))
    for key in ("model", "ema", "optimizer", "recent", "iterations_done", "images_seen"):
        if not _equal(a.get(key), b.get(key)):
            return f"{key} differs"
    # Losses, rates and evaluations; for repeated iterations, the later lines count.
    ours, theirs = ({n["iteration"]: _plain(n) for n in lines(d)} for d in (folder, whole))
    if ours != theirs:
        bad = min(i for i in theirs.keys() | ours.keys() if ours.get(i) != theirs.get(i))
        names = [k for k in theirs.get(bad, {}) if ours.get(bad, {}).get(k) != theirs[bad][k]]
        return f"metrics differ at {bad}: {names[:3]}"
    results = (json.loads((d / "results.json").read_text()) for d in (folder, whole))
    return None if next(results) == next(results) else "results differ"


def _until(run: Run, moment: str, steps: int, seconds: float) -> Iterator[float | None]:
    """Wait for a number of steps, for a checkpoint being written after them, or some seconds."""
    at = time.monotonic() + seconds
    while not run.ended():
        if moment == "any" and time.monotonic() > at:
            return
        trained = run.start_iter() is not None and run.steps()
        if moment == "step" and trained >= steps:
            return
        while moment == "save" and trained:
            if _saving(run.folder) or run.ended():
                return
            yield 0.001
        yield


def _saving(folder: Path) -> bool:
    return any(".pth." in p.name for p in folder.glob(".*.tmp"))


def _plain(line: dict) -> dict:
    return {k: v for k, v in line.items() if k not in _CLOCK}


def _equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b
