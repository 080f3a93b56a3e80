"""Describe a run by the command that started it."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2ext.invocation import words
from d2ext.launch.topology import Topology
from d2ext.run_dir.names import run_name


@dataclass(frozen=True)
class RunCommand:
    """Description of a run by its command; every rank receives it.

    Attributes:
        name: Name of the run.
        config_file: Config file on the command line.
        line: Command line, quoted for a shell.
        start: Words of a command that starts the same processes; a config and overrides follow
            them. Empty if no command starts the same run.
        resume: Python call that resumes the run; empty if the command does, with `--resume`.
    """

    name: str
    config_file: str
    line: str
    start: list[str]
    resume: str = ""


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
        command: Command of d2ext that starts the run, such as `train`.
        arguments: Arguments of the command.
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
        function: Function of d2ext that was called.
        output_dir: Run directory.
        topology: Topology returned by `find_topology`.
        flags: Flags with which `d2ext train` starts the same run; None if it cannot.
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
    return ["python", sys.argv[0]]


def _starting(topology: Topology, program: list[str]) -> list[str]:
    """Return the command that starts a program in the same processes, as the user runs it."""
    if topology.launcher == "torchrun":  # torchrun takes a file or a module and starts Python
        program = program[1:] if program[0] == "python" else ["-m", *program]
    return [*topology.starting(), *program]
