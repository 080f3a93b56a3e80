"""Errors that are part of the interface, and the one place that turns them into an exit status."""

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

from d2ext.limits import exhausted, remedy

logger = logging.getLogger(__name__)

# What a disk says that is full, over its quota or read-only, whoever was writing.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

_NO_THREAD = "can't start new thread"  # Python's RuntimeError


class UserError(Exception):
    """An error that the user can fix: one or two lines with the field or file, value and remedy.

    Example:
        >>> import d2ext
        >>> try:
        ...     d2ext.get_config("custom/mask_rcnn_lite0_fpn.py", ["train.max_itr=3"])
        ... except d2ext.UserError as e:
        ...     message = str(e)
        >>> "did you mean" in message and "max_iter" in message
        True
    """

    def _render_traceback_(self) -> list[str]:
        """Return what IPython, and so a notebook, shows in place of a traceback."""
        return [f"UserError: {self}"]


def user_message(e: BaseException) -> str | None:
    """The line for an error that the user can mend, a full disk among them; None for others."""
    if isinstance(e, UserError):
        return str(e)
    text = format_exception(e)
    of_machine = isinstance(e, OSError | MemoryError | ImportError) or str(e) == _NO_THREAD
    if of_machine and (kind := exhausted(text)):
        return f"this process ran out of {kind} ({text}). {remedy(kind)}".strip()
    if isinstance(e, OSError) and e.errno in _DISK:
        return (
            f"cannot write {e.filename or 'a file'}: {e.strerror}; free space, or write to another"
            " place (a training goes on from its last checkpoint with --resume)"
        )
    return None


def format_exception(e: BaseException) -> str:
    """Return the kind of an error and the first line of its text, or two if that ends with `:`."""
    first, *more = (str(e).strip() or "no message").splitlines()
    reason = f" {more[0].strip()}" if more and first.endswith(":") else ""
    return f"{type(e).__name__}: {first}{reason}"


@contextlib.contextmanager
def config_errors(section: str, arguments: Sequence[str] = ()) -> Iterator[None]:
    """Turns what goes wrong while a section of the config is built into a UserError that names it.

    Constructors of models, optimizers and loaders raise whatever they like for a wrong argument.

    Args:
        section: The field of the config that is built.
        arguments: Its arguments as `name=value`, to list in the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        listed = f"; its arguments: {', '.join(arguments)}" if arguments else ""
        raise UserError(
            f"{section} cannot be built: {format_exception(e)}"
            f" ({frame.filename}:{frame.lineno}){listed}"
        ) from e


@contextlib.contextmanager
def best_effort(extra: str) -> Iterator[None]:
    """Logs what goes wrong with something for which no training ends; a full disk ends it."""
    try:
        yield
    except Exception as e:
        if user_message(e) is not None:
            raise
        logger.warning("No %s: %s", extra, format_exception(e))


def run_tool(main: Callable[[], int | None]) -> None:
    """Runs a tool's `main` and exits with its status: 2 and one line for the user's mistakes.

    Ctrl-C exits with 130 as a shell expects; a closed pipe (`... | head`) is not an error. What the
    terminal has no letters for is printed escaped.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        status = 141
    except Exception as e:
        if (message := user_message(e)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    try:
        sys.stdout.flush()
    except OSError:  # Python would fail again while it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
