"""Describe an annotation format, and hold those that this process knows.

`registry.py` registers d2ext's own formats, and installed packages add theirs by an entry point.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

from d2ext.data.formats.file_head import FileHead
from d2ext.errors import UserError, format_exception

logger = logging.getLogger(__name__)

Records = tuple[Sequence[dict], Sequence[str]]  # dataset dicts and class names

GROUP = "d2ext.formats"  # of entry points, each of which names a Format
# Arguments of `d2ext convert` that every format has.
_ARGUMENTS = {"classes", "format", "help", "images", "input", "output"}


@dataclass(frozen=True)
class ReadOption:
    """A keyword of a format's `read`, as `d2ext convert` takes it.

    Attributes:
        flag: for example `--split`.
        help: a phrase for `--help`.
    """

    flag: str
    help: str


@dataclass(frozen=True)
class Format:
    """An annotation format.

    Attributes:
        name: its name on command lines and in messages.
        title: its name in documents, and what such files hold where training reads them.
        detect: returns whether a file is of this format, from its `FileHead`.
        read: reads annotations from a source, the folder of the images, class names (None takes
            those of the source), and `options` by keyword. Returns Detectron2's dataset dicts
            (boxes XYXY_ABS or XYWH_ABS in pixels, values those of JSON) and class names, by
            `category_id`. Raises UserError for a file that is damaged.
        advice: completes "FILE is ..." where a command does not read this format. {file} and
            {folder} stand for the file and its folder, {convert} for `d2ext convert`. The default
            names the format and what reads it.
        source: the title and the input of `d2ext convert`, for its help; empty for a format that
            is not converted.
        options: further keywords of `read`.
        in_training: whether training reads such a file as it is. Then the source is one file.
        dataset: dotted path of the function that declares such a dataset, if that needs more than
            `read`: it takes the arguments of `coco_dataset` and `options`. It raises no error for
            given `classes` before the annotations are loaded.
        write: what `d2ext convert` writes, by the name of each form. A writer takes dataset
            dicts, class names, the path to write and the folder of the images or None; it returns
            counts to print, by what they count.

    Example:
        >>> import d2ext
        >>> def read(source, image_root, classes=None):
        ...     box = {"bbox": [20, 10, 60, 70], "bbox_mode": 0, "category_id": 0}
        ...     image = {"file_name": f"{image_root}/photo.jpg", "image_id": 1}
        ...     image |= {"height": 120, "width": 160, "annotations": [box]}
        ...     return [image], classes or ["balloon"]
        >>> boxes = d2ext.Format(
        ...     name="boxes",
        ...     title="Boxes (# boxes)",
        ...     detect=lambda head: head.first_line.startswith("# boxes"),
        ...     read=read,
        ...     source="Boxes: the text file",
        ...     in_training=True,
        ... )
        >>> len(boxes.read("boxes.txt", "photos")[0])
        1
    """

    name: str
    title: str
    detect: Callable[[FileHead], bool]
    read: Callable[..., Records]
    advice: str = ""
    source: str = ""
    options: Mapping[str, ReadOption] = field(default_factory=dict)
    in_training: bool = False
    dataset: str = ""
    write: Mapping[str, Callable[..., Mapping[str, int]]] = field(default_factory=dict)


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


def advice_of(form: Format) -> str:
    """Return a format's `advice`, or the default."""
    title = form.title.replace("{", "{{").replace("}", "}}")
    what = f"an annotation file of the format {title}"
    if form.advice or not (form.source or form.in_training):
        return form.advice or what
    return convert_advice(what, form.name) if form.source else read_as_it_is(what)


_formats: dict[str, Format] = {}  # by name
_pending = [GROUP]  # groups of entry points that are still to be loaded


def register_format(format: Format) -> None:
    """Make a format known to this process; registering it again does nothing.

    A package registers its format in every process with an entry point of the group
    `d2ext.formats` instead.

    Args:
        format: the format. Its name and the names in `write` must be free.

    Raises:
        UserError: a name is taken, or `format` is not a usable `Format`.

    Example:
        >>> import d2ext
        >>> boxes = d2ext.Format(
        ...     name="boxes",
        ...     title="Boxes (# boxes)",
        ...     detect=lambda head: head.first_line.startswith("# boxes"),
        ...     read=lambda source, image_root, classes=None: ([], classes or []),
        ... )
        >>> d2ext.register_format(boxes)
    """
    if not isinstance(format, Format):
        raise UserError(f"{format!r} is not a d2ext.Format; register an object of that class")
    if _formats.get(format.name) == format:
        return
    if format.name in _formats:
        raise UserError(
            f"the name of the format {format.name!r} is taken by {_formats[format.name].title};"
            " give it another name"
        )
    written = {name for form in _formats.values() for name in form.write}
    if taken := written & format.write.keys():
        raise UserError(
            f"the format {format.name!r} writes {min(taken)!r}, which another format writes; give"
            " it another name in `write`"
        )
    flags = {option.flag.lstrip("-") for option in format.options.values()}
    if taken := _ARGUMENTS & (flags | format.options.keys()):
        raise UserError(
            f"the format {format.name!r} has the option {min(taken)!r}, which every format has;"
            " give it another name"
        )
    _formats[format.name] = format


def formats() -> dict[str, Format]:
    """Return all formats by name: d2ext's own, those of installed packages and registered ones.

    The first call imports the formats of packages. One that fails is left out with a warning.
    """
    while _pending:
        for entry in sorted(entry_points(group=_pending.pop())):  # the same order everywhere
            _load(entry)
    return _formats


def _load(entry: EntryPoint) -> None:
    try:
        register_format(entry.load())
    except Exception as e:  # importing a module runs its code
        reason = str(e) if isinstance(e, UserError) else format_exception(e)
        logger.warning(
            "The format %r of the installed package %s %s is ignored (entry point %s = %s): %s",
            entry.name,
            *((entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")),
            GROUP,
            entry.value,
            reason,
        )


def matching(head: FileHead, candidates: Iterable[Format]) -> Format | None:
    """Return the first of these formats that detects a file as its own.

    One whose `detect` fails is passed over with a warning.
    """
    for form in candidates:
        try:
            if form.detect(head):
                return form
        except Exception as e:  # a package's code
            logger.warning("The format %r cannot detect files: %s", form.name, format_exception(e))
    return None
