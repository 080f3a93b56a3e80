"""What a job does: on each of its machines, tools/train_net.py; then, whether it comes back.

submitit unpickles a `Training` in one task per machine and calls it. When Slurm announces the end
(USR2: the time limit, or a preemption), submitit calls `checkpoint()` in the first task. Every end
of the trainers is judged by `verdict.py`; what brings a job back is done here.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from submitit import JobEnvironment
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from d2ext.errors import UserError
from d2ext.files import atomic_write
from d2ext.guard import die_with_parent
from d2ext.launch.signals import EXIT_STOPPED
from d2ext.launch.topology import free_port
from d2ext.run_dir.schema import UNSET
from d2ext.slurm.queue import requeue
from d2ext.slurm.record import Record
from d2ext.slurm.requeue_policy import (
    OUTSIDE,
    End,
    last_words,
    newest,
    rank_errors,
    should_requeue,
    start_number,
)
from d2ext.waiting import waiting_for

_MEETING = 600.0  # seconds that another machine may take to start, or its disk to show a file
_GRACE = 15.0  # seconds that trainers have once another machine's have failed


@dataclass
class Training:
    """A training as a job, to be pickled.

    Attributes:
        command: train_net.py with its flags; `resume_flags` is added, then overrides.
        overrides: of the config.
        start: flags of the first start, such as `--resume-from FILE`.
        resume_flags: flags that go on with what is in the run directory; none for an evaluation.
        untouched: of `newest` at the time of submission: while it is so, `start` holds.
        folder: of the submission's record.
        num_machines: of the job.
        max_requeues: how often it may come back.
        port: where ranks meet on the first machine; None takes a free one.
    """

    command: list[str]
    overrides: list[str]
    start: list[str]
    resume_flags: list[str]
    untouched: int | None
    folder: str
    num_machines: int
    max_requeues: int
    port: int | None
    _trainers: subprocess.Popen | None = field(default=None, init=False)
    _errors: dict[Path, int] = field(default_factory=dict, init=False)  # of earlier starts

    def __call__(self) -> NoReturn:
        """Runs in each task; exits with the trainers' status, or has the job requeued."""
        here, record = JobEnvironment(), Record(self.folder)
        if here.global_rank:
            self._run_other(here)
        try:
            self._errors = rank_errors(record.run_dir)
            self._begin(record, here)
            if record.requeues > self.max_requeues:
                why = f"it came back more often than --max-requeues {self.max_requeues}"
                self._finish(record, 1, why)
            status = self._run_trainers(here, lambda: self._failed_elsewhere(here))
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            self._decide(record, here, self._end(record, here, status))
        except UserError as e:  # the shared disk, mostly
            self._finish(record, 2, str(e))

    def checkpoint(self) -> NoReturn:
        """Waits until the trainers have saved; called by submitit for a signal, in the first task.

        submitit would requeue whatever is returned, and give up where Slurm does not answer at
        once, so this exits instead, once all is done.
        """
        here, record = JobEnvironment(), Record(self.folder)
        self._begin(record, here)
        status = -int(signal.SIGUSR2)
        if self._trainers:
            if _exit_status(self._trainers.pid) is None:
                os.kill(self._trainers.pid, signal.SIGUSR2)
            status = _wait(self._trainers.pid)
        self._decide(record, here, self._end(record, here, status, signalled=True))

    def on_step_exit(self, status: int, why: str | None = None) -> NoReturn:
        """Runs behind the tasks: sees to a job whose tasks could not decide what becomes of it.

        Args:
            status: theirs, as a shell has it.
            why: what ended them, if that is known, and is the end.
        """
        here, record = JobEnvironment(), Record(self.folder)
        if record.outcome:
            sys.exit(status)
        begun = self._begin(record, here)
        attempt = record.attempts[-1]
        if why:
            self._finish(record, status, why)
        if attempt.ended is not UNSET:  # the first task was to bring it back
            self._requeue(record, here, attempt.why, status)
            sys.exit(status)
        logs = f"{here.paths.folder}/{here.job_id}_*_log.out"
        what = "its processes did not start" if begun else "a task failed"
        killed = status - 128 in OUTSIDE
        words = f"{what} (status {status}), see {logs}"
        self._decide(record, here, End(128 - status if killed else status or 1, False, words))

    def _run_other(self, here: JobEnvironment) -> NoReturn:
        """Another machine than the first, which alone decides what becomes of the job."""
        try:
            status = self._run_trainers(here)
            words = last_words(here.paths.stdout)
        except UserError as e:
            status, words = 2, str(e)
            print(f"error: {words}", file=sys.stderr, flush=True)
        if status not in (0, EXIT_STOPPED):
            with atomic_write(self._marker("failed", here)) as f:
                json.dump([status, f"machine {here.hostname}: {words}"], f)
        sys.exit(0)  # anything else would end the step before the first one has decided

    def _run_trainers(
        self, here: JobEnvironment, failed_elsewhere: Callable[[], int | None] = lambda: None
    ) -> int:
        env, flags = dict(os.environ), ["--machine-rank", str(here.global_rank)]
        if self.num_machines > 1:
            host, port = self._meet(here)
            env |= {"MASTER_ADDR": host, "PORT": port}
        begun = newest(Record(self.folder).run_dir) != self.untouched
        flags += self.resume_flags if begun else self.start
        command = [*self.command, *flags, *self.overrides]
        # Kept: Python reaps the child of a Popen that is gone, and its status would be lost.
        self._trainers = subprocess.Popen(command, env=env, preexec_fn=die_with_parent)
        pid = self._trainers.pid
        if here.cluster == "local":  # Slurm ends what it has started, its signals reach all of it
            die_with_parent()
            signal.signal(signal.SIGTERM, lambda number, _: os.kill(pid, number))
            if Record(self.folder).cancelled:  # before there was anyone to hear of it
                os.kill(pid, signal.SIGTERM)
        return _wait(pid, failed_elsewhere)

    def _meet(self, here: JobEnvironment) -> tuple[str, str]:
        """Host and port where the ranks meet: the first machine tells the others."""
        place = self._marker("meet", here)
        if here.global_rank == 0:
            port = str(self.port or free_port())
            with atomic_write(place) as f:
                json.dump([here.hostnames[0], port], f)
        deadline = time.monotonic() + _MEETING
        with waiting_for(f"the first machine's {place}", f"at most {_MEETING:g} s"):
            # A listing is fresher than NFS's stat.
            while place.name not in os.listdir(place.parent):
                if time.monotonic() > deadline:
                    raise UserError(f"the first machine has not said where to meet ({place})")
                time.sleep(0.5)
        host, port = json.loads(place.read_text())
        return host, port

    def _marker(self, name: str, here: JobEnvironment) -> Path:
        return Path(self.folder) / f"{name}-{here.job_id}-{start_number()}"

    def _failed_elsewhere(self, here: JobEnvironment) -> int | None:
        """The status of another machine's trainers that have failed; None: none have."""
        marker = self._marker("failed", here)
        if self.num_machines == 1 or not marker.exists():
            return None
        status, words = json.loads(marker.read_text())
        print(f"error: {words}", flush=True)
        return status

    def _begin(self, record: Record, here: JobEnvironment) -> bool:
        """Notes this start unless that is done; whether it was to be done."""
        attempts = record.attempts
        if attempts and attempts[-1].number == start_number():
            return False
        nodes = os.environ.get("SLURM_JOB_NODELIST", here.hostname)
        record.begin(start_number(), nodes, newest(record.run_dir))
        return True

    def _end(
        self, record: Record, here: JobEnvironment, status: int, signalled: bool = False
    ) -> End:
        now = rank_errors(record.run_dir)
        errors = tuple(path for path in now if self._errors.get(path) != now[path])
        return End(status, signalled, last_words(here.paths.stdout), errors)

    def _decide(self, record: Record, here: JobEnvironment, end: End) -> NoReturn:
        """The job comes back, or is at its end."""
        verdict = should_requeue(record, here, end, self.max_requeues)
        if not verdict.requeue:
            self._finish(record, end.status, verdict.why)
        record.end(verdict.why)
        if not verdict.by_slurm:
            self._requeue(record, here, verdict.why, end.status)
        print(f"requeued: {verdict.why}", flush=True)
        sys.exit(LOCAL_REQUEUE_RETURN_CODE if here.cluster == "local" else EXIT_STOPPED)

    def _requeue(self, record: Record, here: JobEnvironment, why: str, status: int) -> None:
        """Has Slurm start the job again; where it does not, that is the job's end."""
        refusal = None
        if here.cluster == "slurm":
            refusal = requeue(here.job_id, here.raw_job_id, start_number())
        if refusal:
            self._finish(record, status, f"{why}, but Slurm does not requeue it: {refusal}")

    def _finish(self, record: Record, status: int, why: str) -> NoReturn:
        """The end of the job: says why, and exits."""
        status = status if status >= 0 else 128 - status
        if status:
            print(f"not requeued (status {status}): {why}", file=sys.stderr, flush=True)
        try:
            record.end(why, status)
        except UserError as e:  # the batch script's last line tries again
            print(f"error: {e}", file=sys.stderr, flush=True)
        sys.exit(status)


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
