#!/usr/bin/env python
"""Trains and evaluates a LazyConfig recipe.

python tools/train_net.py --config-file configs/balloon/mask_rcnn_lite0_fpn_balloon.py
python tools/train_net.py --config-file X --resume
python tools/train_net.py --config-file X --eval-only --weights last
python tools/train_net.py --config-file X train.max_epochs=24 optimizer.lr=1e-3
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.errors import UserError, run_tool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="a recipe, or a run's config.yaml")
    add("--num-gpus", type=int, default=1, help="processes on this machine (default: 1)")
    add("--num-machines", type=int, default=1, help="machines in all (default: 1)")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    add("--dist-url", default="auto", help="where processes meet, tcp://HOST:PORT")
    add("--work-dir", metavar="DIR", help="output (default: work_dirs/<config name>)")
    add("--overwrite", action="store_true", help="move an earlier run in there aside")
    add("--resume", action="store_true", help="go on from the newest good checkpoint in there")
    add("--resume-from", metavar="FILE", help="go on from this checkpoint")
    add("--eval-only", action="store_true", help="evaluate instead of training")
    add("--weights", metavar="best|last|FILE", help="what --eval-only evaluates")
    add("--no-validate", action="store_true", help="train without evaluation")
    add("--dry-run", action="store_true", help="check everything, print the plan, stop")
    add(
        "--options",
        "--cfg-options",
        dest="options",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="overrides, as behind the flags",
    )
    add(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="key=value",
        help="changes to the config, for example train.max_epochs=24",
    )
    return parser


def main() -> int:
    """Reads the command line and runs what it says; returns the exit status."""
    args = _parser().parse_args()
    if args.weights and not args.eval_only:
        raise UserError(
            "--weights goes with --eval-only; train.init_checkpoint=... starts training"
        )
    if args.resume and args.resume_from or args.overwrite and (args.resume or args.resume_from):
        raise UserError("give one of --resume, --resume-from and --overwrite")

    from d2ext.config.load import load_config
    from d2ext.engine.log import setup_logging

    setup_logging()
    cfg = load_config(args.config_file, args.options + args.overrides)
    if args.work_dir:
        cfg.train.output_dir = args.work_dir

    from d2ext.engine.preflight import plan_run

    name = Path(args.config_file).stem
    plan = plan_run(
        cfg,
        name,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        eval_only=args.eval_only,
        weights=args.weights,
        resume=args.resume,
        resume_from=args.resume_from,
        overwrite=args.overwrite,
    )
    if args.dry_run:
        print(*plan.lines, sep="\n")
        return 0

    from d2ext.engine import run

    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    about = {"name": name, "config_file": args.config_file, "command": command}
    if args.eval_only:
        return run.evaluate_only(cfg, plan, about)
    return run.train(cfg, plan, about, args.overwrite, validate=not args.no_validate)


if __name__ == "__main__":
    run_tool(main)
