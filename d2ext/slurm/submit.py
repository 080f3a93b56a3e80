"""Submit a checked job through submitit."""

import contextlib
import io
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from subprocess import CalledProcessError

import submitit
from submitit.helpers import clean_env

from d2ext import _compat
from d2ext.errors import UserError
from d2ext.invocation import PROGRAM, program
from d2ext.run_dir.schema import Submission
from d2ext.slurm.job import Training
from d2ext.slurm.local import LocalExecutor
from d2ext.slurm.pid import identify
from d2ext.slurm.plan import Job, SlurmRun, import_path, job_variables
from d2ext.slurm.queue import FOREVER
from d2ext.slurm.record import Record, new_record
from d2ext.slurm.requeue_policy import newest
from d2ext.waiting import waiting_for

_CPUS_PER_GPU = 5  # as in MMDetection's script
_NEVER = 10**9  # effectively no limit in submitit; requeues are counted in the run directory


def submit(job: Job) -> list[Record]:
    """Submit the job and return the record of each run.

    Raises:
        UserError: Slurm rejects it.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    with _moved_aside(job), _withdrawn(job, stamp):
        records = [new_record(run.directory, stamp) for run in job.runs]
        trainings = [_training(job, *pair) for pair in zip(job.runs, records, strict=True)]
        executor = make_executor(job, job.base / "slurm" / stamp)
        with _environment(job):
            jobs = _submit_all(executor, trainings)
    for record, submitted in zip(records, jobs, strict=True):
        process = identify(submitted.job_id) if job.cluster == "local" else {}
        log = str(submitted.paths.stdout)
        record.submitted(Submission(submitted.job_id, job.cluster, log, **process))
    return records


def _submit_all(executor: submitit.Executor, trainings: Sequence[Training]) -> list[submitit.Job]:
    several = executor.batch() if len(trainings) > 1 else contextlib.nullcontext()
    try:
        # submitit also prints the errors that it raises.
        with waiting_for("sbatch to answer", say=print):
            with contextlib.redirect_stderr(io.StringIO()), several:
                return [executor.submit(each) for each in trainings]
    except submitit.core.utils.FailedSubmissionError as e:
        raise UserError(
            "sbatch printed no job id; remove options of --slurm that change its output"
        ) from e
    except (submitit.core.utils.FailedJobError, CalledProcessError, OSError) as e:
        words = str(e).strip().splitlines() or ["no reason given"]
        reason = words[-1].removeprefix("sbatch: error: ")
        hint = "; train.device=cpu requests no GPUs" if "gres" in reason else ""
        hint += "; --cluster local trains on this machine" if "controller" in str(e) else ""
        raise UserError(f"sbatch refused the job: {reason}{hint}") from e


def sbatch_text(job: Job) -> str:
    """Return the sbatch file of a job, with TIME as a placeholder for the submission time."""
    executor = make_executor(job, job.base / "slurm" / "TIME")
    if len(job.runs) > 1:
        executor.parameters["map_count"] = len(job.runs)
    return _compat.submission_script(executor)


def make_executor(job: Job, folder: Path) -> submitit.SlurmExecutor | LocalExecutor:
    """Return the executor for a job; its files go to `folder`."""
    r = job.request
    # A signal that arrives before submitit handles it would fail the job, so it is ignored.
    python = shlex.join(["bash", "-c", 'trap "" USR2; exec "$@"', "bash", sys.executable, "-P"])
    if job.cluster == "local":
        executor = LocalExecutor(folder, max_num_timeout=_NEVER, python=python)
        executor.update_parameters(
            timeout_min=job.minutes,
            signal_delay_s=r.signal_delay,
            gpus_per_node=r.num_gpus if job.wants_gpus else 0,
        )
        return executor
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_NEVER, python=python)
    cpus = r.cpus_per_task or _CPUS_PER_GPU * r.num_gpus
    after = shlex.join([sys.executable, "-P", "-m", "d2ext.slurm.after", str(folder)])
    more = {"mem": r.mem} if r.mem else {}
    more |= {"time": "UNLIMITED"} if job.minutes == FOREVER else {}
    executor.update_parameters(
        job_name=job.name,
        time=job.minutes,
        nodes=r.num_machines,
        ntasks_per_node=1,
        cpus_per_task=cpus,
        gpus_per_node=r.num_gpus if job.wants_gpus else None,
        signal_delay_s=r.signal_delay,
        stderr_to_stdout=True,
        setup=[
            f"export {PROGRAM}={shlex.quote(str(program()))}",
            *(
                f"export PYTHONPATH={shlex.quote(folder)}${{PYTHONPATH:+:$PYTHONPATH}}"
                for folder in import_path()
            ),
        ],
        teardown=[f"{after} $?"],
        # Since Slurm 22.05, srun does not inherit the number of CPUs from sbatch.
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"],
        wckey=None,
        partition=r.partition,
        qos=r.qos,
        account=r.account,
        constraint=r.constraint,
        exclude=r.exclude,
        nodelist=r.nodelist,
        additional_parameters={"requeue": True, **more, **r.slurm},
    )
    return executor


def _training(job: Job, run: SlurmRun, record: Record) -> Training:
    r = job.request
    resume_flags = ["--resume"] if r.resume or not r.eval_only else []
    return Training(
        command=r.command(run.directory),
        overrides=[*r.train, *([] if run.seed is None else [f"train.seed={run.seed}"])],
        start=["--resume-from", r.resume_from] if r.resume_from else resume_flags,
        resume_flags=resume_flags,
        untouched=newest(run.directory),
        folder=str(record.folder),
        num_machines=r.num_machines,
        max_requeues=r.max_requeues,
        port=r.port,
    )


@contextlib.contextmanager
def _moved_aside(job: Job) -> Iterator[None]:
    """Move earlier runs aside with --overwrite, and back if nothing is submitted."""
    moved = []
    try:
        if job.request.overwrite:
            warnings.simplefilter("ignore", FutureWarning)  # raised while importing torch
            from d2ext.run_dir.lock import make_output_dir

            with ProcessPoolExecutor(1) as other:  # its exit releases the lock
                for run in job.runs:
                    made = other.submit(make_output_dir, run.directory, overwrite=True)
                    moved += [(backup_dir, run.directory)] if (backup_dir := made.result()) else []
        yield
    except BaseException:
        for backup_dir, directory in moved:
            _remove_unused(directory)
            backup_dir.rename(directory)
        raise
    for backup_dir, directory in moved:
        print(f"{directory}: the earlier run was moved to {backup_dir}")


@contextlib.contextmanager
def _withdrawn(job: Job, stamp: str) -> Iterator[None]:
    """Remove the records if nothing is submitted."""
    try:
        yield
    except BaseException:
        for directory in (*(run.directory for run in job.runs), job.base):
            shutil.rmtree(directory / "slurm" / stamp, ignore_errors=True)
            _remove_unused(directory / "slurm")
            _remove_unused(directory)
        raise


def _remove_unused(directory: Path) -> None:
    """Remove a directory that holds at most a lock."""
    with contextlib.suppress(OSError):
        if os.listdir(directory) == [".lock"]:
            (directory / ".lock").unlink()
        directory.rmdir()


@contextlib.contextmanager
def _environment(job: Job) -> Iterator[None]:
    """Remove variables of an enclosing Slurm job, so that the new job does not inherit them."""
    before = os.environ.copy()
    try:
        with clean_env():
            if "SLURM_CONF" in before:  # where the cluster is
                os.environ["SLURM_CONF"] = before["SLURM_CONF"]
            if job.cluster == "local":
                os.environ.update(job_variables())
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
