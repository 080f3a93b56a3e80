"""Check the house rules: imports between packages, private API, and fast starts."""

import ast
import importlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from d2ext.cli import COMMANDS
from d2ext.invocation import TOOLS
from tests.conftest import checkout_env

# Imports run downward only (docs/architecture.md). Packages of one floor do not import each other.
FLOORS = [
    ["config"],
    ["modeling"],
    ["data"],
    ["evaluation", "run_dir", "visualize"],
    ["report"],
    ["launch", "checkpoint"],
    ["preflight"],
    ["engine"],
    ["predict", "inspect"],
    ["export"],
    ["slurm", "doctor"],
    ["cli"],
]
COMMON = {
    *("_compat", "environment", "errors", "files", "guard", "heap", "html", "invocation"),
    *("limits", "plain_pickle", "seeding", "terminal", "text", "waiting"),
}


# Modules outside _compat.py that use a private name of another library, with that name.
PRIVATE_API = {
    ("doctor/probe.py", "detectron2._C"),
    ("slurm/local.py", "LocalExecutor._submit_command"),  # overridden
}
# Folders and files whose modules do not import HEAVY libraries, and the exceptions.
HEAVY = {"torch", "detectron2", "cv2"}
LIGHT = [
    *("__init__.py", "__main__.py", "cli", "config", "data/convert.py", "data/datasets"),
    *("data/fitting", "data/formats", "data/prepare", "data/records", "data/splitting"),
    *("data/tiles", "data/validation"),
    *("doctor", "evaluation", "report", "run_dir", "slurm"),
]
NOT_LIGHT = {
    "d2ext.data.datasets.class_mapping",
    "d2ext.data.datasets.mixing",
    "d2ext.data.datasets.proposals",
    "d2ext.evaluation.evaluators",
    "d2ext.evaluation.predictions",
    "d2ext.evaluation.roi_masks",
    "d2ext.evaluation.suite",
    "d2ext.evaluation.tta",
    "d2ext.evaluation.validation_loss",
}


