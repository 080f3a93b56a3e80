"""What a job does: on each of its machines, tools/train_net.py; then, whether it comes back.

submitit unpickles a `Training` in one task per machine and calls it. When Slurm announces the end
(USR2: the time limit, or a preemption), submitit calls `checkpoint()` in the first task, and
requeues the job if that says so. Every other end of the trainers is judged in the same place.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission

from d2ext.engine.launch import free_port
from d2ext.engine.signals import EXIT_STOPPED
from d2ext.errors import UserError
from d2ext.files import replaced
from d2ext.guard import die_with_parent
from d2ext.slurm.queue import job_state
from d2ext.slurm.record import Record

_MEETING = 600.0  # seconds that another machine may take to start, or its disk to show a file
_GRACE = 15.0  # seconds that trainers have once another machine's have failed
_KILLS = 3  # starts that end so without a new checkpoint before nobody tries again
_BY_SLURM = "Slurm has requeued it"
_LOST = ("killed", "communication")  # kinds of errors of ranks behind which no mistake stands


class _Ended(Exception):
    """The trainers' end was found while a signal was handled, and it is the job's end."""


@dataclass
class Training:
    """A training as a job, to be pickled.

    Attributes:
        command: train_net.py with its flags; `goes_on` is added, then overrides.
        overrides: of the config.
        start: flags of the first start, such as `--resume-from FILE`.
        goes_on: flags that go on with what is in the run directory; none for an evaluation.
        untouched: of `newest` at the time of submission: while it is so, `start` holds.
        folder: of the submission's record.
        num_machines: of the job.
        max_requeues: how often it may come back.
        port: where ranks meet on the first machine; None takes a free one.
    """

    command: list[str]
    overrides: list[str]
    start: list[str]
    goes_on: list[str]
    untouched: int | None
    folder: str
    num_machines: int
    max_requeues: int
    port: int | None
    _pid: int = field(default=0, init=False)

    def __call__(self) -> None:
        """Runs in each task; exits with the trainers' status, or has the job requeued."""
        here, record = JobEnvironment(), Record(self.folder)
        if here.global_rank:
            self._run_other(here)
        if len(record.attempts) > self.max_requeues:
            self._finish(
                record, 1, f"it came back more often than --max-requeues {self.max_requeues}"
            )
        nodes = os.environ.get("SLURM_JOB_NODELIST", here.hostname)
        record.begin(nodes, newest(record.run_dir))
        try:
            status = self._run_trainers(here, lambda: self._failed_elsewhere(here))
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        except _Ended as e:
            self._finish(record, *e.args)
        why, again = self._judge(record, here, status, signalled=False)
        if not again:
            self._finish(record, status, why)
        self._come_back(record, here, why)

    def checkpoint(self) -> DelayedSubmission:
        """Waits until the trainers have saved; called by submitit for a signal, in the first task.

        Returns:
            What runs next, which makes submitit requeue the job.
        """
        here, record = JobEnvironment(), Record(self.folder)
        status = EXIT_STOPPED
        if self._pid:
            if _exit_status(self._pid) is None:
                os.kill(self._pid, signal.SIGUSR2)
            status = _wait(self._pid)
        why, again = self._judge(record, here, status, signalled=True)
        if not again:
            raise _Ended(status, why)
        if why.startswith(_BY_SLURM):
            self._come_back(record, here, why)
        record.end(why)
        print(f"requeued: {why}", flush=True)
        return DelayedSubmission(replace(self))

    def step_ended(self, status: int) -> NoReturn:
        """Runs in the batch script behind srun: has a job requeued whose tasks were killed."""
        here, record = JobEnvironment(), Record(self.folder)
        attempts = record.attempts
        if record.outcome or attempts and "ended" in attempts[-1]:
            sys.exit(status)
        log = here.paths.stdout
        if not attempts or status < 128:
            self._finish(record, status or 1, f"its processes did not start; see {log}")
        why, again = self._judge(record, here, 128 - status, signalled=False)
        if not again:
            self._finish(record, status, why)
        self._come_back(record, here, why)

    def _run_other(self, here: JobEnvironment) -> NoReturn:
        """Another machine than the first, which alone decides what becomes of the job."""
        status = self._run_trainers(here)
        if status not in (0, EXIT_STOPPED):
            words = f"machine {here.hostname}: {_last_words(here.paths.stdout)}"
            with replaced(self._marker("failed", here)) as f:
                json.dump([status, words], f)
        sys.exit(0)  # anything else would end the step before the first one has decided

    def _run_trainers(
        self, here: JobEnvironment, failed_elsewhere: Callable[[], int | None] = lambda: None
    ) -> int:
        env, flags = dict(os.environ), ["--machine-rank", str(here.global_rank)]
        if self.num_machines > 1:
            host, port = self._meet(here)
            env |= {"MASTER_ADDR": host, "PORT": port}
        begun = newest(Record(self.folder).run_dir) != self.untouched
        flags += self.goes_on if begun else self.start
        command = [*self.command, *flags, *self.overrides]
        self._pid = subprocess.Popen(command, env=env, preexec_fn=die_with_parent).pid
        if here.cluster == "local":  # Slurm's signals reach every process
            signal.signal(signal.SIGTERM, lambda number, _: os.kill(self._pid, number))
        return _wait(self._pid, failed_elsewhere)

    def _meet(self, here: JobEnvironment) -> tuple[str, str]:
        """Host and port where the ranks meet: the first machine tells the others."""
        place = self._marker("meet", here)
        if here.global_rank == 0:
            port = str(self.port or free_port())
            with replaced(place) as f:
                json.dump([here.hostnames[0], port], f)
        deadline = time.monotonic() + _MEETING
        while place.name not in os.listdir(place.parent):  # a listing is fresher than NFS's stat
            if time.monotonic() > deadline:
                raise UserError(f"the first machine has not said where to meet ({place})")
            time.sleep(0.5)
        host, port = json.loads(place.read_text())
        return host, port

    def _marker(self, name: str, here: JobEnvironment) -> Path:
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        return Path(self.folder) / f"{name}-{here.job_id}-{restart}"

    def _failed_elsewhere(self, here: JobEnvironment) -> int | None:
        """The status of another machine's trainers that have failed; None: none have."""
        marker = self._marker("failed", here)
        if self.num_machines == 1 or not marker.exists():
            return None
        status, words = json.loads(marker.read_text())
        print(f"error: {words}", flush=True)
        return status

    def _judge(
        self, record: Record, here: JobEnvironment, status: int, signalled: bool
    ) -> tuple[str, bool]:
        """Why the trainers ended, and whether the job is to come back."""
        why = self._interruption(record, here, status, signalled)
        if why is None:
            return _last_words(here.paths.stdout) if status else "finished", False
        if record.cancelled:
            return f"cancelled: {why}", False
        if here.cluster == "local" and not signalled:
            return f"stopped by hand: {why}", False
        if here.cluster == "slurm" and (now := job_state(here.raw_job_id)):
            state, restarts = now
            if restarts > int(os.environ.get("SLURM_RESTART_COUNT", 0)):
                return f"{_BY_SLURM}: {why}", True
            if state != "RUNNING":  # Slurm says COMPLETING for both
                return f"cancelled, or its time was up before it had saved: {why}", False
        if len(record.attempts) > self.max_requeues:
            return f"{why}, after {record.requeues} requeues, all that --max-requeues allows", False
        last = [attempt["checkpoint"] for attempt in record.attempts[-_KILLS:]]
        killed = status != EXIT_STOPPED and not signalled
        if killed and last == [newest(record.run_dir)] * _KILLS:
            return f"{why}, for the {_KILLS}rd time without a new checkpoint", False
        return why, True

    def _interruption(
        self, record: Record, here: JobEnvironment, status: int, signalled: bool
    ) -> str | None:
        """What ended the trainers that is no fault of theirs, or None."""
        if status == EXIT_STOPPED:
            return "preempted or out of time, and saved" if here.cluster == "slurm" else "saved"
        if signalled and (status == 130 or status < 0):
            return "preempted or out of time, before or behind the steps"
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        if status == 1 and (failure := self._failure(record)):
            return f"rank {failure['rank']} on {failure['host']}: {failure['message']}"
        return None

    def _failure(self, record: Record) -> dict | None:
        """A rank's error of this attempt, if it was killed or lost a machine."""
        from d2ext.engine.failures import cause  # it imports torch

        since = record.attempts[-1]["started"]
        files = (record.run_dir / "errors").glob("rank-*.json")
        failures = [json.loads(p.read_text()) for p in files if p.stat().st_mtime >= since]
        first = cause(failures)
        return first if first and first["kind"] in _LOST else None

    def _come_back(self, record: Record, here: JobEnvironment, why: str) -> NoReturn:
        record.end(why)
        print(f"requeued: {why}", flush=True)
        if not why.startswith(_BY_SLURM):
            here._requeue(0)
        sys.exit(EXIT_STOPPED)

    def _finish(self, record: Record, status: int, why: str) -> NoReturn:
        """The end of the job: says why, and exits."""
        status = status if status >= 0 else 128 - status
        if status:
            print(f"not requeued (status {status}): {why}", file=sys.stderr, flush=True)
        record.end(why, status)
        sys.exit(status)


