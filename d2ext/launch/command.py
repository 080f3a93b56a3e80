"""Describe a run by the command that started it."""

import shlex
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
        start: Words that start as many processes; a config and overrides follow them.
    """

    name: str
    config_file: str
    line: str
    start: list[str]


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
    start = [*_starting(topology, "train"), *topology.flags()]
    if not validate:
        start.append("--no-validate")
    line = shlex.join([*_starting(topology, command), *arguments])
    return RunCommand(run_name(config_file), config_file, line, start)


def _starting(topology: Topology, command: str) -> list[str]:
    """Return the words that start a command in as many processes, as the user runs it."""
    program = words(command)
    if topology.launcher == "torchrun":  # it starts Python itself, with a file or a module
        program = program[1:] if program[0] == "python" else ["-m", *program]
    return [*topology.starting(), *program]
