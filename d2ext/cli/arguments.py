"""Build parsers and resolve the CONFIG argument, for all commands."""

import argparse
import os
import re
from collections.abc import Sequence

from d2ext.cli import COMMANDS
from d2ext.config.options import FEWEST_RESAMPLES
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
        description: Help text; `d2ext COMMAND` in it is replaced by the command as the user runs
            it.
        usage: Arguments to show in the usage line; None lists all flags.
        parents: Parsers whose flags are included.
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
    """Add `--config-file`; without it, the first positional argument is the config."""
    parser.add_argument(
        "--config-file", metavar="CONFIG", help=f"{_CONFIG}; may be the first argument"
    )


def add_interval_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--intervals` and `--resamples`, whose value is None if it is not given."""
    parser.add_argument(
        "--intervals",
        action="store_true",
        help="compute 95 %% intervals even for test sets with more than 1,000 images",
    )
    parser.add_argument(
        "--resamples",
        type=_draws,
        metavar="N",
        help="number of draws for intervals, at least 100 (default: 1000); 0 turns intervals off",
    )


def _draws(text: str) -> int:
    if not text.isdecimal() or 0 < int(text) < FEWEST_RESAMPLES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither 0 nor an integer of at least {FEWEST_RESAMPLES}"
        )
    return int(text)


def take_config(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    words: Sequence[str],
    name: str = "CONFIG",
) -> list[str]:
    """Set `args.config_file` to the config's path and return the other positional arguments.

    Args:
        parser: Parser of the command.
        args: Arguments parsed so far.
        words: Positional arguments; without `--config-file`, the first is the config.
        name: Name of the config in the parser's usage.

    Raises:
        UserError: The config does not exist.
    """
    words = list(words)
    if words[:1] == ["--"]:
        del words[0]
    if args.config_file is None and words and ("=" not in words[0] or os.path.exists(words[0])):
        args.config_file = words.pop(0)
    if not args.config_file:
        parser.error(f"the following arguments are required: {name}")
    if words and words[0].endswith((".py", ".yaml")) and "=" not in words[0]:
        parser.error(f"two configs: {args.config_file} and {words[0]}")
    args.config_file = find_config(args.config_file)
    return words
