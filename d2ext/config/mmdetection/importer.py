"""Import a config of MMDetection: write a LazyConfig, and a table of what became of each field."""

import shlex
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2ext.config.mmdetection.data import translate_data
from d2ext.config.mmdetection.draft import Draft
from d2ext.config.mmdetection.fields import Fields, Row
from d2ext.config.mmdetection.model import translate_model
from d2ext.config.mmdetection.read import read_config
from d2ext.config.mmdetection.run import translate_run, unused_variables
from d2ext.config.mmdetection.spelling import Spelling, spelled
from d2ext.errors import UserError, format_exception
from d2ext.files import atomic_write
from d2ext.invocation import command
from d2ext.text import plural

_OUTCOMES = ("set", "unused", "differs", "unknown")
_WORST = ("unknown", "differs", "set", "unused")
_MEANINGS = {
    "set": "has the same effect here",
    "unused": "has no effect here, and needs none",
    "differs": "the imported config trains or evaluates otherwise",
    "unknown": "not known to d2ext, and ignored",
}
_CELL = 80  # characters of a value in the table
# Errors of translators for values of another type than in MMDetection.
_WRONG_VALUES = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration),
    *(TypeError, ValueError),
)


@dataclass(frozen=True)
class Translation:
    """A config of MMDetection as a LazyConfig.

    Attributes:
        text: The LazyConfig.
        rows: What became of each field, by its original name.
        batch: The batch, in words.
    """

    text: str
    rows: Sequence[Row]
    batch: str

    def counts(self) -> dict[str, int]:
        """Return the number of fields by outcome."""
        counted = Counter[str](row.outcome for row in self.rows)
        return {outcome: counted[outcome] for outcome in _OUTCOMES}

    def summary(self) -> str:
        """Return the number of fields by outcome, as text."""
        counts = self.counts()
        return (
            f"{plural(len(self.rows), 'field')}: {counts['set']} set, {counts['unused']} unused,"
            f" {counts['differs']} differ, {counts['unknown']} unknown"
        )


@dataclass(frozen=True)
class Imported:
    """The files that an import wrote.

    Attributes:
        config: The LazyConfig.
        table: The table of fields, in Markdown.
        translation: What they contain.
    """

    config: Path
    table: Path
    translation: Translation

    def __str__(self) -> str:
        """Return the summary: counts, what differs, what is unknown, and the next command."""
        lines = [f"wrote {self.config} and {self.table}", self.translation.summary()]
        lines.append(
            f"batch: {self.translation.batch}; MMDetection's batch was batch_size x GPUs: for N"
            " GPUs use --auto-scale-lr"
        )
        for outcome in ("differs", "unknown"):
            rows = [row for row in self.translation.rows if row.outcome == outcome]
            if rows:
                lines += ["", f"{outcome}: {_MEANINGS[outcome]}"]
            for text, fields in _grouped(rows).items():
                lines.append(f"  {fields}: {text}" if outcome == "differs" else f"  {fields}")
        train = f"{command('train')} {shlex.quote(str(self.config))}"
        return "\n".join([*lines, "", f"train it with: {train}"])


def import_config(
    path: Path, checkpoint: str | None = None, output: Path | None = None, trust: bool = False
) -> Imported:
    """Import a config of MMDetection.

    Args:
        path: Their config, with its bases beside it.
        checkpoint: File or address of the initial weights; None takes those of the config.
        output: LazyConfig to write; None names it like `path`, in the current folder.
        trust: Whether to execute the config instead of interpreting it.

    Raises:
        UserError: The config cannot be read or built here, or a file exists already.
    """
    output = output or _default_output(path)
    if output.suffix != ".py":
        raise UserError(f"--output {output} is not a config file; give a name that ends with .py")
    table = output.with_suffix(".md")
    for file in (output, table):
        if file.exists():
            raise UserError(f"{file} already exists; give another name with --output")
    if not output.parent.is_dir():
        raise UserError(f"the folder {output.parent} of --output does not exist")
    values = read_config(path, trust)
    translation = translate(values, path, checkpoint, output.name)
    _check_loads(translation.text, output.name)
    try:
        for file, text in ((output, translation.text), (table, _table(path, translation))):
            with atomic_write(file) as opened:
                opened.write(text)
    except BaseException:  # neither without the other
        output.unlink(missing_ok=True)
        raise
    return Imported(output, table, translation)


