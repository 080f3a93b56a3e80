"""Read the warnings in log.txt."""

import re
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) ([WEC]) (\S+): (.*)")
_LEVELS = {"W": "warning", "E": "error", "C": "error"}
_MAX_SHOWN = 50


@dataclass
class Warned:
    """A warning or an error: its text, how often it was logged, and when last."""

    level: str
    text: str
    count: int
    last: str


def read_warnings(log: Path) -> list[Warned]:
    """Return the 50 most recent distinct warnings, ordered by last occurrence; [] without a log."""
    found: dict[tuple[str, str], Warned] = {}
    try:
        with open(log, encoding="utf-8", errors="replace") as f:
            for line in f:
                if match := _LINE.match(line):
                    time, letter, _, text = match.groups()
                    level = _LEVELS[letter]
                    before = found.pop((level, text), None)  # reinserted last below
                    count = before.count + 1 if before else 1
                    found[level, text] = Warned(level, text, count, time)
    except OSError:
        return []
    return list(found.values())[-_MAX_SHOWN:]
