"""Starts this machine's ranks, watches over them, and says why a run failed.

Guards against faults of Detectron2's `launch()`: it returns normally after a KeyboardInterrupt,
blames the peer of a slow death, waits 30 s for the graceful, and leaves ranks alive when it is
killed.
"""

import contextlib
import datetime
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm

from d2ext.engine.launch import Layout, check_meeting_place
from d2ext.errors import UserError
from d2ext.guard import LAUNCHER, die_with_parent

_GRACE = 5.0  # seconds that peers of a dead rank have before they are killed
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# Whole words: a "storage" or a "socket" in a model's own error is no lost peer.
_LOST_PEER = re.compile(
    r"\b(gloo|nccl|tcpstore|connection (closed|reset|refused)|broken pipe)\b", re.I
)


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
        The exit status of the ranks, or 1 when one failed (2 for a UserError); its cause has been
        printed then.

    Raises:
        UserError: the ranks cannot meet.
    """
    if not 0 < timeout < 1e7:
        raise UserError(f"--dist-timeout {timeout:g}: give seconds, above 0")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # launch() takes NCCL whenever it sees a GPU
    if layout.starter != "self":
        join_ranks(layout, timeout, device)
        return _guarded(target, args)
    if layout.world_size == 1:
        return target(*args)
    check_meeting_place(layout, timeout)
    folder = Path(tempfile.mkdtemp(prefix="d2ext-ranks-"))
    os.environ[LAUNCHER] = str(os.getpid())
    # A rank that dies leaves semaphores; the cause of its death is to be the last thing printed.
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), quiet]))
    failure, errors, started = None, output_dir / "errors", time.time()
    try:
        with _signals_forwarded(folder), _stragglers_killed(folder):
            launch(
                _rank_main,
                layout.per_machine,
                layout.num_machines,
                layout.machine_rank,
                layout.url,
                args=(folder, errors, target, args),
                timeout=datetime.timedelta(seconds=timeout),
            )
    except (
        torch.multiprocessing.ProcessRaisedException,
        torch.multiprocessing.ProcessExitedException,
    ) as e:
        failure = e
    finally:
        for pid in _pids(folder).values():
            _kill(pid, signal.SIGKILL)
    try:
        return _outcome(layout, folder, failure, _errors_since(errors, started))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def join_ranks(layout: Layout, timeout: float, device: str) -> None:
    """Joins the process group of a run whose ranks torchrun or srun started.

    Raises:
        UserError: the others do not come.
    """
    local_rank = layout.rank % layout.per_machine
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
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    comm.create_local_process_group(layout.per_machine)
    comm.synchronize()


def _rank_main(folder: Path, errors: Path, target: Callable[..., int], args: tuple) -> None:
    """What a spawned rank runs once it has met the others."""
    die_with_parent()
    os.environ[LAUNCHER] = str(os.getpid())  # for loader workers, where they are spawned
    rank = comm.get_rank()
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    try:
        status = target(*args)
        comm.synchronize()  # a rank that leaves early looks like one that died
    except BaseException as e:
        _write_error(folder / f"{rank}.json", rank, e)
        if errors.parent.is_dir():
            errors.mkdir(exist_ok=True)
            _write_error(errors / f"rank-{rank}.json", rank, e)
        sys.stdout.flush()
        os._exit(1)  # destructors of process groups can wait for peers
    (folder / f"{rank}.status").write_text(str(status))


def _guarded(target: Callable[..., int], args: tuple) -> int:
    """Runs a rank that somebody else started; an error names the rank."""
    try:
        return target(*args)
    except Exception as e:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "error.json"
            _write_error(path, comm.get_rank(), e)
            _print_error(json.loads(path.read_text()))
        sys.stdout.flush()
        os._exit(2 if isinstance(e, UserError) else 1)


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
def _stragglers_killed(folder: Path) -> Iterator[None]:
    """Kills the peers of a dead rank that are still there after a while.

    It looks at /proc, not at exit codes: two threads waiting for one child take it from each other.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            pids = _pids(folder)
            done = {int(p.stem) for p in folder.glob("*.status")}
            if any(not _alive(pid) for rank, pid in pids.items() if rank not in done):
                if over.wait(_GRACE):
                    return
                for pid in _pids(folder).values():
                    _kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _errors_since(errors: Path, started: float) -> list[dict[str, Any]]:
    """What ranks on any machine left; file times, since clocks may differ."""
    paths = [p for p in errors.glob("rank-*.json") if p.stat().st_mtime >= started]
    return [json.loads(p.read_text()) for p in paths]


def _outcome(
    layout: Layout, folder: Path, failure: Exception | None, errors: list[dict[str, Any]]
) -> int:
    statuses = {int(p.stem): int(p.read_text()) for p in folder.glob("*.status")}
    if failure is None and len(statuses) == layout.per_machine:
        return max(statuses.values())
    errors = errors + [json.loads(p.read_text()) for p in folder.glob("*.json")]
    errors.sort(key=lambda e: (e["kind"] == "communication", e["time"]))
    killed = getattr(failure, "signal_name", None)
    if errors and errors[0]["kind"] != "communication":
        _print_error(errors[0])
        return 2 if errors[0]["kind"] == "user" else 1
    if killed in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        print(f"interrupted by {killed} before training began", file=sys.stderr)
        return 130
    if killed:
        rank = layout.rank + failure.error_index
        print(
            f"error: rank {rank} on {socket.gethostname()} was killed by {killed}"
            + " (out of memory?)" * (killed == "SIGKILL"),
            file=sys.stderr,
        )
        return 1
    if errors:
        _print_error(errors[0])
        return 1
    if failure is None:
        print("interrupted", file=sys.stderr)
        return 130
    # It failed before the ranks had met.
    raise UserError(_meeting_failed(layout, str(failure)))


def _meeting_failed(layout: Layout, text: str) -> str:
    if joined := re.search(r"(\d+)/(\d+) clients joined", text):
        return (
            f"only {joined[1]} of {joined[2]} processes came to {layout.url} in time; start the"
            " other machines, or wait longer with --dist-timeout"
        )
    last = (text.strip() or "no reason given").splitlines()[-1]
    return f"the processes could not meet at {layout.url}: {last}"


def _write_error(path: Path, rank: int, e: BaseException) -> None:
    if isinstance(e, UserError):
        kind = "user"
    elif isinstance(e, dist.DistError) or isinstance(e, RuntimeError) and _LOST_PEER.search(str(e)):
        kind = "communication"
    else:
        kind = "other"
    content = {
        "rank": rank,
        "host": socket.gethostname(),
        "time": time.time(),
        "kind": kind,
        "message": str(e) if kind == "user" else f"{type(e).__name__}: {e}",
        "traceback": traceback.format_exc(),
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)


def _print_error(error: dict[str, Any]) -> None:
    if error["kind"] == "other":
        print(error["traceback"], file=sys.stderr)
    where = f"rank {error['rank']} on {error['host']}"
    print(f"error: {where}: {error['message']}", file=sys.stderr, flush=True)


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
