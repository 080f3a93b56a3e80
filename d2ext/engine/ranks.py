"""Starts this machine's ranks, watches over them, and says why a run failed.

Guards against faults of Detectron2's `launch()`: it returns normally after a KeyboardInterrupt,
blames the peer of a slow death, waits 30 s for the graceful, and leaves ranks alive when it is
killed.
"""

import contextlib
import datetime
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm

from d2ext.engine.distributed import set_timeout
from d2ext.engine.failures import (
    FailureFolder,
    cause,
    describe_failure,
    describe_killed,
    print_failure,
    write_failure,
)
from d2ext.engine.launch import Layout, check_meeting_place, end_step
from d2ext.errors import UserError
from d2ext.guard import LAUNCHER, die_with_parent

_GRACE = 5.0  # seconds that peers of a dead rank have before they are killed
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_FORWARDED_NAMES = [number.name for number in _FORWARDED]


def start_ranks(
    layout: Layout,
    target: Callable[..., int],
    args: tuple,
    timeout: float,
    device: str,
    output_dir: Path,
) -> int:
    """Runs `target(*args)` in every rank of the run that this process is to start or is.

    Args:
        layout: of `find_layout`.
        target: importable function; returns the exit status.
        args: for it; they are pickled.
        timeout: seconds to wait for peers, in the rendezvous and in each exchange.
        device: `cpu` or `cuda`.
        output_dir: of the run; ranks leave their errors in `errors/` there, which on a shared disk
            tells every machine the cause.

    Returns:
        The exit status of the ranks, or 1 when one failed (2 for a UserError, 130 after a second
        Ctrl-C); its cause has been printed then.

    Raises:
        UserError: the ranks cannot meet.
    """
    if not 0 < timeout < 1e7:
        raise UserError(f"--dist-timeout {timeout:g}: give seconds, above 0")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # launch() takes NCCL whenever it sees a GPU
    failures = FailureFolder(output_dir)
    if layout.starter != "self":
        try:
            join_ranks(layout, timeout, device)
        except UserError as e:
            print(f"error: {e}", file=sys.stderr, flush=True)
            if layout.starter == "srun":
                end_step(os.environ)  # its other tasks would wait
            return 2
        return _guarded(failures, target, args)
    if layout.world_size == 1:
        return target(*args)
    check_meeting_place(layout, timeout)
    # torch announces whom it ends; the cause is told here.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="d2ext-ranks-"))
    os.environ[LAUNCHER] = str(os.getpid())
    # A rank that dies leaves semaphores; the cause of its death is to be the last thing printed.
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), quiet]))
    failed = None
    try:
        with _signals_forwarded(folder), _stragglers_killed(folder) as vanished:
            launch(
                _rank_main,
                layout.per_machine,
                layout.num_machines,
                layout.machine_rank,
                layout.url,
                args=(folder, failures, timeout, target, args),
                timeout=datetime.timedelta(seconds=timeout),
            )
    except (
        torch.multiprocessing.ProcessRaisedException,
        torch.multiprocessing.ProcessExitedException,
    ) as e:
        failed = e
    finally:
        for pid in _pids(folder).values():
            _kill(pid, signal.SIGKILL)
    try:
        return _outcome(layout, folder, failed, failures, vanished)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def join_ranks(layout: Layout, timeout: float, device: str) -> None:
    """Joins the process group of a run whose ranks torchrun or srun started.

    Raises:
        UserError: the others do not come.
    """
    if layout.starter == "srun" and layout.rank == 0:
        check_meeting_place(layout, timeout)
    if device == "cuda":
        # srun may give each task a GPU of its own, the only one that it sees.
        alone = layout.starter == "srun" and torch.cuda.device_count() == 1
        torch.cuda.set_device(0 if alone else layout.rank % layout.per_machine)
    os.environ.setdefault("MASTER_ADDR", layout.url.removeprefix("tcp://").rpartition(":")[0])
    os.environ.setdefault("MASTER_PORT", layout.url.rpartition(":")[2])
    try:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            init_method="env://" if layout.starter == "torchrun" else layout.url,
            world_size=layout.world_size,
            rank=layout.rank,
            timeout=datetime.timedelta(seconds=timeout),
        )
    except (dist.DistError, RuntimeError) as e:
        raise UserError(_meeting_failed(layout, str(e))) from e
    comm.create_local_process_group(layout.per_machine)
    set_timeout(timeout)
    comm.synchronize()


