"""Runs of tools/train_net.py as real processes, forked from one that has imported torch.

A new interpreter would need seconds for imports. The forked process runs the tool's file as
`__main__` in its own session, exactly as a shell would start it. Two ranks are started like
torchrun does, by a parent that waits for them; with `launcher`, the tool spawns them itself.
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
    """One attempt of a run; poll `ended` until it is over.

    Args:
        folder: Run directory; the output goes to a file next to it.
        args: Arguments of the tool.
        ranks: Number of processes; several are started like torchrun does.
        largest_file: Size in bytes; writing a larger file fails halfway, as on a full disk.
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
        """Return True if all processes of the session have ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None and not self.processes()

    def processes(self) -> list[int]:
        """Return the living processes of the session."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] not in "ZX":
                    found.append(int(stat.parent.name))
        return found

    def ranks(self) -> list[int]:
        """Return the processes that train, without loader workers."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                command = Path(f"/proc/{pid}/cmdline").read_text()
                if int(fields[1]) == self.pid and "resource_tracker" not in command:
                    found.append(pid)
        return found

    def kill(self, whom: str, rng: object) -> None:
        """Send SIGKILL to the `group`, to its `parent` alone, or to one `rank`."""
        ranks = self.ranks() if whom == "rank" else []
        with contextlib.suppress(ProcessLookupError):
            if whom == "group" or whom == "rank" and not ranks:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(rng.choice(ranks) if ranks else self.pid, signal.SIGKILL)

    def steps(self) -> int:
        """Return the number of logged steps since this attempt started."""
        new = list(lines(self.folder))[self.lines_before :]
        return new[-1]["iteration"] + 1 - (self.start_iter() or 0) if new else 0

    def text(self) -> str:
        """Return the output so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def start_iter(self) -> int | None:
        """Return the iteration at which it started, or None if it is not printed yet."""
        if match := re.search(r"continues at iteration (\d+)", self.text()):
            return int(match[1])
        return 0 if "iteration 0, weights" in self.text() else None


def done(folder: Path) -> int:
    """Return the number of iterations that a run has completed and logged."""
    return max((line["iteration"] + 1 for line in lines(folder)), default=0)


def lines(folder: Path) -> Iterator[dict]:
    """Yield the lines of metrics.json."""
    path = folder / "metrics.json"
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # a line that is being written
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
    # Like torchrun, leave signals to the ranks, wait for them, and kill the others if one fails.
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
