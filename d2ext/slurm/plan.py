"""Check a request and plan its job; this module writes and submits nothing."""

import os
import re
import site
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from d2ext.errors import UserError
from d2ext.invocation import PROGRAM, command, program
from d2ext.run_dir.names import run_name
from d2ext.slurm.queue import FOREVER, default_time, has_slurm, parse_time
from d2ext.slurm.record import newest_record
from d2ext.slurm.status import describe_state, is_over
from d2ext.text import plural
from d2ext.waiting import waiting_for

# Fields that only Slurm uses, and sbatch's environment variables with defaults for some of them.
_SLURM_ONLY = (
    *("partition", "job_name", "cpus_per_task", "mem", "qos", "account", "constraint", "exclude"),
    *("nodelist", "slurm"),
)
_DEFAULTS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_TIMELIMIT": "time",
}


@dataclass
class Request:
    """A user's request; the fields are flags of `d2ext submit`.

    Attributes:
        train: Flags and overrides for `d2ext train`.
        slurm: Additional options of sbatch.
        port: Port of the rendezvous on the first machine; None selects a free one.
    """

    config_file: str
    num_machines: int = 1
    num_gpus: int = 1
    work_dir: str | None = None
    resume: bool = False
    resume_from: str | None = None
    overwrite: bool = False
    eval_only: bool = False
    train: list[str] = field(default_factory=list)
    cluster: str | None = None
    partition: str | None = None
    job_name: str | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    seeds: list[int] = field(default_factory=list)
    max_requeues: int = 100
    signal_delay: int = 120
    slurm: dict[str, str | bool] = field(default_factory=dict)
    port: int | None = None

    def command(self, work_dir: Path | None) -> list[str]:
        """Return the first part of the command line of `d2ext train`, up to the machine's rank."""
        counts = {"--num-gpus": self.num_gpus, "--num-machines": self.num_machines}
        flags = [str(x) for pair in counts.items() for x in pair]
        words = [sys.executable, "-u", "-P", "-m", "d2ext", "train"]
        words += ["--config-file", self.config_file, *flags]
        words += ["--eval-only"] if self.eval_only else []
        return words + (["--work-dir", str(work_dir)] if work_dir else [])


@dataclass
class SlurmRun:
    """One run of a job.

    Attributes:
        directory: Run directory.
        seed: Value of `train.seed` with --seeds, else None.
    """

    directory: Path
    seed: int | None = None


@dataclass
class Job:
    """A checked request.

    Attributes:
        request: Original request.
        cluster: `slurm` or `local`.
        runs: One run, or one per seed with --seeds.
        wants_gpus: Whether the config trains on GPUs.
        minutes: Time limit in minutes; FOREVER for none.
        lines: Lines of the plan to print.
    """

    request: Request
    cluster: str
    runs: list[SlurmRun]
    wants_gpus: bool
    minutes: int
    lines: list[str]

    @property
    def name(self) -> str:
        """Return the name of the job."""
        return self.request.job_name or run_name(self.request.config_file)

    @property
    def base(self) -> Path:
        """Return the run directory, or with --seeds the parent of the run directories."""
        first = self.runs[0].directory.absolute()
        return first.parent if self.request.seeds else first


def make_plan(request: Request) -> Job:
    """Check a request, including all preflight checks of its run.

    Raises:
        UserError: The request is invalid.
    """
    cluster, lines = _cluster(request)
    if request.time:
        minutes = parse_time(request.time)
    else:
        minutes = default_time(request.partition) if cluster == "slurm" else FOREVER
    if not 0 < request.signal_delay < minutes * 60:
        raise UserError(
            f"--signal-delay {request.signal_delay}: give a positive number of seconds that is less"
            f" than the job's {plural(minutes, 'minute')}"
        )
    base = Path(request.work_dir or Path("work_dirs") / run_name(request.config_file))
    runs = [SlurmRun(base / f"seed_{seed}", seed) for seed in request.seeds]
    for run in runs or [SlurmRun(base)]:
        _refuse_second(run.directory)  # first, because the dry run would only report a lock
    said = _check(request, cluster, runs[0] if runs else None)
    output, device = (re.search(rf"^{w} +(.*)$", said, re.M)[1] for w in ("output", "device"))
    if runs and Path(output).absolute() != runs[0].directory.absolute():
        raise UserError(
            f"train.output_dir={output}: --seeds gives each run its own directory; set their parent"
            " with --work-dir"
        )
    runs = runs or [SlurmRun(Path(output))]
    if runs[0].directory != base and not request.seeds:  # train.output_dir
        _refuse_second(runs[0].directory)
    for run in runs:
        taken = (run.directory / "run.json").exists()
        if taken and run.seed is not None and not (request.resume or request.overwrite):
            raise UserError(
                f"{run.directory} holds another run; give --resume, --overwrite or another"
                " --work-dir"
            )
        moved = taken and request.overwrite
        if moved and run.directory.resolve() in Path(request.config_file).resolve().parents:
            raise UserError(
                f"--overwrite would move the config {request.config_file} aside with"
                f" {run.directory}; choose another --work-dir, or copy the config elsewhere"
            )
    wants_gpus = not device.startswith("CPU")
    what = "GPU" if wants_gpus else "CPU process"
    limit = plural(minutes, "minute") if minutes < FOREVER else "no time limit"
    lines += [line for line in said.splitlines() if not line.startswith("device ")]
    lines.append(
        f"machines    {request.num_machines} x {request.num_gpus} {what}, {limit}, at most"
        f" {request.max_requeues} requeues"
    )
    if runs[0].seed is not None:
        order = ", one after the other" if cluster == "local" else ""
        where = f"{runs[0].directory} to {runs[-1].directory}"
        lines.append(f"seeds       {len(runs)} runs{order}, {where}")
    return Job(request, cluster, runs, wants_gpus, minutes, lines)


