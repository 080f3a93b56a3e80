"""Parts of messages that several modules write."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence

_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(
    rf"(?:{_NUMBER} *d(?:ays?)?)? *(?:{_NUMBER} *h(?:(?:ou)?rs?)?)?"
    rf" *(?:{_NUMBER} *m(?:in(?:ute)?s?)?)? *(?:{_NUMBER} *s(?:ecs?|econds?)?)?"
)


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: `1 class`, `2 classes`, `0 entries`, `5 days`."""
    if number == 1:
        return f"{number} {noun}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}es" if noun.endswith("s") else f"{number} {noun}s"


def with_interval(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Return a result in percent, with its interval if it has one: `49.1 [44.0, 54.2]`."""
    if value is None or not math.isfinite(value):
        return "none"
    return f"{value:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


def shortened(names: Sequence[str], most: int) -> str:
    """Return the names separated by commas, with `...` for those after the first `most`."""
    return ", ".join([*names[:most], "..."] if len(names) > most else names)


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name most similar to `name`; None if no similarity reaches `cutoff`."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return near[0] if near else None


def did_you_mean(
    name: object, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6
) -> str:
    """Return the hint `did you mean 'x'?` for an unknown name, or `otherwise`."""
    near = closest(str(name), known, cutoff)
    return f"did you mean {near!r}?" if near else otherwise


def as_seconds(duration: str) -> float:
    """Return a duration such as 3h50m, 1d12h, 90s, `10 min` or `1.5 h` in seconds.

    Returns:
        The seconds; 0 for a text that is not a duration.
    """
    match = _DURATION.fullmatch(duration.strip())
    numbers = [float(n or 0) for n in match.groups()] if match else []
    return sum(n * unit for n, unit in zip(numbers, (86400, 3600, 60, 1), strict=False))


def without_credentials(text: str) -> str:
    """Return the text with `***` for the users and passwords of its URLs.

    A password may contain any character except white space; servers also accept a token alone.
    """
    return re.sub(r"://[^/\s:@]*(:\S*)?@", "://***@", text)
