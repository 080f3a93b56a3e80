"""Train and evaluate a config.

d2ext train custom/mask_rcnn_lite0_fpn.py data.json=a.json data.images=imgs
d2ext train mine.py --num-gpus 8 train.max_epochs=24 optimizer.lr=1e-3
d2ext train work_dirs/mine --resume
d2ext train mine.py --eval-only --weights last

CONFIG is a config file, a run directory (to run its config.yaml in that directory), or the name of
a recipe as printed by `d2ext recipes`; an existing file takes precedence. CONFIG may also be given
as --config-file CONFIG. Overrides come last.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from d2ext.cli.arguments import add_config, add_interval_flags, make_parser, take_config
from d2ext.launch.signals import deadline
from d2ext.run_dir.logging import setup_logging
from d2ext.run_dir.names import run_folder, usual_weights

# Flags that are arguments of `plan_run`.
PLANNED = "eval_only weights resume resume_from overwrite validate tta expect".split()


def make_train_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of the flags of `d2ext train`, for a command of this name."""
    parser = make_parser(name, __doc__, "CONFIG [flags] [key=value ...]")
    add_config(parser)
    add = parser.add_argument
    add("--num-gpus", type=int, help="processes on this machine: one per GPU, or CPU processes (1)")
    add("--num-machines", type=int, help="number of machines (1, or $NNODES)")
    add("--machine-rank", type=int, help="rank of this machine, from 0 (0, or $NODE_RANK)")
    add("--dist-url", help="rendezvous, tcp://HOST:PORT (a free port on this machine)")
    add("--dist-timeout", type=float, default=1800, help="seconds to wait for other ranks (1800)")
    add("--auto-scale-lr", action="store_true", help="scale batch and learning rate to the workers")
    add("--work-dir", metavar="DIR", help="run directory (work_dirs/<config name>)")
    add("--overwrite", action="store_true", help="move an earlier run in the run directory aside")
    add("--resume", action="store_true", help="resume the run's newest intact checkpoint")
    add("--resume-from", metavar="FILE", help="resume this checkpoint")
    add("--time-limit", metavar="3h50m", help="save and exit with status 75 after this time")
    add("--eval-only", action="store_true", help="evaluate instead of training")
    add("--weights", metavar="best|last|FILE", help="weights to evaluate with --eval-only")
    add("--tta", action="store_true", help="with --eval-only: augment as in dataloader.tta")
    bound = "exit with status 1 if a result misses this bound"
    add("--expect", action="append", default=[], metavar="KEY>=N", help=bound)
    add("--no-validate", dest="validate", action="store_false", help="train without evaluation")
    if name == "evaluate":
        add_interval_flags(parser)
    add("--dry-run", action="store_true", help="check everything, print the plan, and exit")
    add(
        "--options",
        "--cfg-options",
        dest="options",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="overrides, as at the end of the command",
    )
    add("overrides", nargs=argparse.REMAINDER, metavar="key=value", help="config overrides")
    return parser


def parse(argv: Sequence[str], name: str = "train") -> argparse.Namespace:
    """Return the arguments of the command; `command` and `arguments` hold the original words."""
    parser = make_train_parser(name)
    args = parser.parse_args(argv)
    words = take_config(parser, args, args.overrides)
    if len(words) < len(args.overrides):  # flags may follow the config
        config_file = args.config_file
        args = parser.parse_args(words, args)
        if args.config_file != config_file:
            parser.error(f"two configs: {config_file} and --config-file {args.config_file}")
    args.command, args.arguments = name, list(argv)
    return args


def run(args: argparse.Namespace) -> int:
    """Train or evaluate; return the exit status."""
    started = time.monotonic()
    from d2ext.config.load import load_config
    from d2ext.config.options import TrainOptions
    from d2ext.launch.topology import find_topology

    end = deadline(args.time_limit, started)
    setup_logging()
    overrides = args.options + args.overrides
    if args.auto_scale_lr:
        overrides = ["+train.auto_scale_lr.enabled=True", *overrides]
    if args.work_dir:
        overrides = [f"+train.output_dir={json.dumps(args.work_dir)}", *overrides]
    elif folder := run_folder(args.config_file):
        overrides = [f"+train.output_dir={json.dumps(str(folder))}", *overrides]
    cfg = load_config(args.config_file, overrides)
    train = TrainOptions.from_config(cfg.train)
    topology = find_topology(
        os.environ,
        args.num_gpus,
        args.num_machines,
        args.machine_rank,
        args.dist_url or train.dist.url,
        train.dist.port,
    )

    from d2ext.engine.dry_step import dry_step, measure_speed
    from d2ext.engine.worker import RankTask, run_rank
    from d2ext.launch.command import describe_run
    from d2ext.launch.device import choose_device
    from d2ext.launch.spawn import start_ranks
    from d2ext.preflight.plan import plan_run

    command = describe_run(args.config_file, args.command, args.arguments, topology, args.validate)
    out = Path(train.output_dir or Path("work_dirs") / command.name)
    if args.command == "evaluate" and not (args.weights or args.resume or args.resume_from):
        args.weights = usual_weights(out)
    gpus = dict(num_gpus=topology.per_machine, gpu_each=topology.gpu_each)
    options = {name: getattr(args, name) for name in PLANNED} | gpus
    options |= {"world_size": topology.world_size, "since": started}
    plans = topology.rank == 0 and (topology.launcher == "self" or args.dry_run)
    plan = plan_run(cfg, command.name, measure=measure_speed, **options) if plans else None
    if args.dry_run:
        dry_step(cfg, plan)
        return 0
    if topology.launcher == "self" and topology.world_size > 1:
        # Spawned ranks build their own copies; keeping them here would waste memory until the end.
        cfg, plan = None, plan and replace(plan, built=None)
    task = RankTask(args.config_file, overrides, command, options, plan, end, cfg)
    device = choose_device(train.device, **gpus)[0]
    return start_ranks(topology, run_rank, (task,), args.dist_timeout, device, out)