def _cluster(request: Request) -> tuple[str, list[str]]:
    """Return where the job runs, and the lines of the plan about it."""
    cluster, lines = request.cluster, []
    if cluster == "slurm" and not has_slurm():
        raise UserError("--cluster slurm: sbatch and srun are not on this machine's PATH")
    if cluster is None:
        cluster = "slurm" if has_slurm() else "local"
        if cluster == "local":
            lines.append("cluster     local: this machine has no Slurm, so the run starts here")
    if cluster == "local" and request.num_machines > 1:
        raise UserError(
            f"--num-machines {request.num_machines} needs Slurm; give 1 to run on this machine"
        )
    return cluster, lines + (_ignored(request) if cluster == "local" else _defaults(request))


def _ignored(request: Request) -> list[str]:
    """Return lines of the plan about flags that only Slurm uses."""
    given = [f"--{name.replace('_', '-')}" for name in _SLURM_ONLY if getattr(request, name)]
    return [f"ignored     {', '.join(given)}: these flags need Slurm"] if given else []


def _defaults(request: Request) -> list[str]:
    """Apply and report sbatch's variables, which sbatch prefers to options in its file."""
    lines = []
    for name in sorted(name for name in os.environ if name.startswith("SBATCH_")):
        which, value = _DEFAULTS.get(name), os.environ[name]
        if which and getattr(request, which) is None:
            setattr(request, which, value)
            lines.append(f"{which:11} {value} ({name})")
        elif not which and "SLURM_JOB_ID" not in os.environ:  # inside a job, Slurm sets some
            lines.append(f"ignored     {name}; pass any option to sbatch with --slurm")
    return lines


def _check(request: Request, cluster: str, run: SlurmRun | None) -> str:
    """Return the output of `d2ext train --dry-run`."""
    work_dir = run.directory if run else request.work_dir
    seed = [f"train.seed={run.seed}"] if run else []
    words = [*request.command(work_dir), "--machine-rank", "0", "--dry-run"]
    words += ["--resume"] if request.resume else []
    words += ["--overwrite"] if request.overwrite else []
    words += ["--resume-from", request.resume_from] if request.resume_from else []
    env = os.environ | job_variables()
    env |= {"MASTER_ADDR": "localhost", "PORT": str(request.port or 1)}
    if cluster == "slurm":  # this machine may have no GPUs, unlike those of the job
        env["D2EXT_PLAN_GPUS"] = str(request.num_gpus)
    with waiting_for("the checks of the run"):
        done = subprocess.run(
            [*words, *request.train, *seed], env=env, capture_output=True, text=True
        )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.returncode == 2 else done.stderr
        raise UserError(re.sub(rf"^({re.escape(command('train'))}: )?error: ", "", last))
    return done.stdout


def job_variables() -> dict[str, str]:
    """Return variables with which jobs import this d2ext and name its commands as the user does."""
    paths = [*import_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": ":".join(paths), PROGRAM: str(program())}


def import_path() -> list[str]:
    """Return the folder to add to PYTHONPATH for d2ext; empty if d2ext is installed."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    return [] if root in map(os.path.realpath, installed) else [root]


def _refuse_second(directory: Path) -> None:
    record = newest_record(directory)
    if record and not is_over(record):
        raise UserError(
            f"{directory}: {describe_state(record)}; wait for it, run `{command('submit')} cancel"
            f" {directory}`,"
            " or choose another --work-dir"
        )
