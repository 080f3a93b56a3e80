"""Runs of tools/train_net.py as real processes, forked from one that has imported torch.

A fresh interpreter costs seconds of imports. What is forked here runs the tool's file as
`__main__`, in a session of its own, exactly as a shell would start it. Two ranks are started as
torchrun does it, by a parent that waits for them; with `launcher`, the tool spawns them itself.
"""

import atexit
import contextlib
import json
import os
import re
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from d2ext.guard import die_with_parent

REPO = Path(__file__).resolve().parent.parent.parent
RECIPE = str(REPO / "tests/chaotic/recipe.py")
TOOL = str(REPO / "tools/train_net.py")


class Run:
    """One start of a training; poll `ended` until it is over.

    Args:
        folder: the run's directory; what it prints goes beside it.
        args: for the tool.
        ranks: processes, started as torchrun does it where there are several.
        largest_file: in bytes; what writes a larger one fails half way, as on a full disk.
    """

    def __init__(
        self, folder: Path, args: list[str], ranks: int = 1, largest_file: int | None = None
    ):
        self.folder = folder
        self.output = folder.with_suffix(f".{time.monotonic_ns()}.out")
        self.status: int | None = None
        self.started = time.monotonic()
        self.lines_before = len(list(lines(folder)))
        args = [TOOL, "--config-file", RECIPE, "--work-dir", str(folder), *args]
        self.pid = _fork(lambda: _main(args, self.output, ranks, largest_file))

    def ended(self) -> bool:
        """Whether the first process and all others of its session are gone."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None and not self.processes()

    def processes(self) -> list[int]:
        """Living processes of the session."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] not in "ZX":
                    found.append(int(stat.parent.name))
        return found

    def ranks(self) -> list[int]:
        """Those that train: children of the first process that are no loader workers."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                command = Path(f"/proc/{pid}/cmdline").read_text()
                if int(fields[1]) == self.pid and "resource_tracker" not in command:
                    found.append(pid)
        return found

    def kill(self, whom: str, rng: object) -> None:
        """Sends SIGKILL to the `group`, its `parent` alone, or one `rank`."""
        ranks = self.ranks() if whom == "rank" else []
        with contextlib.suppress(ProcessLookupError):
            if whom == "group" or whom == "rank" and not ranks:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(rng.choice(ranks) if ranks else self.pid, signal.SIGKILL)

    def steps(self) -> int:
        """So many steps have been taken since it went on, as far as they are logged."""
        new = list(lines(self.folder))[self.lines_before :]
        return new[-1]["iteration"] + 1 - (self.start_iter() or 0) if new else 0

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def start_iter(self) -> int | None:
        """The iteration at which it went on, or None before it has said so."""
        if match := re.search(r"continues at iteration (\d+)", self.text()):
            return int(match[1])
        return 0 if "iteration 0, weights" in self.text() else None


def done(folder: Path) -> int:
    """Iterations that a run has logged, which lie behind it."""
    return max((line["iteration"] + 1 for line in lines(folder)), default=0)


def lines(folder: Path) -> Iterator[dict]:
    """The lines of metrics.json."""
    path = folder / "metrics.json"
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # one that is being written
            yield json.loads(text)


def _fork(main: Callable[[], int]) -> int:
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 70
    try:
        status = main()
    finally:
        os._exit(status)


def _main(args: list[str], output: Path, ranks: int, largest_file: int | None) -> int:
    die_with_parent()  # no run outlives this test
    os.setsid()
    os.chdir(output.parent)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    with open(output, "w") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    if ranks == 1:
        return _tool(args)
    # As torchrun: signals reach the ranks, and it waits for them; it ends those of a dead one.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    port = _port()
    pids = [_fork(lambda rank=rank: _rank(args, rank, ranks, port)) for rank in range(ranks)]
    statuses = []
    while pids:
        pid, status = os.wait()
        pids.remove(pid)
        statuses.append(os.waitstatus_to_exitcode(status))
        if statuses[-1] not in (0, 75):
            for other in pids:
                os.kill(other, signal.SIGKILL)
    return next((1 for s in statuses if s not in (0, 75)), max(statuses))


def _rank(args: list[str], rank: int, ranks: int, port: int) -> int:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    where = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks)
    where |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_RUN_ID="chaos")
    os.environ.update({key: str(value) for key, value in where.items()})
    return _tool(args)


def _tool(args: list[str]) -> int:
    sys.argv = args
    try:
        runpy.run_path(TOOL, run_name="__main__")
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
    except BaseException as e:
        sys.excepthook(type(e), e, e.__traceback__)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _port() -> int:
    from d2ext.launch.topology import free_port

    return free_port()
