"""The commands of d2ext: one module per command, which parses arguments and calls one function."""

import importlib
from collections.abc import Sequence

from d2ext import __version__
from d2ext.errors import UserError
from d2ext.invocation import command
from d2ext.text import did_you_mean

# One-line descriptions. The command `print-config` is in print_config.py, and so on; each module
# has `parse(argv)` and `run(args)`, which returns the exit status.
COMMANDS = {
    "train": "train a config or a recipe, or resume a run",
    "evaluate": "evaluate a run or a config, or a file of detections",
    "predict": "detect objects in images and videos with a trained model",
    "export": "export a trained model as an ONNX file or an HTML page, and verify it",
    "prepare": "set up a standard dataset, or download initial weights",
    "convert": "convert annotations to or from COCO",
    "convert-weights": "convert a checkpoint from or to MMDetection's tensor names",
    "split": "split a COCO file into training and validation, or into folds",
    "check": "find and fix errors in a COCO file and its images",
    "browse": "show a config's images before and after augmentation",
    "recipes": "list the recipes",
    "copy": "copy a recipe to your own config file",
    "import-mmdet": "turn a config of MMDetection into a config file",
    "print-config": "print a config, its differences from another, or its keys",
    "analyze": "print a model's parameters, FLOPs, and the time and memory of a step",
    "report": "write a run's report, or compare runs",
    "submit": "submit a run to Slurm; show the status or logs of jobs, or cancel them",
    "doctor": "check this installation and run one training step",
}


def run_command(argv: Sequence[str]) -> int | None:
    """Run a command line; return the exit status.

    Args:
        argv: Name of the command and its arguments.

    Raises:
        UserError: The command does not exist, or fails because of an error that the user can fix.
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
            f"`{command('COMMAND')} --help` describes a command; --version prints the version",
        ]
    )
