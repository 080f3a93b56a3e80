"""Compare this tree with an earlier commit: the same commands must give the same results.

    python tests/equal_to.py REF            # every scenario and 40 user errors
    python tests/equal_to.py REF --quick    # one process, a resume, 10 errors

REF is checked out to a worktree, and both trees run the same commands on the same tiny photos.
Everything that a user can observe is compared: weights and optimizer state bit for bit,
metrics.json without times, results.json, predictions, the plan's text, and exit status and first
line of errors. The results of REF are kept in $D2EXT_CACHE/equal_to/<commit>. The exit status is 0
if all results are equal, otherwise 1.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from d2ext.config.renamed import current_name  # noqa: E402

CACHE = Path(os.environ.get("D2EXT_CACHE") or Path.home() / ".cache" / "d2ext") / "equal_to"
LITE0, R50 = "custom/mask_rcnn_lite0_fpn.py", "custom/mask_rcnn_r50_fpn.py"
TIME_KEYS = {"time", "data_time", "eta_seconds", "memory_mb"}
DATA = [f"data.{s}.{k}={v}" for s in ("train", "val") for k, v in (
    ("json", f"../data/{s}.json"), ("images", f"../data/{s}"))]  # fmt: skip
TINY = [
    *DATA,
    "train.max_iter=6",
    "train.eval_period=3",
    "train.checkpointer.period=2",
    "train.warmup_iters=2",
    "train.log_period=1",
    "dataloader.train.total_batch_size=4",
    "dataloader.train.num_workers=1",
    "dataloader.val.num_workers=0",
    "dataloader.train.mapper.augmentations[0].short_edge_length=[96,128]",
    "dataloader.val.mapper.augmentations[0].short_edge_length=128",
]
RESUME = ["--resume", *TINY]


@dataclass(frozen=True)
class Scenario:
    """A run that both trees execute.

    Attributes:
        name: Name of the scenario and of its run directory.
        options: Flags and overrides of tools/train_net.py after `TINY`.
        recipe: Recipe below configs/.
        flags: Flags, which come before overrides.
        killed: Kill the run after its first checkpoint, then resume it.
        continues: Scenario whose run directory of REF is resumed by both trees.
    """

    name: str
    options: tuple[str, ...] = ()
    recipe: str = LITE0
    flags: tuple[str, ...] = ()
    killed: bool = False
    continues: str | None = None


QUICK = (
    Scenario("one_process"),
    Scenario("checkpoint_of_ref", ("train.max_iter=8",), continues="one_process"),
)
SCENARIOS = (
    *QUICK,
    Scenario("two_processes", flags=("--num-gpus", "2")),
    Scenario("accumulate", ("train.accumulate=2",)),
    Scenario("ema_and_clipping", ("train.ema_decay=0.9", "train.clip_grad_norm=1")),
    Scenario("bfloat16", ("train.amp.enabled=True", "train.amp.dtype=bfloat16")),
    Scenario("channels_first", ("train.channels_last=False",)),
    Scenario("resume_after_kill", ("train.checkpointer.asynchronous=True",), killed=True),
    Scenario(
        "r50_channels_last",
        ("train.init_checkpoint=''", "train.channels_last=True", "train.max_iter=3"),
        recipe=R50,
    ),
)

# Arguments of commands that fail; --quick uses the first ten.
ERRORS: tuple[tuple[str, ...], ...] = (
    ("train.max_itr=3",),
    ("optimizer.lr=fast",),
    ("train.max_iter=0",),
    ("train.seed=null",),
    ("data.train.json=none.json",),
    ("data.val.images=nowhere",),
    ("data.train.json=null",),
    ("model.roi_heads.num_classes=80",),
    ("--weights", "last"),
    ("--resume", "--overwrite"),
    ("+optimizer.foo=1",),
    ("optimizer.lr=-1",),
    ("train.log_period=0",),
    ("train.device=tpu",),
    ("train.max_iter=null",),
    ("train.eval_period=2 epoch s",),
    ("train.eval_period=-1",),
    ("train.ema_decay=2",),
    ("train.amp.dtype=float8",),
    ("train.best.mode=highest",),
    ("train.best.metric=coco/segm/APx",),
    ("train.early_stopping_patience=0",),
    ("train.checkpointer.period=often",),
    ("train.init_checkpoint=/no/such.pth",),
    ("train.init_checkpoint=package://no_such/x.pth",),
    ("dataloader.val=null",),
    ("dataloader.train.total_batch_size=0",),
    ("dataloader.train.total_batch_size=3", "train.accumulate=2"),
    ("dataloader.train.num_workers=-1",),
    ("dataloader.val.dataset.names=[]",),
    ("dataloader.train.dataset.names=custom_trian",),
    ("evaluators.coco.tasks=[box]",),
    ("train.accumulate='2'",),
    ("train.amp.enabled=1",),
    ("optimizer.lr",),
    ("train.max_iter=3", "--dry-run"),
    ("--num-gpus", "0"),
    ("--num-machines", "2"),
    ("--eval-only", "--weights", "best"),
    ("--resume-from", "gone.pth"),
)


class Tree:
    """A checkout and the folder in which its commands run.

    Args:
        root: Root of the checkout.
        work: Folder for its run directories; `work/../data` holds the photos.
    """

    def __init__(self, root: Path, work: Path):
        self.root, self.work = root, work
        work.mkdir(parents=True, exist_ok=True)

    def command(self, recipe: str, flags: tuple[str, ...], options: list[str]) -> list[str]:
        """Return a command line of tools/train_net.py."""
        tool, config = self.root / "tools" / "train_net.py", self.root / "configs" / recipe
        return [sys.executable, str(tool), "--config-file", str(config), *flags, *options]

    def environment(self) -> dict[str, str]:
        """Return the environment of its commands: one thread, a cache of its own."""
        own = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        return {**os.environ, **own, "D2EXT_CACHE": str(self.work / "cache")}

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Run a command in the tree's folder; return its status, stdout and stderr."""
        done = subprocess.run(
            command, cwd=self.work, env=self.environment(), capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    def train(self, scenario: Scenario, ref: Path) -> dict[str, Any]:
        """Run a scenario and return what a user can observe of it."""
        out = self.work / scenario.name
        shutil.rmtree(out, ignore_errors=True)
        options = [*TINY, *scenario.options]
        flags = ("--work-dir", scenario.name, *scenario.flags)
        if scenario.continues:
            shutil.copytree(ref / scenario.continues, out)
            flags = (*flags, "--resume")
        command = self.command(scenario.recipe, flags, options)
        if scenario.killed:
            self._kill_after_first_checkpoint(command, out)
            command = self.command(scenario.recipe, (*flags, "--resume"), options)
        dry = self.command(scenario.recipe, (*flags, "--dry-run"), options)
        _, plan, _ = self.run(dry)
        status, _, stderr = self.run(command)
        if status:
            sys.exit(f"{scenario.name} failed in {self.root}: {stderr[-2000:]}")
        return {"plan": self.comparable(plan).splitlines(), **observed(out)}

    def _kill_after_first_checkpoint(self, command: list[str], out: Path) -> None:
        process = subprocess.Popen(
            command,
            cwd=self.work,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (out / "last_checkpoint").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def fail(self, arguments: tuple[str, ...]) -> dict[str, Any]:
        """Run a command that fails and return its status and its first line on stderr."""
        flags = tuple(a for a in arguments if a.startswith("-"))
        own = {k for k in arguments if "=" not in k}
        given = tuple(a for a in arguments if a in own) if flags else ()
        overrides = [a for a in arguments if a not in given]
        if arguments[-1] == "--dry-run":  # a flag after the overrides
            given, overrides = (), list(arguments)
        name = re.sub(r"\W+", "_", "_".join(arguments))
        shutil.rmtree(self.work / "errors" / name, ignore_errors=True)
        flags = ("--work-dir", f"errors/{name}", *given)
        status, _, stderr = self.run(self.command(LITE0, flags, [*TINY, *overrides]))
        errors = [line for line in stderr.splitlines() if "error" in line]
        return {"status": status, "line": self.comparable(errors[0] if errors else stderr)}

    def comparable(self, text: str) -> str:
        """Return text without paths, times and sizes, which differ between trees and runs."""
        text = text.replace(str(self.root), "TREE").replace(str(self.work), "WORK")
        text = re.sub(r"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d(,\d+)?|\b[\d.]+ ?(s|GB|MB|GiB)\b", "#", text)
        return re.sub(r"\(\S+\.py:\d+\)", "(FILE:LINE)", text)


def observed(out: Path) -> dict[str, Any]:
    """Return the contents of a run directory without times."""
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    metrics = {line["iteration"]: _timeless(line) for line in lines}  # later lines count
    predictions = {p.name: json.loads(p.read_text()) for p in sorted(out.glob("predictions/*"))}
    return {
        "checkpoint": torch.load(out / "model_final.pth", weights_only=True),
        "metrics.json": metrics,
        "results.json": json.loads((out / "results.json").read_text()),
        "predictions": predictions,
        "files": sorted(p.name.split(".17")[0] for p in out.iterdir() if p.name[0] != "."),
    }


def _use_current_names(checkpoint: dict[str, Any]) -> None:
    """Replace old dotted names in a checkpoint's fingerprint, as a resume does."""
    config = checkpoint["fingerprint"]["config"]
    config.update({key: current_name(value) for key, value in config.items()})


def _timeless(line: dict) -> dict:
    return {k: v for k, v in line.items() if k not in TIME_KEYS}


def differences(ref: Any, new: Any, where: str = "") -> Iterator[str]:
    """Yield each place where two values differ; tensors and numbers are compared exactly."""
    if isinstance(ref, torch.Tensor) and isinstance(new, torch.Tensor):
        if ref.shape != new.shape or not torch.equal(ref, new):
            yield f"{where}: tensors differ"
    elif isinstance(ref, dict) and isinstance(new, dict):
        for key in [*ref, *(key for key in new if key not in ref)]:
            if key not in new or key not in ref:
                yield f"{where}/{key}: only in {'REF' if key in ref else 'the new tree'}"
            else:
                yield from differences(ref[key], new[key], f"{where}/{key}")
    elif isinstance(ref, list) and isinstance(new, list) and len(ref) == len(new):
        for i, (a, b) in enumerate(zip(ref, new, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif ref != new and not (ref != ref and new != new):
        yield f"{where}: {str(ref)[:200]!r} in REF, {str(new)[:200]!r} in the new tree"


def make_data(folder: Path) -> None:
    """Write the coins of examples/own_dataset as two COCO files with photos 200 pixels wide."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for file in sorted((REPO / "examples" / "own_dataset" / split).glob("*.json")):
            labels = json.loads(file.read_text())
            with Image.open(file.with_name(labels["imagePath"])) as photo:
                scale = 200 / photo.width
                size = (200, round(photo.height * scale))
                photo.convert("RGB").resize(size).save(folder / split / labels["imagePath"])
            images.append(dict(id=len(images) + 1, file_name=labels["imagePath"], width=size[0],
                               height=size[1]))  # fmt: skip
            for shape in labels["shapes"]:
                xs, ys = ([p[i] * scale for p in shape["points"]] for i in (0, 1))
                box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
                outline = [c for point in zip(xs, ys, strict=True) for c in point]
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=len(images), category_id=1, iscrowd=0,
                    bbox=box, area=box[2] * box[3], segmentation=[outline]))  # fmt: skip
        categories = [dict(id=1, name="coin")]
        content = dict(images=images, annotations=annotations, categories=categories)
        (folder / f"{split}.json").write_text(json.dumps(content))


def observe(tree: Tree, scenarios: tuple, errors: tuple, ref: Path) -> dict[str, Any]:
    """Run everything in a tree, or read results that are already in its folder."""
    found = {}
    for scenario in scenarios:
        file = tree.work / f"{scenario.name}.pt"
        if not file.exists():
            torch.save(tree.train(scenario, ref), file)
        found[scenario.name] = torch.load(file, weights_only=True)
        _use_current_names(found[scenario.name]["checkpoint"])
        print(f"  {scenario.name}", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for arguments, result in zip(errors, pool.map(tree.fail, errors), strict=True):
            found[" ".join(arguments)] = result
    return found


def main() -> int:
    """Run both trees, print what differs, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ref", help="commit to compare with")
    parser.add_argument("--quick", action="store_true", help="one process, a resume, 10 errors")
    args = parser.parse_args()
    started = time.monotonic()
    git = ["git", "-C", str(REPO)]
    commit = subprocess.check_output([*git, "rev-parse", f"{args.ref}^{{commit}}"], text=True)
    home = CACHE / commit.strip()
    if not (home / "tree").exists():
        subprocess.check_call([*git, "worktree", "prune"])
        subprocess.check_call([*git, "worktree", "add", "--detach", str(home / "tree"), args.ref])
    make_data(home / "data")
    scenarios = QUICK if args.quick else SCENARIOS
    errors = ERRORS[:10] if args.quick else ERRORS
    found, new = [], home / f"new-{os.getpid()}"  # several may run at once
    try:
        for folder, tree in ((home / "ref", home / "tree"), (new, REPO)):
            print(f"{folder.name}: {tree}", flush=True)
            found.append(observe(Tree(tree, folder), scenarios, errors, home / "ref"))
    finally:
        shutil.rmtree(new, ignore_errors=True)
    wrong = list(differences(*found))
    print("\n".join(wrong[:40]))
    seconds = time.monotonic() - started
    print(
        f"{len(scenarios)} scenarios and {len(errors)} errors against {commit[:10]}:"
        f" {len(wrong)} differences, {seconds:.0f} s"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
