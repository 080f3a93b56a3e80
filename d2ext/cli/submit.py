"""Submit a run to Slurm; it is requeued after preemption and time limits until it finishes.

d2ext submit mine.py --partition dev --num-machines 2 --num-gpus 8 --time 4:00:00
d2ext submit mine.py --partition dev --seeds 1,2,3 --wait train.max_epochs=24
d2ext submit status [DIR] | logs [-f] [DIR] | cancel [DIR]

All other flags and overrides are passed to `d2ext train`. --resume is added whenever the job is
restarted. Without Slurm, the run is started on this machine.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli import train
from d2ext.cli.arguments import add_config, make_parser, take_config
from d2ext.errors import UserError
from d2ext.invocation import command


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command; `rest` holds those of `d2ext train`."""
    if argv and argv[0] in COMMANDS:
        return _parse_command(*argv)
    parser = _parser()
    args, args.rest = parser.parse_known_args(argv)
    # The config may follow flags of `d2ext train`, whose parser knows which of them take a value.
    words = train.make_train_parser("submit").parse_args(args.rest).overrides
    first = len(args.rest) - len(words)
    args.rest[first:] = take_config(parser, args, words)
    return args


def run(args: argparse.Namespace) -> int | None:
    """Submit a job, or run a subcommand; return the exit status."""
    if "command" in args:
        return COMMANDS[args.command](args)
    from d2ext.slurm.follow import follow
    from d2ext.slurm.options import make_request
    from d2ext.slurm.plan import make_plan
    from d2ext.slurm.submit import sbatch_text, submit

    job = make_plan(make_request(vars(args), args.rest, os.environ))
    print("\n".join(job.lines), flush=True)
    if args.dry_run:
        print("" if job.cluster == "local" else sbatch_text(job))
        return 0
    records = submit(job)
    for record in records:
        print(f"submitted   {record.submission.job}: {record.run_dir}", flush=True)
    return follow(records) if args.wait else 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("submit", __doc__, "CONFIG [flags] [flags of train] [key=value ...]")
    add_config(parser)
    add = parser.add_argument
    add("--num-machines", type=int, default=1, metavar="N", help="number of nodes (1)")
    add("--num-gpus", type=int, default=1, metavar="N", help="GPUs or CPU processes per node (1)")
    add("--work-dir", metavar="DIR", help="run directory, shared by the nodes (work_dirs/<config>)")
    add("--resume", action="store_true", help="resume the run in the run directory")
    add("--resume-from", metavar="FILE", help="resume from this checkpoint")
    add("--overwrite", action="store_true", help="move an earlier run in the run directory aside")
    add("--eval-only", action="store_true", help="evaluate instead of training")
    add("--cluster", choices=["slurm", "local"], help="where to run (slurm if it is installed)")
    add("--partition", metavar="NAME")
    add("--job-name", metavar="NAME", help="(config name)")
    add("--cpus-per-task", type=int, metavar="N", help="CPU cores per node (5 per GPU)")
    add("--mem", metavar="SIZE", help="memory per node, such as 64G")
    add("--time", help="time limit of each start, H:M:S or D-H:M:S (the partition's)")
    for name in ("qos", "account", "constraint", "exclude", "nodelist"):
        add(f"--{name}", metavar="NAME" if name in ("qos", "account") else "LIST")
    add("--slurm", action="append", default=[], metavar="KEY=VALUE", help="any other sbatch option")
    add("--seeds", metavar="1,2,3", help="submit a job array, one run per seed")
    add(
        "--max-requeues",
        type=int,
        default=100,
        metavar="N",
        help="maximum number of requeues (100)",
    )
    delay = "seconds reserved for saving before the time limit (120)"
    add("--signal-delay", type=int, default=120, metavar="S", help=delay)
    add("--dry-run", action="store_true", help="check, print the plan and the sbatch file, exit")
    add("--wait", action="store_true", help="show rank 0's log; exit with the run's status")
    return parser


def _parse_command(name: str, *argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"{command('submit')} {name}", allow_abbrev=False)
    default = "all runs" if name == "status" else "the only unfinished run"
    which = f"run directory ({default})"
    parser.add_argument("work_dir", nargs="?", type=Path, metavar="DIR", help=which)
    if name == "logs":
        parser.add_argument("-f", "--follow", action="store_true", help="follow until the end")
    return parser.parse_intermixed_args(argv, argparse.Namespace(command=name))


def _status(args: argparse.Namespace) -> None:
    from d2ext.slurm.record import find_records
    from d2ext.slurm.status import status_table

    records = find_records(args.work_dir)
    if args.work_dir and not records:
        raise UserError(f"{args.work_dir}: no job was submitted for this directory")
    print(status_table(records) if records else "no run was submitted")


def _logs(args: argparse.Namespace) -> int:
    from d2ext.slurm.follow import follow, show

    records = _chosen(args)
    if args.follow:
        return follow(records)
    for record in records:
        show(record)
    return 0


def _cancel(args: argparse.Namespace) -> None:
    from d2ext.slurm.cancel import cancel

    for line in cancel(_chosen(args)):
        print(line)


def _chosen(args: argparse.Namespace) -> list:
    from d2ext.slurm.record import find_records
    from d2ext.slurm.status import is_over

    records = find_records(args.work_dir)
    if args.work_dir is None:  # the default is the only unfinished run
        records = [record for record in records if not is_over(record)]
        if len(records) != 1:
            raise UserError(f"{len(records)} runs are unfinished; give a run directory")
    if not records:
        raise UserError(f"{args.work_dir}: no job was submitted for this directory")
    return records


COMMANDS = {"status": _status, "logs": _logs, "cancel": _cancel}
