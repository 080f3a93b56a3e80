"""Which attribute of VIA's regions holds their class: told, or found in the file."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from d2ext.data.formats.json_io import is_text, nearest, truncate_repr
from d2ext.data.formats.via_file import Region
from d2ext.errors import UserError

# What people call the attribute that holds the class, the first ones before the last ones.
_USUAL = (
    "name label class class_name classname category category_name type object object_name species"
    " class_id classid label_id category_id"
).split()


def class_of(region: Region, attribute: str) -> str | None:
    """Return the class that an attribute of a region holds; None for an empty one.

    Text is taken without blanks around it, numbers as they are written. VIA's checkboxes hold an
    object: the one option that is true.

    Raises:
        UserError: several options are true, or it is a list or no text.
    """
    value = region.attributes.get(attribute)
    if isinstance(value, dict):
        value = [option for option, on in value.items() if on is True or on in ("true", 1)]
        value = value[0] if len(value) == 1 else value or None
    if isinstance(value, str) and is_text(value):
        return value.strip() or None
    if value is None:
        return None
    if isinstance(value, bool | int | float):
        return str(value)
    raise UserError(
        f"{region.where}: {attribute}={truncate_repr(value)} is not one class; correct it in"
        " VIA, or name"
        " another attribute (--class-attribute)"
    )


def find_attribute(
    regions: Sequence[Region],
    classes: Sequence[str] | None,
    attribute: str | None,
    file: str | Path,
) -> str | None:
    """Return the attribute that holds the class of the regions.

    `attribute`, where it is given. Else the candidates are all attributes that no region has
    several values of; with `classes` those that hold at least one of them. Candidates that split
    the regions in the same way count as one. Of several the one with a usual name is taken, such
    as `name` or `class`, where there is only one such. Where an attribute with a more usual name,
    or the only one, is no candidate, its region is an error.

    Returns:
        Its name; None where no attribute tells, and `classes` has one name, which all regions are
        of.

    Raises:
        UserError: it has to be told: which attribute, or which class.
    """
    columns, spoilt = _columns(regions)
    if attribute is not None:
        if regions and all(r.attributes.get(attribute) in (None, "", {}) for r in regions):
            raise UserError(
                f"{file}: no region has the attribute {attribute!r} that holds the class (they"
                f" have: {_listed([*columns, *spoilt])}); set it in VIA, or name another"
                " (--class-attribute)"
            )
        return attribute
    usual_first = sorted((name for name in spoilt if _usual([name]) or not columns), key=_rank)
    if not columns and usual_first:
        raise spoilt[usual_first[0]]
    if not columns:
        if classes is not None and (len(classes) == 1 or not regions):
            return None
        raise UserError(
            f"{file}: no region has an attribute that could hold its class; name the one class of"
            " all regions (--classes NAME; data.classes=[NAME] in configs/custom), or set the"
            " attribute in VIA"
        )
    groups = _groups(columns)
    if classes is not None:
        known = [g for g in groups if not {*columns[g[0]]}.isdisjoint(classes)]
        # Another attribute of the group may be the one that holds these names.
        known += [
            [a]
            for g in groups
            if g not in known
            for a in g[1:]
            if not {*columns[a]}.isdisjoint(classes)
        ]
        if not known:
            if usual_first:
                raise spoilt[usual_first[0]]
            if len(classes) == 1 and not any(_usual(g) for g in groups):
                return None
            raise UserError(
                f"{file}: no attribute of a region holds any of the classes"
                f" {', '.join(map(truncate_repr, classes))} ({_examples(columns)});"
                f" {_hint(columns, classes)}"
            )
        groups = known
    if len(groups) > 1:
        groups = [g for g in groups if _usual(g)] or groups
    if classes is None and usual_first and _rank(usual_first[0]) < _rank(groups[0][0]):
        raise spoilt[usual_first[0]]
    if len(groups) > 1:
        raise UserError(
            f"{file}: the class of a region could be in {_listed(g[0] for g in groups)}"
            f" ({_examples({g[0]: columns[g[0]] for g in groups})}); choose one with"
            " --class-attribute (in a config: attribute=..., in configs/custom"
            " data.class_attribute)"
        )
    return groups[0][0]


def _columns(
    regions: Sequence[Region],
) -> tuple[dict[str, list[str | None]], dict[str, UserError]]:
    """Attribute to its class of each region, without those that hold none.

    And those that hold several at once, or no text, with the error of their first such region.
    """
    names = dict.fromkeys(name for region in regions for name in region.attributes)
    columns, spoilt = {}, {}
    for name in names:
        try:
            column = [class_of(region, name) for region in regions]
        except UserError as e:
            spoilt[name] = e
            continue
        if any(column):
            columns[name] = column
    return columns, spoilt


def _groups(columns: dict[str, list[str | None]]) -> list[list[str]]:
    """Attributes that split the regions identically, the one to take first; usual names first."""
    groups: dict[tuple, list[str]] = {}
    for name in sorted(columns, key=_rank):
        numbers: dict[str | None, int] = {}
        split = tuple(numbers.setdefault(value, len(numbers)) for value in columns[name])
        groups.setdefault(split, []).append(name)
    return list(groups.values())


def _rank(name: str) -> tuple:
    lower = name.strip().lower()
    return (_USUAL.index(lower) if lower in _USUAL else len(_USUAL), name)


def _usual(group: Sequence[str]) -> bool:
    return any(name.strip().lower() in _USUAL for name in group)


def _listed(names) -> str:
    return ", ".join(map(truncate_repr, names)) or "none"


def _examples(columns: dict[str, list[str | None]]) -> str:
    """Each attribute with its most frequent values."""
    found = []
    for name, column in list(columns.items())[:5]:
        values = [truncate_repr(v) for v, _ in Counter(v for v in column if v).most_common(3)]
        found.append(f"{truncate_repr(name)}: {', '.join(values)}")
    return "; ".join(found)


def _hint(columns: dict[str, list[str | None]], classes: Sequence[str]) -> str:
    values = {v for column in columns.values() for v in column if v}
    for name in classes:
        if (hint := nearest(name, values)).startswith("did"):
            return hint
    return "correct the classes, or leave them out"
