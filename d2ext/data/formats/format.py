"""Describe annotation formats and keep a registry of them.

`registry.py` registers d2ext's own formats; installed packages add theirs with an entry point.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

from d2ext.data.formats.file_head import FileHead
from d2ext.errors import UserError, format_exception

logger = logging.getLogger(__name__)

Records = tuple[Sequence[dict], Sequence[str]]  # dataset dicts and class names

GROUP = "d2ext.formats"  # group of entry points, each of which refers to a Format
# Arguments of `d2ext convert` that exist for every format.
_ARGUMENTS = {"classes", "format", "help", "images", "input", "output", "seed", "val"}


@dataclass(frozen=True)
class ReadOption:
    """A flag of `d2ext convert` that sets a keyword argument of a format's `read`.

    Attributes:
        flag: Name of the flag, such as `--split`.
        help: Phrase for `--help`.
    """

    flag: str
    help: str


@dataclass(frozen=True)
class Format:
    """An annotation format.

    Attributes:
        name: Name of the format on command lines and in messages.
        title: Name of the format in the documentation, with the kind of file that training reads.
        detect: Function that returns whether a file has this format, given its `FileHead`.
        read: Function that reads annotations. It takes the source, the folder of the images, the
            class names (None for those of the source), and `options` as keyword arguments. It
            returns Detectron2 dataset dicts (boxes XYXY_ABS or XYWH_ABS in pixels, values of JSON
            types) and class names by `category_id`. It raises a UserError for a damaged file.
        advice: Text that completes "FILE is ..." if a command does not read this format. {file} and
            {folder} are replaced by the file and its folder, {convert} by `d2ext convert`. By
            default, the text names the format and the command that reads it.
        source: Title and input for the help of `d2ext convert`; empty if the format is not
            converted.
        options: Additional keyword arguments of `read`.
        in_training: Whether training reads such a file directly; the source must be one file.
        dataset: Dotted path of the function that declares such a dataset, if it needs more than
            `read`. The function takes the arguments of `coco_dataset` and `options`. With given
            `classes`, it raises no errors until the annotations are loaded.
        write: Writers of `d2ext convert`, by the name of the output format. A writer takes dataset
            dicts, class names, the path to write, and the folder of the images or None; it returns
            counts to print, by their labels.

    Examples:
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
        what: Short description of such a file.
        name: Name of the format.
        source: Input of the command.
    """
    return f"{what}; convert it with `{{convert}} {name} {source} --images DIR --output coco.json`"


def read_as_it_is(what: str) -> str:
    """Return the `advice` for a format that training reads and no command converts."""
    return f"{what}, which training reads directly (data.train.json=FILE)"


def advice_of(form: Format) -> str:
    """Return a format's `advice`, or the default."""
    title = form.title.replace("{", "{{").replace("}", "}}")
    what = f"an annotation file in the format {title}"
    if form.advice or not (form.source or form.in_training):
        return form.advice or what
    return convert_advice(what, form.name) if form.source else read_as_it_is(what)


_formats: dict[str, Format] = {}  # by name
_packages_loaded = False


def register_format(format: Format) -> None:
    """Register a format in this process; registering it again has no effect.

    Packages should use an entry point of the group `d2ext.formats` instead, which registers the
    format in every process.

    Args:
        format: Format to register. Its name and the names in `write` must not be in use.

    Raises:
        UserError: A name is in use, or `format` is not a valid `Format`.

    Examples:
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
            f"the format name {format.name!r} is used by {_formats[format.name].title}; give the"
            " format another name"
        )
    written = {name for form in _formats.values() for name in form.write}
    if taken := written & format.write.keys():
        raise UserError(
            f"the format {format.name!r} writes {min(taken)!r}, like another format; give it"
            " another name in `write`"
        )
    flags = {option.flag.lstrip("-") for option in format.options.values()}
    if taken := _ARGUMENTS & (flags | format.options.keys()):
        raise UserError(
            f"the format {format.name!r} has the option {min(taken)!r}, which every format has;"
            " give the option another name"
        )
    _formats[format.name] = format


def formats() -> dict[str, Format]:
    """Return all formats by name: d2ext's own, those of installed packages and registered ones.

    The first call imports the formats of packages. A format that fails is skipped with a warning.
    """
    global _packages_loaded
    if not _packages_loaded:
        _packages_loaded = True  # before the loop: a package may call this function
        for entry in sorted(entry_points(group=GROUP)):  # the same order everywhere
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
    """Return the first of the candidates that recognizes a file, or None.

    Formats whose `detect` fails are skipped with a warning.
    """
    for form in candidates:
        try:
            if form.detect(head):
                return form
        except Exception as e:  # third-party code
            logger.warning("The format %r cannot detect files: %s", form.name, format_exception(e))
    return None
