"""What the command lines share."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli import COMMANDS
from d2ext.config.recipes import find_config
from d2ext.invocation import command

_CONFIG = "a config file, a run directory, or the name of a recipe"


def make_parser(
    name: str,
    description: str,
    usage: str | None = None,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> argparse.ArgumentParser:
    """Return a parser that shows the command as the user runs it.

    Args:
        name: Name of the command.
        description: Its help; `d2ext COMMAND` in it is replaced by the user's words for that.
        usage: What follows the command in its usage; None lists all flags.
        parents: Parsers whose flags it has as well.
    """
    known = "|".join(COMMANDS)
    description = re.sub(rf"\bd2ext ({known})\b", lambda m: command(m[1]), description)
    return argparse.ArgumentParser(
        prog=command(name),
        usage=usage and f"%(prog)s {usage}",
        description=description,
        parents=parents,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config-file`, in whose place the first word that is not a flag may stand."""
    parser.add_argument("--config-file", metavar="CONFIG", help=f"{_CONFIG} (or the first word)")


def take_config(
    parser: argparse.ArgumentParser, args: argparse.Namespace, words: Sequence[str]
) -> list[str]:
    """Set `args.config_file` to the file that the command line means; return the other words.

    Args:
        parser: Parser of the command.
        args: What it has parsed.
        words: The words that are no flags; the first is the config without `--config-file`.

    Raises:
        UserError: There is no such config.
    """
    words = list(words)
    if args.config_file is None:
        if not words or "=" in words[0]:
            parser.error("the following arguments are required: CONFIG")
        args.config_file = words.pop(0)
    args.config_file = find_config(args.config_file)
    return words


def run_folder(config_file: str) -> Path | None:
    """Return the run directory that a config.yaml lies in, which may have been moved; or None."""
    folder = Path(config_file).parent
    return folder if (folder / "run.json").is_file() else None
