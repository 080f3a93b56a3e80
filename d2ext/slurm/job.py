"""Run a job: `d2ext train` on each of its machines, and then the requeue, if any.

submitit unpickles a `Training` in one task per machine and calls it. When Slurm announces the end
of the job (USR2: the time limit, or a preemption), submitit calls `checkpoint()` in the first task.
Whenever the trainers end, `requeue_policy.py` decides whether the job is requeued; this module
requeues it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from submitit import JobEnvironment
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from d2ext.errors import UserError
from d2ext.guard import die_with_parent
from d2ext.launch.signals import EXIT_STOPPED
from d2ext.launch.topology import free_port
from d2ext.run_dir.schema import UNSET, MachineFailure, Rendezvous, read_record, write_record
from d2ext.slurm.queue import requeue
from d2ext.slurm.record import Record
from d2ext.slurm.requeue_policy import (
    OUTSIDE,
    End,
    last_error,
    newest,
    rank_errors,
    should_requeue,
    start_number,
)
from d2ext.waiting import waiting_for

_MEETING = 600.0  # seconds for another machine to start, and for the disk to show its file
_GRACE = 15.0  # seconds until trainers are killed after another machine's have failed


@dataclass
class Training:
    """A training job, which is pickled.

    Attributes:
        command: `d2ext train` with its flags; `resume_flags` is added, then overrides.
        overrides: Overrides of the config.
        start: Flags of the first start, such as `--resume-from FILE`.
        resume_flags: Flags that continue the run in the run directory; none for an evaluation.
        untouched: Value of `newest` at submission; until it changes, `start` is used.
        folder: Folder of the submission's record.
        num_machines: Number of machines.
        max_requeues: Maximum number of requeues.
        port: Rendezvous port on the first machine; None chooses a free one.
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled job, which version 0.1 may have submitted."""
        if "goes_on" in state:
            state = {**state, "resume_flags": state["goes_on"]}
        self.__dict__.update(state)

    def __call__(self) -> NoReturn:
        """Run the trainers of a task; exit with their status, or have the job requeued."""
        here, record = JobEnvironment(), Record(self.folder)
        if here.global_rank:
            self._run_other(here)
        try:
            self._errors = rank_errors(record.run_dir)
            self._begin(record, here)
            if record.requeues > self.max_requeues:
                why = f"it was requeued more often than --max-requeues {self.max_requeues}"
                self._finish(record, 1, why)
            status = self._run_trainers(here, lambda: self._failed_elsewhere(here))
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            self._decide(record, here, self._end(record, here, status))
        except UserError as e:  # usually an error of the shared disk
            self._finish(record, 2, str(e))

    def checkpoint(self) -> NoReturn:
        """Wait until the trainers have saved; submitit calls this in the first task on a signal.

        submitit would requeue any return value, and give up if Slurm does not answer at once, so
        this method requeues the job itself and exits.
        """
        here, record = JobEnvironment(), Record(self.folder)
        self._begin(record, here)
        status = -int(signal.SIGUSR2)
        if self._trainers:
            if _exit_status(self._trainers.pid) is None:
                os.kill(self._trainers.pid, signal.SIGUSR2)
            status = _wait(self._trainers.pid)
        self._decide(record, here, self._end(record, here, status, signaled=True))

    def on_step_exit(self, status: int, why: str | None = None) -> NoReturn:
        """Decide on a requeue after the tasks have ended, if they could not.

        Args:
            status: Exit status of the tasks, as a shell reports it.
            why: Reason why they ended, if known; the job is then not requeued.
        """
        here, record = JobEnvironment(), Record(self.folder)
        if record.outcome:
            sys.exit(status)
        begun = self._begin(record, here)
        attempt = record.attempts[-1]
        if why:
            self._finish(record, status, why)
        if attempt.ended is not UNSET:  # the first task had decided to requeue it
            self._requeue(record, here, attempt.why, status)
            sys.exit(status)
        logs = f"{here.paths.folder}/{here.job_id}_*_log.out"
        what = "its processes did not start" if begun else "a task failed"
        killed = status - 128 in OUTSIDE
        words = f"{what} (status {status}), see {logs}"
        self._decide(record, here, End(128 - status if killed else status or 1, False, words))

    def _run_other(self, here: JobEnvironment) -> NoReturn:
        """Run the trainers on a machine other than the first, which alone decides on a requeue."""
        try:
            status = self._run_trainers(here)
            words = last_error(here.paths.stdout)
        except UserError as e:
            status, words = 2, str(e)
            print(f"error: {words}", file=sys.stderr, flush=True)
        if status not in (0, EXIT_STOPPED):
            failure = MachineFailure(status, f"machine {here.hostname}: {words}")
            write_record(self._marker("failed", here), failure)
        sys.exit(0)  # any other status would end the step before the first machine has decided

    def _run_trainers(
        self, here: JobEnvironment, failed_elsewhere: Callable[[], int | None] = lambda: None
    ) -> int:
        env, flags = dict(os.environ), ["--machine-rank", str(here.global_rank)]
        if self.num_machines > 1:
            place = self._meet(here)
            env |= {"MASTER_ADDR": place.host, "PORT": place.port}
        begun = newest(Record(self.folder).run_dir) != self.untouched
        flags += self.resume_flags if begun else self.start
        command = [*self.command, *flags, *self.overrides]
        # Kept, because Python reaps the child of a deleted Popen, and the status would be lost.
        self._trainers = subprocess.Popen(command, env=env, preexec_fn=die_with_parent)
        pid = self._trainers.pid
        if here.cluster == "local":  # Slurm itself signals and ends all processes of a job
            die_with_parent()
            signal.signal(signal.SIGTERM, lambda number, _: os.kill(pid, number))
            if Record(self.folder).cancelled:  # canceled before the handler was installed
                os.kill(pid, signal.SIGTERM)
        return _wait(pid, failed_elsewhere)

    def _meet(self, here: JobEnvironment) -> Rendezvous:
        """Return the rendezvous of the ranks, which the first machine writes for the others."""
        place = self._marker("meet", here)
        if here.global_rank == 0:
            write_record(place, Rendezvous(here.hostnames[0], str(self.port or free_port())))
        deadline = time.monotonic() + _MEETING
        with waiting_for(f"the first machine's {place}", f"at most {_MEETING:g} s"):
            # On NFS, a directory listing is fresher than stat.
            while place.name not in os.listdir(place.parent):
                if time.monotonic() > deadline:
                    raise UserError(f"the first machine has not written the rendezvous {place}")
                time.sleep(0.5)
        return read_record(place, Rendezvous)

    def _marker(self, name: str, here: JobEnvironment) -> Path:
        return Path(self.folder) / f"{name}-{here.job_id}-{start_number()}"

    def _failed_elsewhere(self, here: JobEnvironment) -> int | None:
        """Return the status of another machine's trainers that failed; None if none did."""
        marker = self._marker("failed", here)
        if self.num_machines == 1 or not marker.exists():
            return None
        failure = read_record(marker, MachineFailure)
        print(f"error: {failure.message}", flush=True)
        return failure.status

    def _begin(self, record: Record, here: JobEnvironment) -> bool:
        """Record this start; return False if it was recorded already."""
        attempts = record.attempts
        if attempts and attempts[-1].number == start_number():
            return False
        nodes = os.environ.get("SLURM_JOB_NODELIST", here.hostname)
        record.begin(start_number(), nodes, newest(record.run_dir))
        return True

    def _end(
        self, record: Record, here: JobEnvironment, status: int, signaled: bool = False
    ) -> End:
        now = rank_errors(record.run_dir)
        errors = tuple(path for path in now if self._errors.get(path) != now[path])
        return End(status, signaled, last_error(here.paths.stdout), errors)

    def _decide(self, record: Record, here: JobEnvironment, end: End) -> NoReturn:
        """Requeue the job or end it."""
        decision = should_requeue(record, here, end, self.max_requeues)
        if not decision.requeue:
            self._finish(record, end.status, decision.why)
        record.end(decision.why)
        if not decision.by_slurm:
            self._requeue(record, here, decision.why, end.status)
        print(f"requeued: {decision.why}", flush=True)
        sys.exit(LOCAL_REQUEUE_RETURN_CODE if here.cluster == "local" else EXIT_STOPPED)

    def _requeue(self, record: Record, here: JobEnvironment, why: str, status: int) -> None:
        """Have Slurm requeue the job; end it if Slurm refuses."""
        refusal = None
        if here.cluster == "slurm":
            refusal = requeue(here.job_id, here.raw_job_id, start_number())
        if refusal:
            self._finish(record, status, f"{why}, but Slurm did not requeue it: {refusal}")

    def _finish(self, record: Record, status: int, why: str) -> NoReturn:
        """End the job: print and record the reason, and exit."""
        status = status if status >= 0 else 128 - status
        if status:
            print(f"not requeued (status {status}): {why}", file=sys.stderr, flush=True)
        try:
            record.end(why, status)
        except UserError as e:  # the batch script's last line tries again
            print(f"error: {e}", file=sys.stderr, flush=True)
        sys.exit(status)


def _exit_status(pid: int) -> int | None:
    """Return a child's exit status (a signal as a negative number), or None while it is running.

    The child remains a zombie. Unlike Popen, which would deadlock, a signal handler may call this
    while the same call is in progress.
    """
    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if info is None:
        return None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def _wait(pid: int, failed_elsewhere: Callable[[], int | None] = lambda: None) -> int:
    """Wait for the trainers to end; kill them if the job failed on another machine."""
    checked, failed, end = time.monotonic(), None, float("inf")
    while (status := _exit_status(pid)) is None:
        now = time.monotonic()
        if now > end:  # they would wait for the other machine until their timeout
            os.kill(pid, signal.SIGKILL)
            return failed
        if failed is None and now - checked > 2:
            checked, failed = now, failed_elsewhere()
            end = end if failed is None else now + _GRACE
        time.sleep(0.1)
    return status
