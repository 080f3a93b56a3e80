"""What d2ext knows of an annotation format; `registry.py` lists the formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Records = tuple[Sequence[dict], Sequence[str]]  # dataset dicts and class names


@dataclass(frozen=True)
class FileHead:
    """What a file holds, as far as formats are told apart by it.

    Attributes:
        suffix: in lower case, with its dot.
        root: the first element of an XML file; empty for another file.
        is_video: whether an XML file holds tracks.
        columns: the names in the first line of a CSV.
        value: the value of a JSON file; the lists and objects in a large file's may be empty.
    """

    suffix: str = ""
    root: str = ""
    is_video: bool = False
    columns: frozenset[str] = frozenset()
    value: Any = None


@dataclass(frozen=True)
class ReadOption:
    """A keyword of a format's `read`, as convert_dataset.py takes it."""

    flag: str
    help: str


@dataclass(frozen=True)
class Format:
    """An annotation format.

    Attributes:
        name: its name on command lines and in messages.
        title: its name in documents, and what such files hold where training reads them.
        advice: what a command says of such a file that it does not read: the end of a sentence that
            begins with "FILE is". {file} and {folder} stand for the file and its folder.
        detect: returns whether a file is of this format.
        read: reads annotations from a source, the folder of the images, class names (None takes
            those of the source), and `options` by keyword.
        source: the title and the input of convert_dataset.py, for its help; empty for a format that
            is not converted.
        options: further keywords of `read`.
        dataset: dotted path of the function by which a config declares a dataset of this format;
            empty for a format that training does not read. It takes the arguments of `coco_dataset`
            and `options`.
        write: what convert_dataset.py writes, by the name of each form. A writer takes dataset
            dicts, class names, the path to write and the folder of the images or None; it returns
            counts to print, by what they count.
    """

    name: str
    title: str
    advice: str
    detect: Callable[[FileHead], bool]
    read: Callable[..., Records]
    source: str = ""
    options: Mapping[str, ReadOption] = field(default_factory=dict)
    dataset: str = ""
    write: Mapping[str, Callable[..., Mapping[str, int]]] = field(default_factory=dict)


def convert_advice(what: str, name: str, source: str = "{file}") -> str:
    """Return the `advice` for a format that convert_dataset.py reads.

    Args:
        what: what such a file is.
        name: the format's.
        source: the input of the command.
    """
    command = f"python tools/convert_dataset.py {name} {source} --images DIR --output coco.json"
    return f"{what}; convert it with `{command}`"


def read_as_it_is(what: str) -> str:
    """Return the `advice` for a format that training reads and nothing converts."""
    return f"{what}, which is read as it is (data.train.json=FILE)"