def newest(run_dir: Path) -> int | None:
    """What changes with each checkpoint of a run; None before the first one."""
    pointer = run_dir / "last_checkpoint"
    return pointer.stat().st_mtime_ns if pointer.exists() else None


def _exit_status(pid: int) -> int | None:
    """How a child ended (a signal as a negative number), None while it lives; it stays a zombie.

    A signal's handler asks in the midst of the same question, where Popen would wait for itself.
    """
    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if info is None:
        return None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def _wait(pid: int, failed_elsewhere: Callable[[], int | None] = lambda: None) -> int:
    """Waits for the trainers' end; those of a job that failed on another machine are ended."""
    checked, failed, end = time.monotonic(), None, float("inf")
    while (status := _exit_status(pid)) is None:
        now = time.monotonic()
        if now > end:  # they would wait for the others for long
            os.kill(pid, signal.SIGKILL)
            return failed
        if failed is None and now - checked > 2:
            checked, failed = now, failed_elsewhere()
            end = end if failed is None else now + _GRACE
        time.sleep(0.1)
    return status


def _last_words(log: Path) -> str:
    """The line of a log that says what went wrong."""
    lines = log.read_text(errors="replace").splitlines()[-50:]
    words = [line for line in lines if line.startswith("error: ")] or [log.name]
    return words[-1].removeprefix("error: ")
