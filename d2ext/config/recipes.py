"""Find, load, list and copy d2ext's recipes by their names, wherever d2ext is installed."""

import ast
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from d2ext.config.load import RECIPES, execute_config, load_config
from d2ext.config.overrides import apply_overrides
from d2ext.errors import UserError
from d2ext.invocation import command
from d2ext.text import closest, did_you_mean

_COMMON = "common"  # folder of the files that recipes import


def get_config(name: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Load a recipe of d2ext by its name, like Detectron2's `model_zoo.get_config`.

    Each call executes the files again, so that configs do not share objects.

    Args:
        name: Path in the recipes' folder, such as `custom/mask_rcnn_lite0_fpn.py`, as printed by
            `d2ext recipes`.
        overrides: `key=value` strings; see `apply_overrides`.

    Returns:
        The config of a recipe, as returned by `load_config`. For a file in `common/`, a DictConfig
        of its variables, such as `train` of `common/train.py`.

    Raises:
        UserError: The recipe does not exist, or an override is invalid.

    Examples:
        >>> import d2ext
        >>> cfg = d2ext.get_config("mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py", ["optimizer.lr=0.01"])
        >>> cfg.optimizer.lr
        0.01
        >>> d2ext.get_config("common/train.py").train.warmup_iters
        500
    """
    path = recipe_path(name)
    if not _is_part(path):
        return load_config(path, overrides)
    parts = execute_config(path)
    apply_overrides(parts, overrides)
    return parts


def recipe_path(name: str | Path, parts: bool = True) -> Path:
    """Return the path of a recipe or of a file in `common/`.

    Args:
        name: Name of the recipe.
        parts: Whether files in `common/`, which are parts of recipes, count.

    Raises:
        UserError: The file does not exist.
    """
    path = _recipe(name)
    if path and (parts or not _is_part(path)):
        return path
    files = (path for path in RECIPES.rglob("*.py") if parts or not _is_part(path))
    known = [path.relative_to(RECIPES).as_posix() for path in files]
    hint = did_you_mean(_normal(name), known, f"`{command('recipes')}` lists them")
    raise UserError(f"there is no recipe {str(name)!r}; {hint}")


def recipes() -> Iterator[tuple[str, str]]:
    """Yield the name of each recipe and the first line of its docstring."""
    for path in sorted(RECIPES.glob("*/*.py")):
        if not _is_part(path):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            yield path.relative_to(RECIPES).as_posix(), text.partition("\n")[0]


def find_config(name: str | Path) -> str:
    """Return the path of the config file that a command-line argument selects.

    Args:
        name: A file, a run directory (for its config.yaml), or the name of a recipe, with or
            without `.py` and a leading `configs/`. An existing file takes precedence.

    Raises:
        UserError: The config does not exist.
    """
    path = Path(name)
    for file in (path, path / "config.yaml"):
        if os.path.isfile(file):  # unlike pathlib's, false for a name that is too long
            return str(file)
    if recipe := _recipe(name):
        return str(recipe)
    if os.path.isdir(path):
        raise UserError(
            f"the config {path} is a folder without a config.yaml; give a .py or .yaml file, or"
            " a run directory"
        )
    beside = [p.name for p in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    near = closest(path.name, beside)
    near = str(path.parent / near) if near else closest(_normal(name), dict(recipes()))
    hint = f"did you mean {near}?" if near else f"`{command('recipes')}` lists the recipes"
    raise UserError(
        f"the config file {path} does not exist, and there is no recipe with this name; {hint}"
    )


def copy_recipe(name: str, destination: str | Path) -> Path:
    """Copy a recipe to a self-contained config file.

    Relative imports become calls of `d2ext.get_config`, and the commands in the docstring name the
    new file; the rest of the text is not changed.

    Args:
        name: Name of the recipe.
        destination: File to write, or a folder, in which the copy keeps the recipe's file name.

    Returns:
        The path of the new file.

    Raises:
        UserError: The recipe does not exist, or the new file already exists or cannot be written.
    """
    source, given = recipe_path(name), str(destination)
    destination = Path(given)
    if destination.is_dir():
        destination /= source.name
    elif given.endswith("/"):
        raise UserError(f"the folder {given} does not exist; create it, or give a .py file")
    if destination.suffix != ".py":
        raise UserError(f"{destination} is not a config file; give a name that ends with .py")
    own_name = shlex.quote(str(destination))
    text = _copied(source, own_name.replace("\\", r"\\").replace('"""', r"\"\"\""))
    try:
        with open(destination, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{destination} already exists; give another file name") from None
    except OSError as e:
        raise UserError(f"cannot write {destination}: {e.strerror}") from e
    return destination


def _recipe(name: str | Path) -> Path | None:
    path = RECIPES / _normal(name)
    inside = path.is_relative_to(RECIPES) and ".." not in path.parts
    return path if inside and os.path.isfile(path) else None


def _is_part(path: Path) -> bool:
    """Return whether a file is in `common/`."""
    return path.relative_to(RECIPES).parts[0] == _COMMON


def _normal(name: str | Path) -> str:
    return f"{str(name).removeprefix('./').removeprefix('configs/').removesuffix('.py')}.py"


def _copied(source: Path, own_name: str) -> str:
    """Return the text of a recipe, changed for use in another folder.

    Args:
        source: Path of the recipe.
        own_name: Name of the copy in a shell's command, escaped for a docstring.
    """
    text = source.read_text(encoding="utf-8")
    body = ast.parse(text).body
    lines = text.splitlines(keepends=True)
    imports = [node for node in body if isinstance(node, ast.ImportFrom) and node.level]
    for node in reversed(imports):
        lines[node.lineno - 1 : node.end_lineno] = _calls(source, node)
    if imports:
        lines.insert(imports[0].lineno - 1, "import d2ext\n\n")
    name = source.relative_to(RECIPES).as_posix()
    for i in range(body[0].end_lineno or 0):  # the docstring
        lines[i] = lines[i].replace(name, own_name)
    return "".join(lines)


def _calls(source: Path, node: ast.ImportFrom) -> list[str]:
    """Return lines with calls of `d2ext.get_config` that replace a relative import."""
    parts = (node.module or "").split(".")
    file = source.parents[node.level - 1].joinpath(*parts).with_suffix(".py")
    call = f'd2ext.get_config("{file.relative_to(RECIPES).as_posix()}")'
    names = [(alias.asname or alias.name, alias.name) for alias in node.names]
    if len(names) == 1:
        return [f"{names[0][0]} = {call}.{names[0][1]}\n"]
    variable = f"_{file.stem}"  # call it once, because each call loads the file again
    return [f"{variable} = {call}\n", *(f"{mine} = {variable}.{name}\n" for mine, name in names)]
