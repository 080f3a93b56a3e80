"""Describe a run by the command that started it."""

import os
import shlex
import sys
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


def describe_call(
    function: str, output_dir: Path, topology: Topology, words: Sequence[str]
) -> RunCommand:
    """Return the description of a run by the Python call that started it.

    Args:
        function: The function of d2ext that was called.
        output_dir: Run directory.
        topology: Topology returned by `find_topology`.
        words: Words of the command that starts such a run with its config; empty if none does.
    """
    call = f"d2ext.{function}(cfg, {str(output_dir)!r}"
    script = _script()
    line = shlex.join([*topology.starting(), *script, *sys.argv[1:]]) if script else f"{call})"
    python = [] if topology.launcher == "self" else [*topology.starting(), "-m"]
    start = [*python, *words] if words else []
    return RunCommand(output_dir.resolve().name, "", line, start, f"{call}, resume=True)")


def _script() -> list[str]:
    """Return the words with which Python runs the main program; empty in a notebook or shell."""
    main = sys.modules["__main__"]
    if not hasattr(main, "__file__"):
        return []
    if main.__spec__ is not None:  # `python -m`
        return ["-m", main.__spec__.name.removesuffix(".__main__")]
    return [os.path.relpath(main.__file__)]