def translate(
    values: dict[str, Any], path: Path, checkpoint: str | None = None, output: str = ""
) -> Translation:
    """Translate a config.

    Args:
        values: Result of `read_config`.
        path: The file, for texts.
        checkpoint: Initial weights; None takes those of the config.
        output: Name of the LazyConfig, for its docstring.

    Raises:
        UserError: The config cannot be built here.
    """
    if not isinstance(values.get("model"), dict):
        raise UserError(f"{path} has no section `model`; give a whole config, not a file of _base_")
    with _expected_values(path, "its spellings of MMDetection 2.x"):
        spelling = spelled(values)
    config, draft = Fields(spelling.values), Draft()
    with _expected_values(path, "the model", config):
        translate_model(config.section("model"), draft)
    with _expected_values(path, "the optimizer, schedule and hooks", config):
        batch = translate_run(config, draft, checkpoint, path)
    with _expected_values(path, "the data", config):
        translate_data(config, draft)
    unused_variables(config, values)
    text = draft.text(_docstring(path, output or path.name))
    return Translation(text, _original(config.outcomes(), spelling), batch)


@contextmanager
def _expected_values(path: Path, section: str, config: Fields | None = None) -> Iterator[None]:
    """Turn errors of translators, which rely on the types in MMDetection, into UserErrors."""
    recent: Sequence[str] = config.recent if config is not None else ()
    try:
        yield
    except _WRONG_VALUES as e:
        fields = f"; the last fields read were {', '.join(recent)}" if recent else ""
        raise UserError(
            f"{path}: cannot translate {section}: a value is not what MMDetection expects"
            f" ({format_exception(e)}){fields}"
        ) from e


def _original(rows: Sequence[Row], spelling: Spelling) -> list[Row]:
    """Return rows with the original names and values of their fields, without added fields.

    A field of 2.x that became several has the worst of their outcomes.
    """
    found: dict[str, Row] = {}
    for row in rows:
        name, value = spelling.written(spelling.original(row.field))
        known = found.get(name)
        worse = known is None or _WORST.index(row.outcome) < _WORST.index(known.outcome)
        if name and worse:
            found[name] = Row(name, value, row.outcome, row.became)
    for old, (outcome, text) in spelling.done.items():
        name, value = spelling.written(old)
        if name == old:
            found.setdefault(name, Row(name, value, outcome, text))
    return Fields(spelling.given, rows=found).outcomes()


def _default_output(path: Path) -> Path:
    output = Path(f"{path.stem.replace('-', '_')}.py")
    if output.resolve() == path.resolve():
        output = Path(f"{output.stem}_d2ext.py")
    return output


def _check_loads(text: str, name: str) -> None:
    """Load a config from a temporary file."""
    from d2ext.config.load import load_config

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(text, encoding="utf-8")
        load_config(file)


def _docstring(path: Path, output: str) -> str:
    """Return the docstring of the config, as the recipes have it."""
    table = Path(output).with_suffix(".md")
    return (
        f"{path.name} of MMDetection.\n\n    CONFIG={shlex.quote(output)}\n"
        '    d2ext train "$CONFIG" --num-gpus 8\n'
        '    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU\n'
        '    d2ext train "$CONFIG" --eval-only --weights last\n\n'
        f"{textwrap.fill(f'Written by `d2ext import-mmdet`; {table} lists its fields.', 100)}\n"
    )


def _table(path: Path, translation: Translation) -> str:
    """Return the table in Markdown."""
    lines = [f"# {path.name}, imported", "", f"{translation.summary()}.", ""]
    lines += [f"- {outcome}: {_MEANINGS[outcome]}" for outcome in _OUTCOMES]
    lines += ["", "| field | value | outcome | here |", "| --- | --- | --- | --- |"]
    for row in translation.rows:
        cells = (f"`{row.field}`", f"`{_shortened(repr(row.value))}`", row.outcome, row.became)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _grouped(rows: Sequence[Row]) -> dict[str, str]:
    """Return the names of the fields by text; each field that shares its text only once."""
    grouped: dict[str, list[str]] = {}
    for row in rows:
        key = row.became if row.outcome == "differs" else row.field
        grouped.setdefault(key, []).append(row.field)
    return {text: _common(names) for text, names in grouped.items()}


def _common(names: Sequence[str]) -> str:
    """Return names that share a section as `section.{a, b}`, and the number of further ones."""
    first, *others = names
    section = first.rpartition(".")[0]
    beside = [name for name in names if name.rpartition(".")[0] == section]
    if len(beside) > 1:
        first = f"{section}.{{{', '.join(name.rpartition('.')[2] for name in beside)}}}"
    more = len(names) - len(beside)
    return f"{first} and {more} more" if more else first


def _shortened(text: str) -> str:
    return text if len(text) <= _CELL else f"{text[: _CELL - 3]}..."
