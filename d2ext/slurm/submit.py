"""Hands a checked job to submitit."""

import contextlib
import io
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from subprocess import CalledProcessError

import submitit
from submitit.helpers import clean_env

from d2ext.errors import UserError
from d2ext.slurm.job import Training, newest
from d2ext.slurm.plan import REPO, Job, Run
from d2ext.slurm.record import Record, new_record

_CPUS_PER_GPU = 5  # of the guide's script
_NEVER = 10**9  # timeouts that submitit lets pass; requeues are counted in the run directory


def submit(job: Job) -> list[Record]:
    """Hands the job over; returns the record of each run.

    Raises:
        UserError: Slurm refuses it.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    with _moved_aside(job):
        records = [new_record(run.directory, stamp) for run in job.runs]
        trainings = [_training(job, *pair) for pair in zip(job.runs, records, strict=True)]
        executor = make_executor(job, job.base / "slurm" / stamp)
        with _environment(job):
            try:
                several = executor.batch() if len(trainings) > 1 else contextlib.nullcontext()
                # submitit prints what it raises as well.
                with contextlib.redirect_stderr(io.StringIO()), several:
                    jobs = [executor.submit(each) for each in trainings]
            except (submitit.core.utils.FailedJobError, CalledProcessError, OSError) as e:
                words = str(e).strip().splitlines() or ["no reason given"]
                hint = "; train.device=cpu asks for no GPUs" * ("gres" in words[-1])
                reason = words[-1].removeprefix("sbatch: error: ")
                raise UserError(f"sbatch refused the job: {reason}{hint}") from e
    for record, handed in zip(records, jobs, strict=True):
        record.submitted(
            job=handed.job_id,
            cluster=job.cluster,
            name=job.name,
            log=str(handed.paths.stdout),
            max_requeues=job.request.max_requeues,
        )
    return records


def sbatch_text(job: Job) -> str:
    """The sbatch file of a job; TIME stands for the time of the submission."""
    executor = make_executor(job, job.base / "slurm" / "TIME")
    if len(job.runs) > 1:
        executor.parameters["map_count"] = len(job.runs)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def make_executor(job: Job, folder: Path) -> submitit.SlurmExecutor | submitit.LocalExecutor:
    """The executor for a job; its files go to `folder`."""
    r = job.request
    # A signal that comes before submitit listens would fail the job; this way it is lost.
    python = shlex.join(["bash", "-c", 'trap "" USR2; exec "$@"', "bash", sys.executable])
    if job.cluster == "local":
        executor = submitit.LocalExecutor(folder, max_num_timeout=_NEVER, python=python)
        numbers = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        executor.update_parameters(
            timeout_min=job.minutes,
            signal_delay_s=r.signal_delay,
            stderr_to_stdout=True,
            gpus_per_node=r.num_gpus * job.wants_gpus,
            visible_gpus=tuple(map(int, numbers)) if all(n.isdecimal() for n in numbers) else (),
        )
        return executor
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_NEVER, python=python)
    cpus = r.cpus_per_task or _CPUS_PER_GPU * r.num_gpus
    after = shlex.join([sys.executable, "-m", "d2ext.slurm.after", str(folder)])
    executor.update_parameters(
        job_name=job.name,
        time=job.minutes,
        nodes=r.num_machines,
        ntasks_per_node=1,
        cpus_per_task=cpus,
        gpus_per_node=r.num_gpus if job.wants_gpus else None,
        signal_delay_s=r.signal_delay,
        stderr_to_stdout=True,
        setup=[f"export PYTHONPATH={shlex.quote(str(REPO))}${{PYTHONPATH:+:$PYTHONPATH}}"],
        teardown=[f"{after} $?"],
        # From Slurm 22.05 on srun takes no number of CPUs from sbatch.
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"],
        wckey=None,
        partition=r.partition,
        qos=r.qos,
        account=r.account,
        constraint=r.constraint,
        exclude=r.exclude,
        nodelist=r.nodelist,
        additional_parameters={"requeue": True, **({"mem": r.mem} if r.mem else {}), **r.slurm},
    )
    return executor


def _training(job: Job, run: Run, record: Record) -> Training:
    r = job.request
    goes_on = ["--resume"] if r.resume or not r.eval_only else []
    port = os.environ.get("PORT")
    return Training(
        command=r.command(run.directory),
        overrides=[*r.train, *([] if run.seed is None else [f"train.seed={run.seed}"])],
        start=["--resume-from", r.resume_from] if r.resume_from else goes_on,
        goes_on=goes_on,
        untouched=newest(run.directory),
        folder=str(record.folder),
        num_machines=r.num_machines,
        max_requeues=r.max_requeues,
        port=int(port) if port else None,
    )


@contextlib.contextmanager
def _moved_aside(job: Job) -> Iterator[None]:
    """--overwrite: earlier runs are moved aside, and back if nothing is submitted."""
    moved = []
    if job.request.overwrite:
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of itself
        from d2ext.engine.output_dir import make_output_dir

        with ProcessPoolExecutor(1) as other:  # the lock on the new directory ends with it
            for run in job.runs:
                aside = other.submit(make_output_dir, run.directory, overwrite=True).result()
                moved += [(aside, run.directory)] if aside else []
    try:
        yield
    except UserError:
        for aside, directory in moved:
            directory.rename(aside.with_name(aside.name + ".refused"))
            aside.rename(directory)
        raise
    for aside, directory in moved:
        print(f"{directory}: the earlier run was moved to {aside}")


@contextlib.contextmanager
def _environment(job: Job) -> Iterator[None]:
    """What the job inherits: nothing of a job that this process may run in."""
    before = os.environ.copy()
    with clean_env():
        if "SLURM_CONF" in before:  # where the cluster is
            os.environ["SLURM_CONF"] = before["SLURM_CONF"]
        if job.cluster == "local":
            paths = [str(REPO), before.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = ":".join(filter(None, paths))
        try:
            with _detached() if job.cluster == "local" else contextlib.nullcontext():
                yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def _detached() -> Iterator[None]:
    """What is started now outlives the terminal, and holds no pipe of this command's open."""
    sys.stdout.flush()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    kept = [os.dup(number) for number in range(3)]
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    try:
        yield
    finally:
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
