"""Errors that are part of the interface, and the one place that turns them into an exit status."""

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

from d2ext.invocation import option
from d2ext.limits import exhausted, remedy

logger = logging.getLogger(__name__)

# Errors of a disk that is full, over quota or read-only, no matter which code was writing.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

# Detectron2 has no release on PyPI, so d2ext's wheel cannot require it.
INSTALL_DETECTRON2 = (
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
)

_NO_THREAD = "can't start new thread"  # Python's RuntimeError


class UserError(Exception):
    """An error that the user can fix: one or two lines with the field or file, value and fix.

    Examples:
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
    """Return the message for an error that the user can fix, such as a full disk; else None."""
    if isinstance(e, UserError):
        return str(e)
    if isinstance(e, ModuleNotFoundError) and e.name == "detectron2":
        return f"Detectron2 is not installed; install it with: {INSTALL_DETECTRON2}"
    text = format_exception(e)
    from_system = isinstance(e, OSError | MemoryError | ImportError) or str(e) == _NO_THREAD
    if from_system and (kind := exhausted(text)):
        return f"this process ran out of {kind} ({text}). {remedy(kind)}".strip()
    if isinstance(e, OSError) and e.errno in _DISK:
        return (
            f"cannot write {e.filename or 'a file'}: {e.strerror}; free space, or write to another"
            f" location (continue a run from its last checkpoint with {option('--resume')})"
        )
    return None


def format_exception(e: BaseException) -> str:
    """Return an error's type and the first line of its message, or two if that ends with `:`."""
    first, *more = (str(e).strip() or "no message").splitlines()
    reason = f" {more[0].strip()}" if more and first.endswith(":") else ""
    return f"{type(e).__name__}: {first}{reason}"


@contextlib.contextmanager
def config_errors(section: str, arguments: Sequence[str] = ()) -> Iterator[None]:
    """Turn errors raised while building a section of the config into UserErrors that name it.

    Constructors of models, optimizers and loaders raise all kinds of errors for wrong arguments.

    Args:
        section: Field of the config that is built.
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
def errors_located(place: str) -> Iterator[None]:
    """Add the place of an error in the user's code, such as a hook, to the error as a note."""
    try:
        yield
    except Exception as e:
        e.add_note(f"(in {place})")
        raise


@contextlib.contextmanager
def best_effort(extra: str) -> Iterator[None]:
    """Log an error in optional work instead of ending the run; raise those the user can fix."""
    try:
        yield
    except Exception as e:
        if user_message(e) is not None:
            raise
        logger.warning("No %s: %s", extra, format_exception(e))


def run_tool(main: Callable[[], int | None]) -> None:
    """Run a tool's `main` and exit with its status; for user errors, print one line and exit 2.

    Ctrl-C exits with 130, as shells expect; a closed pipe (`... | head`) is not an error.
    Characters that the terminal cannot print are escaped.
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
    except OSError:  # otherwise Python fails again when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
