"""The command that started a run, and what is known of the run from it."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2ext.launch.topology import Topology


def run_name(config_file: str) -> str:
    """Of a recipe; a run's config.yaml is called like its folder."""
    path = Path(config_file)
    return path.resolve().parent.name if path.suffix == ".yaml" else path.stem


def describe_run(
    config_file: str, argv: Sequence[str], topology: Topology, validate: bool = True
) -> dict[str, Any]:
    """What is known of a run from its command.

    Args:
        config_file: of the command line.
        argv: the command line.
        topology: of `find_topology`.
        validate: whether the run evaluates while it trains.

    Returns:
        `name`, `config_file`, `command`, and `start`: the words that start as many processes, to be
        followed by a config and overrides.
    """
    tool = [*topology.starting(), os.path.relpath(argv[0])]
    return {
        "name": run_name(config_file),
        "config_file": config_file,
        "command": shlex.join([*tool, *argv[1:]]),
        "start": [*tool, *topology.flags(), *([] if validate else ["--no-validate"])],
    }
