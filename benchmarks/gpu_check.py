"""Check d2ext on a GPU: results, failures, and speed against Detectron2.

    python benchmarks/gpu_check.py [--only SECTION ...] [--folder DIR]

needs one GPU, an estimated 10 minutes and no network; it uses the checkout's photos. The last lines
are a table of all checks, which is also written to DIR/results.json after each section; figures
against Detectron2 go to benchmarks/results.json, for RESULTS.md. Each section has a process, a log
and a time limit of its own: if it fails, the others still run. Exits with status 1 if a check
failed, and with status 2 without a GPU.

Two rehearsals need no GPU and say nothing about one:

    python benchmarks/gpu_check.py --cpu --tiny    # all that a CPU can run, with a tiny model
    python benchmarks/gpu_check.py --fake          # on tensors that claim to be on cuda:0
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import gpu_commands as commands
import gpu_model as model
import gpu_speed as speed
import torch
from common import ROOT, machine
from gpu_outcome import NotRun, Outcome, Target, write_tiny_photos

from d2ext.files import atomic_write
from d2ext.launch.device import gpu_facts

Checks = Mapping[str, Callable[[Target], Outcome]]


@dataclass(frozen=True)
class Section:
    """Checks that share a process.

    Attributes:
        limit: Seconds after which the process is killed; rehearsals have four times as long.
        checks: Checks by title, in order.
        at_once: Run this many checks at once; they start processes only.
    """

    limit: float
    checks: Checks
    at_once: int = 1


SECTIONS = {
    "install": Section(120, {"doctor takes a training step": commands.doctor}),
    "equal": Section(
        120,
        {
            "Detectron2's layers, float32": model.equal_float32,
            "d2ext's layers, float32": model.equal_layers,
            "channels_last": model.equal_channels_last,
            "TF32": model.equal_tf32,
            "bfloat16": model.equal_bfloat16,
            "float16": model.equal_float16,
        },
    ),
    "overflow": Section(60, {"first steps overflow, memory full of NaN": model.overflow}),
    "layout": Section(60, {"optimizer state of another layout or device": model.layout}),
    "runs": Section(
        240,
        {
            "two runs are bit-identical": commands.repeats,
            "a resumed run equals an uninterrupted one": commands.resumes,
            "SIGTERM saves, --resume continues": commands.stops,
            "a second SIGINT ends at once": commands.interrupted,
            "out of memory is one line": commands.out_of_memory,
            "float16 trains": commands.float16,
            "bfloat16 trains": commands.bfloat16,
            "torchrun with one process": commands.torchrun,
            "two processes on one GPU are refused": commands.shared_gpu,
        },
        at_once=max(1, min(8, len(os.sched_getaffinity(0)) // 2)),
    ),
    "ddp": Section(
        120,
        {
            "one process in a group (NCCL)": model.nccl,
            "two processes equal two micro-batches": model.two_processes,
            "both skip a step if one has NaN": model.nan_in_one_process,
        },
    ),
    "train": Section(180, {"the lite0 recipe reaches its AP": commands.trains}),
    "export": Section(
        180,
        {
            "the file passes its verification": commands.exports,
            "the same file without a GPU": commands.exports_without_gpu,
        },
    ),
    "step": Section(
        300,
        {
            **{
                f"{images} images, {precision}, against Detectron2": speed.step(images, precision)
                for images in (2, 8)
                for precision in ("float32", "float16", "bfloat16")
            },
            "synchronizations per step": speed.synchronizations,
        },
    ),
    "phases": Section(60, {"parts of a step, GPU busy": speed.phases}),
    "feed": Section(180, {"steps wait for data with 1, 2, 4 workers": commands.feed}),
    "inference": Section(
        150,
        {
            "results equal the CPU's": model.evaluation_equals_cpu,
            "evaluation against COCOEvaluator": speed.evaluation,
            "the model alone, 1 and 4 images at once": speed.model_alone,
        },
    ),
    "compile": Section(
        240,
        {
            "at most 3 compilations": speed.compilations,
            "step against one that is not compiled": speed.compiled_step,
        },
    ),
}


def run_section(name: str, target: Target) -> dict[str, Outcome]:
    """Run a section in a process of its own; return the outcomes of its checks by title."""
    section = SECTIONS[name]
    limit = section.limit if target.measures else 4 * section.limit
    file, log = target.folder / f"{name}.json", target.folder / f"{name}.log"
    file.unlink(missing_ok=True)
    child = multiprocessing.get_context("fork").Process(
        target=_child, args=(section, target, file, log)
    )
    child.start()
    try:
        child.join(limit)
        why = f"the process ended with status {child.exitcode}"
        if child.is_alive():
            why = f"not finished within {limit:g} s"
    finally:
        with suppress(ProcessLookupError):  # all of the group have ended
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.join()
    found = json.loads(file.read_text()) if file.exists() else {}
    outcomes = {title: Outcome(**outcome) for title, outcome in found.items()}
    for title in section.checks:
        if title not in outcomes:
            first = all(outcome.status != "FAIL" for outcome in outcomes.values())
            outcomes[title] = (
                Outcome("FAIL", f"{why}, see {log}")
                if first
                else Outcome("NOT RUN", "the section ended early")
            )
    return {title: outcomes[title] for title in section.checks}


def _child(section: Section, target: Target, file: Path, log: Path) -> None:
    """Run the checks of a section, and write each outcome to `file` at once."""
    os.setsid()  # its processes can be killed with it
    with open(log, "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    outcomes = {}
    writing = threading.Lock()

    def run(title: str) -> None:
        outcome = _guarded(section.checks[title], target)
        print(f"== {title}: {outcome}", flush=True)
        with writing, atomic_write(file, durable=False) as f:
            outcomes[title] = asdict(outcome)
            json.dump(outcomes, f)

    if section.at_once > 1:
        with ThreadPoolExecutor(section.at_once) as pool:
            list(pool.map(run, section.checks))
    else:
        for title in section.checks:
            run(title)


def _guarded(check: Callable[[Target], Outcome], target: Target) -> Outcome:
    try:
        with target.context():
            return check(target)
    except NotRun as e:
        return Outcome("NOT RUN", str(e))
    except Exception as e:
        traceback.print_exc()
        reason = next(iter(str(e).strip().splitlines()), "")
        return Outcome("FAIL", f"{type(e).__name__}: {reason}"[:160])


def table(title: str, results: Mapping[str, Mapping[str, Outcome]]) -> list[str]:
    """Return the outcomes as the lines of a Markdown table, with `title` in its head."""
    rows = [("section", "check", "status", title), ("---",) * 4]
    rows += [
        (name, title, outcome.status, outcome.found.replace("|", "/")[:160])
        for name, outcomes in results.items()
        for title, outcome in outcomes.items()
    ]
    return [f"| {' | '.join(row)} |" for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections; return 1 if a check failed, 2 without a GPU, otherwise 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    add("--folder", type=Path, default=ROOT / "work_dirs" / "gpu_check", help="(%(default)s)")
    add("--cpu", action="store_true", help="rehearse on the CPU")
    add("--tiny", action="store_true", help="use a tiny model and tiny photos")
    add("--fake", action="store_true", help="rehearse on tensors that claim to be on a GPU")
    args = parser.parse_args(argv)
    if args.cpu and args.fake:
        parser.error("give --cpu or --fake, not both")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also ends the section's processes
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if args.cpu or args.fake:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    target = Target("cpu" if args.cpu else "cuda", args.tiny or args.fake, args.fake, folder)
    described = _described(target)
    if described is None:
        print(
            "error: torch finds no GPU; --cpu --tiny and --fake rehearse the check", file=sys.stderr
        )
        return 2
    kind = "" if target.measures else "REHEARSAL, which says nothing about a GPU; "
    title = f"{kind}{described}"
    write_tiny_photos(folder)
    results: dict[str, dict[str, Outcome]] = {}
    for name in args.only:
        start = time.monotonic()
        results[name] = run_section(name, target)
        with atomic_write(folder / "results.json") as f:
            plain = {
                name: {check: asdict(outcome) for check, outcome in outcomes.items()}
                for name, outcomes in results.items()
            }
            json.dump({"title": title, "sections": plain}, f, indent=1)
        statuses = ", ".join(outcome.status for outcome in results[name].values())
        print(f"{name}: {statuses} ({time.monotonic() - start:.0f} s)", flush=True)
    print("\n".join(table(title, results)), flush=True)
    failed = any(o.status == "FAIL" for outcomes in results.values() for o in outcomes.values())
    return int(failed)


def _described(target: Target) -> str | None:
    """Return the machine in one line, or None if it lacks the GPU.

    A process of its own asks, because those that are forked after the first use of CUDA cannot use
    it.
    """
    file = target.folder / "machine.txt"
    file.unlink(missing_ok=True)

    def describe() -> None:
        if torch.cuda.is_available() or not target.on_gpu:
            versions = gpu_facts("cuda")[1] if target.on_gpu else {}
            file.write_text(", ".join([machine(), *(f"{k} {v}" for k, v in versions.items())]))

    child = multiprocessing.get_context("fork").Process(target=describe)
    child.start()
    child.join()
    return file.read_text() if file.exists() else None


if __name__ == "__main__":
    sys.exit(main())