def _rank_main(
    folder: Path, failures: FailureFolder, timeout: float, target: Callable[..., int], args: tuple
) -> None:
    """What a spawned rank runs once it has met the others."""
    die_with_parent()
    os.environ[LAUNCHER] = str(os.getpid())  # for loader workers, where they are spawned
    rank = comm.get_rank()
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    try:
        set_timeout(timeout)
        status = target(*args)
        comm.synchronize()  # a rank that leaves early looks like one that died
    except BaseException as e:
        failure = describe_failure(rank, e)
        write_failure(folder / f"{rank}.json", failure)
        failures.add(failure)
        sys.stdout.flush()
        os._exit(1)  # destructors of process groups can wait for peers
    (folder / f"{rank}.status").write_text(str(status))


def _guarded(failures: FailureFolder, target: Callable[..., int], args: tuple) -> int:
    """Runs a rank that somebody else started; it tells the cause itself."""
    try:
        status = target(*args)
        comm.synchronize()  # a rank that leaves early looks like one that died
    except BaseException as e:
        failure = describe_failure(comm.get_rank(), e)
        failures.add(failure)
        status = print_failure(failures.wait_for_cause(failure))
        sys.stdout.flush()
        os._exit(status)  # destructors of process groups can wait for peers
    dist.destroy_process_group()
    return status


@contextlib.contextmanager
def _signals_forwarded(folder: Path) -> Iterator[None]:
    """Passes TERM, INT, USR1 and USR2 on to the ranks; they decide, this process waits."""

    def forward(number: int, frame: Any) -> None:
        # A terminal's Ctrl-C has reached the ranks already, and a second one means "at once".
        number = signal.SIGTERM if number == signal.SIGINT else number
        # Those that are still importing or waiting for others end by the signal's default action.
        children = {child.pid for child in multiprocessing.active_children()}
        for pid in children | set(_pids(folder).values()):
            _kill(pid, number)

    previous = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _stragglers_killed(folder: Path) -> Iterator[list[int]]:
    """Kills the peers of a dead rank that are still there after a while.

    It looks at /proc, not at exit codes: two threads waiting for one child take it from each other.

    Yields:
        A list that receives the ranks found dead first which left no word: killed from outside.
    """
    over, vanished = threading.Event(), []

    def watch() -> None:
        while not over.wait(0.3):
            dead = {rank for rank, pid in _pids(folder).items() if not _alive(pid)}
            dead -= {int(p.stem) for p in folder.glob("*.status")}
            if dead:
                vanished.extend(dead - {int(p.stem) for p in folder.glob("*.json")})
                if over.wait(_GRACE):
                    return
                for pid in _pids(folder).values():
                    _kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield vanished
    finally:
        over.set()
        thread.join()


def _outcome(
    layout: Layout,
    folder: Path,
    failed: Exception | None,
    failures: FailureFolder,
    vanished: list[int],
) -> int:
    """Says why it failed, if it did, and returns the exit status."""
    statuses = {int(p.stem): int(p.read_text()) for p in folder.glob("*.status")}
    if failed is None and len(statuses) == layout.per_machine:
        return max(statuses.values())
    mine = [json.loads(p.read_text()) for p in folder.glob("*.json")]
    by = getattr(failed, "signal_name", None)
    if by not in _FORWARDED_NAMES and (by or vanished):
        rank = layout.rank + failed.error_index if by else min(vanished)
        mine.append(describe_killed(rank, by))
        failures.add(mine[-1])
    if first := cause(mine):
        return print_failure(failures.wait_for_cause(first))
    if failed is None or by in _FORWARDED_NAMES:
        print("interrupted" + f" by {by}" * bool(by), file=sys.stderr)
        return 130
    # It failed before the ranks had met.
    raise UserError(_meeting_failed(layout, str(failed)))


def _meeting_failed(layout: Layout, text: str) -> str:
    if joined := re.search(r"(\d+)/(\d+) clients joined", text):
        return (
            f"only {joined[1]} of {joined[2]} processes came to {layout.url} in time; start the"
            " other machines, or wait longer with --dist-timeout"
        )
    if "wait timeout" in text:
        return (
            f"not all {layout.world_size} processes came to {layout.url} in time; are --num-gpus"
            " and --num-machines the same on every machine?"
        )
    last = (text.strip() or "no reason given").splitlines()[-1]
    return f"the processes could not meet at {layout.url}: {last}"


def _pids(folder: Path) -> dict[int, int]:
    """Global rank to process id, of the ranks that have met."""
    texts = {int(p.stem): p.read_text() for p in folder.glob("*.pid")}
    return {rank: int(text) for rank, text in texts.items() if text}


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if _alive(pid):
            os.kill(pid, number)