def _imports(path):
    """Yield the modules of d2ext and the other libraries that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "d2ext":
                yield from (f"d2ext.{a.name}" for a in node.names if a.name != "__version__")
            else:
                yield node.module


def _check_imports(path, allowed):
    for name in _imports(path):
        parts = name.split(".")
        assert parts[0] != "configs", f"{path} imports configs"
        if parts[0] == "d2ext":
            assert parts[1:2] and parts[1] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize(
    ("floor", "package"), [(i, name) for i, names in enumerate(FLOORS) for name in names]
)
def test_imports_run_downward(repo, floor, package):
    files = list((repo / "d2ext" / package).rglob("*.py"))
    assert files
    below = {name for names in FLOORS[:floor] for name in names}
    for file in files:
        _check_imports(file, {package} | below | COMMON)


def test_common_modules_import_only_each_other(repo):
    for name in COMMON:
        _check_imports(repo / "d2ext" / f"{name}.py", COMMON)


def test_every_module_has_a_floor(repo):
    packages = {file.parent.name for file in (repo / "d2ext").glob("*/__init__.py")}
    assert packages == {name for names in FLOORS for name in names}
    modules = {file.stem for file in (repo / "d2ext").glob("*.py")}
    assert modules == COMMON | {"__init__", "__main__"}


def test_no_folder_is_crowded(repo):
    """A folder with more files has several subjects."""
    sizes = Counter(file.parent.relative_to(repo) for file in (repo / "d2ext").rglob("*.py"))
    assert {str(folder): n for folder, n in sizes.items() if n > 25} == {}
    assert sizes[Path("d2ext/engine")] <= 18


@pytest.mark.parametrize("place", LIGHT)
def test_light_modules_do_not_import_heavy_libraries(repo, place):
    found = repo / "d2ext" / place
    files = sorted(found.rglob("*.py")) if found.is_dir() else [found]
    parts = [file.relative_to(repo).with_suffix("").parts for file in files]
    modules = {".".join(p).removesuffix(".__init__") for p in parts} - NOT_LIGHT
    assert modules
    code = (
        "import importlib, sys\n"
        f"for module in {sorted(modules)}:\n"
        "    importlib.import_module(module)\n"
        f"    assert not {HEAVY} & set(sys.modules), module\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=checkout_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_modules_that_are_not_light_exist(repo):
    for module in NOT_LIGHT:
        assert (repo / f"{module.replace('.', '/')}.py").is_file(), module


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def _private_names(path):
    """Yield the private names that a file uses but does not define.

    Names of `self` and `cls` do not count, nor does `os._exit`, which is documented.
    """
    tree = ast.parse(path.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            owner = ast.unparse(node.value)
            mine = node.attr in own and not owner.startswith("super()")
            if owner not in ("self", "cls") and not mine and (owner, node.attr) != ("os", "_exit"):
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = [node.module] if isinstance(node, ast.ImportFrom) else []
            for alias in node.names:
                name = ".".join([*module, alias.name])
                shared = name.startswith("d2ext._compat")
                if any(map(_is_private, name.split("."))) and not shared:
                    yield name
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            name = getattr(node.args[1], "value", "")
            if isinstance(name, str) and _is_private(name):
                yield f"{ast.unparse(node.args[0])}.{name}"


def test_private_api_is_used_in_one_place(repo):
    """An override does not use the name, so slurm/local.py is identified by its method."""
    found = set()
    for file in (repo / "d2ext").rglob("*.py"):
        if file.name != "_compat.py":
            place = file.relative_to(repo / "d2ext").as_posix()
            found |= {(place, name) for name in _private_names(file)}
    overridden = ("slurm/local.py", "LocalExecutor._submit_command")
    assert "def _submit_command(" in (repo / "d2ext" / overridden[0]).read_text()
    assert found | {overridden} == PRIVATE_API
    described = ast.get_docstring(ast.parse((repo / "d2ext/_compat.py").read_text()))
    for _, name in PRIVATE_API:
        assert name.rpartition(".")[2] in described, name


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_needs_no_torch(name):
    command = [sys.executable, "-X", "importtime", "-m", "d2ext", *filter(None, [name]), "--help"]
    done = subprocess.run(command, env=checkout_env(), capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "d2ext.cli" in imported and not imported & HEAVY


def test_tools_are_thin(repo):
    """A tool only runs a command of `d2ext`: a few lines without functions or classes."""
    tools = {tool.name: tool.read_text() for tool in (repo / "tools").glob("*.py")}
    assert tools.keys() == set(TOOLS.values())
    for name, file in TOOLS.items():
        nodes = [type(node) for node in ast.walk(ast.parse(tools[file]))]
        assert not {ast.FunctionDef, ast.ClassDef, ast.Lambda} & set(nodes), file
        assert len(tools[file].splitlines()) <= 15 and f'main(["{name}", *' in tools[file]


def test_commands_are_thin(repo):
    """A command has `parse`, `run` and helpers, but no classes."""
    names = {file.stem for file in (repo / "d2ext/cli").glob("*.py")}
    assert names == {"__init__", "arguments", *(name.replace("-", "_") for name in COMMANDS)}
    for name in COMMANDS:
        tree = ast.parse((repo / f"d2ext/cli/{name.replace('-', '_')}.py").read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)], name
        assert {"parse", "run"} <= {getattr(node, "name", "") for node in tree.body}, name


def test_imports_of_benchmarks_exist(repo):
    """No test runs the benchmarks, so a moved name would be noticed only in use."""
    for file in (repo / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("d2ext"):
                module = importlib.import_module(node.module)
                missing = [n.name for n in node.names if not hasattr(module, n.name)]
                assert not missing, f"{file.name}: {node.module} has no {missing}"


def test_commands_of_tests_do_not_run_in_the_checkout(repo):
    """In the checkout, they could use the developer's runs and datasets."""
    for file in (repo / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                places = [k.value for k in node.keywords if k.arg == "cwd"]
                if getattr(node.func, "attr", "") == "chdir":
                    places += node.args
                assert "repo" not in {ast.unparse(place).lower() for place in places}, file
