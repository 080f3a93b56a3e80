"""The house rules that a machine can check: what imports what, and what starts at once."""

import ast
import importlib
import subprocess
import sys

import pytest

from tests.conftest import REPO, checkout_env

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
    ["slurm", "doctor"],
]
COMMON = {"_compat", "errors", "files", "guard", "html", "limits", "terminal", "text", "waiting"}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize(
    ("floor", "package"), [(i, name) for i, names in enumerate(FLOORS) for name in names]
)
def test_imports_run_downward(repo, floor, package):
    files = list((repo / "d2ext" / package).rglob("*.py"))
    assert files
    below = {name for names in FLOORS[:floor] for name in names}
    for file in files:
        for name in _imports(file):
            parts = name.split(".")
            if parts[0] == "configs":
                pytest.fail(f"{file} imports configs")
            if parts[0] == "d2ext" and len(parts) > 1:
                assert parts[1] in {package} | below | COMMON, f"{file} imports {name}"


def test_every_package_has_a_floor(repo):
    packages = {file.parent.name for file in (repo / "d2ext").glob("*/__init__.py")}
    assert packages == {name for names in FLOORS for name in names}


@pytest.mark.parametrize(
    "module",
    [
        "d2ext",
        "d2ext.config.load",
        "d2ext.config.schedule",
        "d2ext.config.yaml_io",
        "d2ext.data.formats.via",
        "d2ext.data.formats.coco",
        "d2ext.data.formats.coco_file",
        "d2ext.data.formats.middle",
        "d2ext.data.formats.detect_format",
        "d2ext.data.formats.registry",
        "d2ext.data.datasets.classes",
        "d2ext.data.records.cache",
        "d2ext.data.convert",
        "d2ext.data.validation.dataset_dicts",
        "d2ext.data.validation.coco.checks.all_checks",
        "d2ext.data.validation.coco.check_file",
        "d2ext.data.validation.coco.findings_page",
        "d2ext.data.prepare.balloon",
        "d2ext.data.prepare.cityscapes",
        "d2ext.data.prepare.coco2017",
        "d2ext.evaluation.analysis",
        "d2ext.evaluation.average_precision",
        "d2ext.evaluation.cityscapes",
        "d2ext.evaluation.coco",
        "d2ext.evaluation.instances",
        "d2ext.evaluation.lvis",
        "d2ext.evaluation.offline",
        "d2ext.evaluation.open_images",
        "d2ext.evaluation.voc",
        "d2ext.report",
        "d2ext.slurm.job",
        "d2ext.slurm.submit",
        "d2ext.slurm.status",
    ],
)
def test_these_start_at_once(module):
    code = f"import sys, {module}; assert not {{'torch', 'detectron2', 'cv2'}} & set(sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=checkout_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("tool", sorted((REPO / "tools").glob("*.py")), ids=lambda tool: tool.stem)
def test_help_needs_no_torch(tool):
    command = [sys.executable, "-X", "importtime", tool, "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "detectron2", "cv2"}


def test_tools_are_thin(repo):
    for tool in (repo / "tools").glob("*.py"):
        assert len(tool.read_text().splitlines()) <= 140, tool


def test_benchmarks_import_what_there_is(repo):
    """No test runs them, so a name that has moved would be found only when one is wanted."""
    for file in (repo / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("d2ext"):
                module = importlib.import_module(node.module)
                missing = [n.name for n in node.names if not hasattr(module, n.name)]
                assert not missing, f"{file.name}: {node.module} has no {missing}"


def test_commands_of_tests_do_not_run_in_the_checkout(repo):
    """They would meet the runs and datasets of its user."""
    for file in (repo / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                places = [k.value for k in node.keywords if k.arg == "cwd"]
                if getattr(node.func, "attr", "") == "chdir":
                    places += node.args
                assert "repo" not in {ast.unparse(place).lower() for place in places}, file
