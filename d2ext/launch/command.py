"""Describe a run by the command that started it."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    config_file: str, argv: Sequence[str], topology: Topology, validate: bool = True
) -> RunCommand:
    """Return the description of a run by its command.

    Args:
        config_file: Config file on the command line.
        argv: The command line.
        topology: Topology returned by `find_topology`.
        validate: Whether the run evaluates while it trains.
    """
    tool = [*topology.starting(), os.path.relpath(argv[0])]
    start = [*tool, *topology.flags()]
    if not validate:
        start.append("--no-validate")
    return RunCommand(run_name(config_file), config_file, shlex.join([*tool, *argv[1:]]), start)
