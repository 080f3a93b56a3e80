"""Describe a run by the command that started it."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2ext.invocation import words
from d2ext.launch.topology import Topology


@dataclass(frozen=True)
class RunCommand:
    """A run as its command describes it; every rank receives it.

    Attributes:
        name: Name of the run.
        config_file: Config file on the command line.
        line: The command line, as a shell takes it.
        start: Words that start as many processes; a config and overrides follow them. Empty if no
            command line starts the same run.
        resume: How to resume the run; empty for a run of the command, which takes `--resume`.
    """

    name: str
    config_file: str
    line: str
    start: list[str]
    resume: str = ""


def run_name(config_file: str) -> str:
    """Return the run's name: the recipe's stem, or the folder of a saved config.yaml."""
    path = Path(config_file)
    return path.resolve().parent.name if path.suffix == ".yaml" else path.stem


def describe_run(
    config_file: str,
    command: str,
    arguments: Sequence[str],
    topology: Topology,
    validate: bool = True,
) -> RunCommand:
    """Return the description of a run by its command.

    Args:
        config_file: Config file on the command line.
        command: The command of d2ext that starts it, such as `train`.
        arguments: Its arguments.
        topology: Topology returned by `find_topology`.
        validate: Whether the run evaluates while it trains.
    """
    start = [*_starting(topology, words("train")), *topology.flags()]
    if not validate:
        start.append("--no-validate")
    line = shlex.join([*_starting(topology, words(command)), *arguments])
    return RunCommand(run_name(config_file), config_file, line, start)


def describe_call(
    function: str, output_dir: Path, topology: Topology, flags: Sequence[str] | None
) -> RunCommand:
    """Return the description of a run by the Python call that started it.

    Args:
        function: The function of d2ext that was called.
        output_dir: Run directory.
        topology: Topology returned by `find_topology`.
        flags: Flags with which `d2ext train` trains the same; None if it cannot.
    """
    call = f"d2ext.{function}(cfg, {str(output_dir)!r}"
    script = _script()
    line = shlex.join([*_starting(topology, script), *sys.argv[1:]]) if script else f"{call})"
    start = [] if flags is None else [*_starting(topology, words("train")), *flags]
    return RunCommand(output_dir.resolve().name, "", line, start, f"{call}, resume=True)")


def _script() -> list[str]:
    """Return the words that run the main program; empty in a notebook or an interactive shell."""
    main = sys.modules["__main__"]
    if not hasattr(main, "__file__"):
        return []
    if main.__spec__ is not None:  # `python -m`
        return ["python", "-m", main.__spec__.name.removesuffix(".__main__")]
    return ["python", os.path.relpath(main.__file__)]


def _starting(topology: Topology, program: list[str]) -> list[str]:
    """Return the words that start a program in as many processes, as the user runs it."""
    if topology.launcher == "torchrun":  # it starts Python itself, with a file or a module
        program = program[1:] if program[0] == "python" else ["-m", *program]
    return [*topology.starting(), *program]
