"""The command lines of d2ext: one module for each command, which parses and calls one function."""

import importlib
from collections.abc import Sequence

from d2ext import __version__
from d2ext.errors import UserError
from d2ext.invocation import command
from d2ext.text import did_you_mean

# Each module has `parse(argv)` and `run(args)`, which returns the exit status. The command
# `print-config` is in print_config.py, and so on; a line says what it does.
COMMANDS = {
    "train": "train a config or a recipe, or resume a run",
    "evaluate": "evaluate a run or a config, or a file of detections",
    "predict": "find objects in images and videos with a trained model",
    "prepare": "put a standard dataset in place, or fetch initial weights",
    "convert": "convert annotations to COCO, or from COCO",
    "check": "find and fix errors in a COCO file and its images",
    "browse": "show a config's images before and after augmentation",
    "recipes": "list the recipes",
    "copy": "copy a recipe to a config file of your own",
    "print-config": "print a config, its differences from another, or its keys",
    "report": "write the report of a run, or compare runs",
    "submit": "hand a training to Slurm; status, logs and cancel of such jobs",
    "doctor": "check this installation, and train one step",
}


def run_command(argv: Sequence[str]) -> int | None:
    """Run a command line; return the exit status.

    Args:
        argv: Name of the command and its arguments.

    Raises:
        UserError: There is no such command, or it fails for a reason that the user can fix.
    """
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"d2ext {__version__}")
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS, f"`{command('--help')}` lists them")
        raise UserError(f"d2ext has no command {name!r}; {hint}")
    module = importlib.import_module(f"d2ext.cli.{name.replace('-', '_')}")
    return module.run(module.parse(arguments))


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {command('COMMAND')} ...",
            "",
            "MMDetection's training workflow for Detectron2's LazyConfig files",
            "",
            "commands:",
            *lines,
            "",
            f"`{command('COMMAND')} --help` describes a command, --version prints the version",
        ]
    )
