"""Describe an annotation format; `registry.py` lists the formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from d2ext.data.formats.file_head import FileHead

Records = tuple[Sequence[dict], Sequence[str]]  # dataset dicts and class names


@dataclass(frozen=True)
class ReadOption:
    """A keyword of a format's `read`, as `d2ext convert` takes it."""

    flag: str
    help: str


@dataclass(frozen=True)
class Format:
    """An annotation format.

    Attributes:
        name: its name on command lines and in messages.
        title: its name in documents, and what such files hold where training reads them.
        advice: completes "FILE is ..." where a command does not read this format. {file} and
            {folder} stand for the file and its folder, {convert} for `d2ext convert`.
        detect: returns whether a file is of this format.
        read: reads annotations from a source, the folder of the images, class names (None takes
            those of the source), and `options` by keyword. Returns dataset dicts and class names.
        source: the title and the input of `d2ext convert`, for its help; empty for a format that
            is not converted.
        options: further keywords of `read`.
        in_training: whether training reads such a file as it is. Then the source is one file, and
            the records, whose values are JSON's, depend on nothing else: they are cached.
        dataset: dotted path of the function that declares such a dataset, if that needs more than
            `read`: it takes the arguments of `coco_dataset` and `options`. It raises no error for
            given `classes` before the annotations are loaded.
        write: what `d2ext convert` writes, by the name of each form. A writer takes dataset
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
    in_training: bool = False
    dataset: str = ""
    write: Mapping[str, Callable[..., Mapping[str, int]]] = field(default_factory=dict)


# Filled by `registry.py`, whose readers use this module as well.
FORMATS: dict[str, Format] = {}


def convert_advice(what: str, name: str, source: str = "{file}") -> str:
    """Return the `advice` for a format that `d2ext convert` reads.

    Args:
        what: a few words for such a file.
        name: name of the format.
        source: input of the command.
    """
    return f"{what}; convert it with `{{convert}} {name} {source} --images DIR --output coco.json`"


def read_as_it_is(what: str) -> str:
    """Return the `advice` for a format that training reads and nothing converts."""
    return f"{what}, which is read as it is (data.train.json=FILE)"
