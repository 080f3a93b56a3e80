"""Hand a training to Slurm, which carries it over preemption and time limits to its end.

d2ext submit mine.py --partition dev --num-machines 2 --num-gpus 8 --time 4:00:00
d2ext submit mine.py --partition dev --seeds 1,2,3 --wait train.max_epochs=24
d2ext submit status [DIR] | logs [-f] [DIR] | cancel DIR

All other flags and overrides of `d2ext train` go to the training. --resume is added whenever the
job starts again. Without Slurm the training runs on this machine.
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
    """Return the arguments of the command; `rest` holds those of the training."""
    if argv and argv[0] in COMMANDS:
        return _parse_command(*argv)
    parser = _parser()
    args, args.rest = parser.parse_known_args(argv)
    # The config may stand behind flags of the training, whose parser knows which take a value.
    words = []
    if args.config_file is None:
        words = train.make_train_parser("submit").parse_args(args.rest).overrides
    if len(take_config(parser, args, words)) < len(words):
        del args.rest[len(args.rest) - len(words)]
    return args


def run(args: argparse.Namespace) -> int | None:
    """Submit a job, or do what is asked about one; return the exit status."""
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
    parser = make_parser("submit", __doc__, "CONFIG [flags] [flags of a training] [key=value ...]")
    add_config(parser)
    add = parser.add_argument
    add("--num-machines", type=int, default=1, metavar="N", help="nodes (1)")
    add("--num-gpus", type=int, default=1, metavar="N", help="GPUs or CPU processes of each (1)")
    add("--work-dir", metavar="DIR", help="output, on a shared disk (work_dirs/<config name>)")
    add("--resume", action="store_true", help="go on with the run in there")
    add("--resume-from", metavar="FILE", help="start from this checkpoint")
    add("--overwrite", action="store_true", help="move an earlier run in there aside")
    add("--eval-only", action="store_true", help="evaluate instead of training")
    add("--cluster", choices=["slurm", "local"], help="(slurm where there is one)")
    add("--partition", metavar="NAME")
    add("--job-name", metavar="NAME", help="(config name)")
    add("--cpus-per-task", type=int, metavar="N", help="CPU cores of a node (5 for each GPU)")
    add("--mem", metavar="SIZE", help="memory of a node, such as 64G")
    add("--time", help="limit of one start, H:M:S or D-H:M:S (the partition's)")
    for name in ("qos", "account", "constraint", "exclude", "nodelist"):
        add(f"--{name}", metavar="NAME" if name in ("qos", "account") else "LIST")
    add("--slurm", action="append", default=[], metavar="KEY=VALUE", help="anything sbatch knows")
    add("--seeds", metavar="1,2,3", help="a job array, one run directory each")
    add("--max-requeues", type=int, default=100, metavar="N", help="how often it may return (100)")
    add("--signal-delay", type=int, default=120, metavar="S", help="seconds for saving (120)")
    add("--dry-run", action="store_true", help="check, print the plan and the sbatch file, stop")
    add("--wait", action="store_true", help="show rank 0's log; exit with the training's status")
    return parser


def _parse_command(name: str, *argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"{command('submit')} {name}", allow_abbrev=False)
    parser.add_argument("work_dir", nargs="?", type=Path, metavar="DIR", help="(all runs)")
    if name == "logs":
        parser.add_argument("-f", "--follow", action="store_true", help="until the end")
    return parser.parse_intermixed_args(argv, argparse.Namespace(command=name))


def _status(args: argparse.Namespace) -> None:
    from d2ext.slurm.record import find_records
    from d2ext.slurm.status import status_table

    records = find_records(args.work_dir)
    if args.work_dir and not records:
        raise UserError(f"{args.work_dir}: nothing was submitted from there")
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
    if args.work_dir is None:  # the only one that runs is meant
        records = [record for record in records if not is_over(record)]
        if len(records) != 1:
            raise UserError(f"{len(records)} runs are under way; name one's directory")
    if not records:
        raise UserError(f"{args.work_dir}: nothing was submitted from there")
    return records


COMMANDS = {"status": _status, "logs": _logs, "cancel": _cancel}
