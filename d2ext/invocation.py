"""Name d2ext's commands in messages the way the user runs them."""

import os
import shlex
import sys
from pathlib import Path

# Commands and the scripts in tools/ that run them in a checkout; other commands have none.
TOOLS = {
    "train": "train_net.py",
    "evaluate": "evaluate.py",
    "predict": "predict.py",
    "export": "export.py",
    "prepare": "prepare_data.py",
    "convert": "convert_dataset.py",
    "split": "split_dataset.py",
    "check": "check_dataset.py",
    "browse": "browse_dataset.py",
    "print-config": "print_config.py",
    "report": "report.py",
    "submit": "submit.py",
    "doctor": "doctor.py",
}
PROGRAM = "D2EXT_COMMAND"  # environment variable for jobs: the program that submitted them
_PACKAGE = Path(__file__).resolve().parent
_TOOLS = _PACKAGE.parent / "tools"


def program() -> Path:
    """Return the program that the user started, as it was typed."""
    return Path(os.environ.get(PROGRAM) or sys.argv[0])


def words(name: str) -> list[str]:
    """Return the words that run a command; in other programs than d2ext's, `d2ext NAME`.

    Spawned ranks inherit `sys.argv`, so they name commands like the process that started them.

    Args:
        name: Name of the command, such as `train`.
    """
    path = program()
    real = path.resolve()
    if real == _PACKAGE / "__main__.py":
        return ["python", "-m", "d2ext", name]
    if name in TOOLS and real.parent == _TOOLS and real.name in TOOLS.values():
        sibling = path.with_name(TOOLS[name])  # missing if `path` is a link to a single tool
        return ["python", str(sibling if sibling.exists() else real.with_name(TOOLS[name]))]
    return ["d2ext", name]


def command(name: str) -> str:
    """Return the command line that runs a command, quoted for a shell."""
    return shlex.join(words(name))


# Flags of commands as arguments of d2ext's functions.
ARGUMENTS = {
    "--no-validate": "validate=False",
    "--overwrite": "overwrite=True",
    "--resume": "resume=True",
    "--resume-from": "resume_from",
    "--tta": "tta=True",
    "--weights": "weights",
    "--work-dir": "output_dir",
}


def option(flag: str) -> str:
    """Return a flag as users give it: in other programs than d2ext's, as a function's argument."""
    ours = words("train")[0] == "python" or Path(sys.argv[0]).name == "d2ext"
    return flag if ours else ARGUMENTS[flag]
