#!/usr/bin/env python
"""Kill, stop and damage runs for ten minutes, and report whether a step was ever lost.

python tests/chaos.py                 # everything: `make chaos`
python tests/chaos.py --only killed --runs 3 --seed 5
"""

import argparse
import functools
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = (
    "1"  # before importing torch, so that forks are safe and cores suffice
)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Import once what the forked runs need.
import detectron2.model_zoo  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from tabulate import tabulate

import d2ext.engine.worker
import d2ext.launch.spawn
import d2ext.visualize.sheets  # noqa: F401
from tests.balloons import write_balloons
from tests.chaotic.damages import DAMAGES, soak
from tests.chaotic.stories import (
    LAYOUTS,
    PERIOD,
    Topology,
    difference,
    killed,
    stopped,
    until_ended,
)

AT_ONCE = 2
# Number of killed and of stopped runs of each layout; 20 each in total.
KILLED = dict(zip(LAYOUTS, (3, 3, 2, 3, 3, 2, 2, 2), strict=True))
STOPPED = dict(zip(LAYOUTS, (3, 3, 3, 3, 2, 3, 2, 1), strict=True))
# Kinds of kills that must occur at least once.
_KINDS = {"during a save": "/save", "of one rank": "rank/", "of the parent": "parent/"}
_TRIES = 8  # if a run ends before it was killed three times

_KEEP_ALL = "train.checkpointer.max_to_keep=0"


def main() -> int:
    """Run the selected parts; return 1 if anything was not as documented."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument(
        "--runs", type=int, default=20, help="number of runs of each kind of story (20)"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    if args.runs < 1:
        parser.error(f"--runs {args.runs}: give 1 or more")
    # The soak runs at the same time as the damages.
    wanted = [args.only] if args.only else ["killed", "stopped", "damaged and soak"]
    print(f"seed {args.seed}", flush=True)
    start = time.monotonic()
    root = Path(
        tempfile.mkdtemp(prefix="d2ext-chaos-")
    )  # a TemporaryDirectory would be removed by forks
    try:
        os.environ |= {"HOME": str(root), "D2EXT_CACHE": str(root / "cache")}
        write_balloons(root / "data/balloon", num_train=6, num_val=2)
        bad = sum(PARTS[name](root, root / "data", args) for name in wanted)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"{bad} not as documented; {time.monotonic() - start:.0f} s, seed {args.seed}")
    return int(bad > 0)


def _stories(story: Callable, counts: dict[str, int], most_redone: int) -> Callable:
    def part(root: Path, data: Path, args: argparse.Namespace) -> int:
        names = [name for name, count in counts.items() for _ in range(count)]
        whole = len(names)
        spread = names[:: max(whole // args.runs, 1)]
        names = list(itertools.islice(itertools.cycle(spread), args.runs))
        layouts = {LAYOUTS[name].key: LAYOUTS[name] for name in names}
        wholes = {key: root / f"{story.__name__}-whole{i}" for i, key in enumerate(layouts)}
        _drive([_whole(layouts[key], wholes[key], data) for key in layouts])
        rows = [{"run": i, "layout": name} for i, name in enumerate(names)]

        def one(row: dict) -> Iterator[float | None]:
            layout, begun = LAYOUTS[row["layout"]], time.monotonic()
            for attempt in range(_TRIES):
                folder = root / f"{story.__name__}{row['run']}-{attempt}"
                seed = args.seed + row["run"] + 1000 * attempt
                yield from story(folder, data, layout, seed, row)
                if "ended" not in row["kills"]:
                    break
            text = row.pop("output")
            row["equal"] = difference(folder, wholes[layout.key])
            # An asynchronous save ends some steps later.
            row["at most"] = most_redone * (2 if layout.asynchronous else 1)
            good = row["status"] == 0 and not row["equal"] and "ended" not in row["kills"]
            row["ok"] = good and max(row["redone"]) <= row["at most"]
            row["equal"] = row["equal"] or "bit for bit"
            row["seconds"] = round(time.monotonic() - begun)
            shown = [value for key, value in row.items() if key != "moments"]
            print(*shown, "" if row["ok"] else text[-3000:], sep="  ", flush=True)

        _drive(list(map(one, rows)))
        moments = [moment for row in rows for moment in row.pop("moments", ())]
        print(f"\n{story.__name__}: {len(rows)} runs")
        print(tabulate(rows, headers="keys"), flush=True)
        bad = sum(not row["ok"] for row in rows)
        if moments:
            found = {kind: sum(mark in m for m in moments) for kind, mark in _KINDS.items()}
            print(f"{len(moments)} kills:", ", ".join(f"{n} {kind}" for kind, n in found.items()))
            if args.runs >= whole:  # fewer runs need not include every kind
                bad += sum(not n for n in found.values())
        return bad

    return part


def _whole(layout: Topology, folder: Path, data: Path, *flags: str) -> Iterator[float | None]:
    """Train the uninterrupted run to compare with."""
    run = layout.start(folder, data, *flags)
    yield from until_ended(run)
    if run.status != 0:
        raise SystemExit(run.text())


def _damaged(root: Path, data: Path, args: argparse.Namespace, *beside: Iterator) -> int:
    rows = [{"damage": name} for name in DAMAGES]
    whole = root / "all"
    _drive([_whole(LAYOUTS["1 process"], whole, data, "--cfg-options", _KEEP_ALL)])
    stories = [
        damage(root / f"damage{i}", data, whole, row)
        for i, (damage, row) in enumerate(zip(DAMAGES.values(), rows, strict=True))
    ]
    _drive([*beside, *stories])
    print(f"\ndamaged: {len(rows)} kinds")
    for row in rows:
        if not row["ok"]:
            print(row.get("output", "")[-3000:])
        row.pop("output", None)
    print(tabulate(rows, headers="keys"), flush=True)
    return sum(not row["ok"] for row in rows)


def _soak(root: Path, data: Path, args: argparse.Namespace, damaged: bool = False) -> int:
    row: dict = {}
    story = soak(root / "soak", data, row)
    bad = _damaged(root, data, args, story) if damaged else _drive([story])
    print("\nsoak", json.dumps(row, indent=1), sep="\n", flush=True)
    return (bad or 0) + (not row["ok"])


def _drive(stories: list[Iterator[float | None]]) -> None:
    """Advance a few stories at a time, in turn; they yield the seconds that they can wait."""
    waiting, active = list(stories), []
    while waiting or active:
        while waiting and len(active) < AT_ONCE:
            active.append(waiting.pop(0))
        pause = 0.05
        for story in list(active):
            try:
                pause = min(pause, next(story) or pause)
            except StopIteration:
                active.remove(story)
        time.sleep(pause)


PARTS = {
    "killed": _stories(killed, KILLED, most_redone=PERIOD),
    "stopped": _stories(stopped, STOPPED, most_redone=0),
    "damaged": _damaged,
    "soak": _soak,
    "damaged and soak": functools.partial(_soak, damaged=True),
}

if __name__ == "__main__":
    sys.exit(main())
