"""Parts of messages that several modules write."""

import difflib
from collections.abc import Iterable, Sequence


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: `1 class`, `2 classes`, `0 images`."""
    if number == 1:
        return f"{number} {noun}"
    return f"{number} {noun}es" if noun.endswith("s") else f"{number} {noun}s"


def shortened(names: Sequence[str], most: int) -> str:
    """Return the names separated by commas, with `...` for those after the first `most`."""
    return ", ".join([*names[:most], "..."] if len(names) > most else names)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `did you mean 'NAME'?` for the known name nearest to `name`; "" if none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""
