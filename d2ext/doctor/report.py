"""Check whether this installation can train: versions, GPUs, operators, and a real step.

torch and Detectron2 are imported only in a child process (probe.py), because a broken build can
kill the process that imports it.
"""

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from d2ext import __version__
from d2ext.data.prepare.balloon import PHOTOS
from d2ext.doctor.probe import MARK
from d2ext.errors import INSTALL_DETECTRON2
from d2ext.invocation import command
from d2ext.launch.device import expected_gpu, uncovered
from d2ext.limits import SHARED_MEMORY, open_files_allowed, shared_memory_free, usable_cores
from d2ext.waiting import waiting_for

_LISTED_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "timm",
    "hotcoco",
    "pycocotools",
    "omegaconf",
    "pillow",
)
_OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
# Enough for eight workers with large batches; `--dry-run` checks the needs of a config.
_SHARED_MEMORY, _OPEN_FILES = 10**9, 1024
_MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"  # only in a checkout
_TIMEOUT = 300  # seconds; the first use of a GPU can take a minute

# The problem to report if a step of the probe fails.
_SUBJECTS = {
    "torch": "torch cannot be used",
    "torchvision": "torchvision cannot be used",
    "detectron2": "Detectron2 cannot be used",
    "operators": "Detectron2's compiled operators crash",
    "train": "a training step fails",
}


@dataclass
class Diagnosis:
    """Facts as (label, text), warnings, and problems, which prevent training."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{label:<20} {text}" for label, text in self.facts]
        lines += [f"warning: {text}" for text in self.warnings]
        lines += [f"problem: {text}" for text in self.problems]
        lines.append("training cannot work" if self.problems else "training works")
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Check this interpreter's installation and train one step with it.

    Missing, old or broken packages raise no error; they are reported as problems.
    """
    found = Diagnosis()
    found.facts.append(("d2ext", __version__))
    found.facts.append(("Python", f"{platform.python_version()} ({sys.executable})"))
    found.facts += [(name, installed(name) or "not installed") for name in _LISTED_PACKAGES]
    found.facts.append(("Detectron2", which_detectron2()))
    opencv = [f"{name} {installed(name)}" for name in _OPENCV if installed(name)]
    found.facts.append(("OpenCV", ", ".join(opencv) or "not installed"))
    found.facts.append(("datasets", describe_datasets()))
    if len(opencv) > 1:
        found.warnings.append(
            "several OpenCV packages overwrite each other; uninstall all of them, then install one"
        )
    if installed("detectron2") and installed("sal-detectron2"):
        found.warnings.append(
            f"two Detectron2 packages overwrite each other. Remedy: {install_advice()}"
        )
    found.problems += unmet_requirements()

    found.facts += _limits(found.warnings)
    results, problem = probe()
    found.facts += _hardware(results.get("torch"), found.problems)
    if "operators" in results:
        found.facts += _operators(results["operators"], found.warnings)
    if "train" in results:
        found.facts.append(("training test", results["train"]["text"]))
    if problem:
        found.problems.append(problem)
    return found


def installed(name: str) -> str | None:
    """Return the version of an installed distribution without importing it, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def which_detectron2() -> str:
    """Return which Detectron2 is installed: the PyPI wheel, upstream (with its commit), or none."""
    if version := installed("sal-detectron2"):
        built_from = ", upstream main of 2024-04-17 (a59f0563)" if version == "0.7.2" else ""
        return f"{version}, the PyPI wheel sal-detectron2{built_from}"
    if version := installed("detectron2"):
        origin = json.loads(
            metadata.distribution("detectron2").read_text("direct_url.json") or "{}"
        )
        commit = origin.get("vcs_info", {}).get("commit_id")
        return f"{version}, upstream, " + (f"commit {commit}" if commit else "commit unknown")
    return "not installed"


def describe_datasets() -> str:
    """Return the folder of the datasets, and that of the photos of the balloon recipes."""
    root = os.environ.get("DETECTRON2_DATASETS") or "datasets"
    source = "DETECTRON2_DATASETS" if os.environ.get("DETECTRON2_DATASETS") else "the default"
    missing = f"missing ({command('prepare')} balloon --root DIR)"
    balloon = PHOTOS if PHOTOS.is_dir() else missing
    return f"{root} ({source}); balloon photos: {balloon}"


def unmet_requirements() -> list[str]:
    """Return unmet requirements of d2ext; none if d2ext itself is not installed."""
    try:
        from packaging.requirements import Requirement

        required = metadata.requires("d2ext") or []
    except ImportError:  # packaging is missing, or d2ext runs from a checkout
        return []
    unmet = []
    for requirement in map(Requirement, required):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            remedy = install_advice(shlex.quote(str(requirement)))
            unmet.append(f"d2ext needs {requirement}, found {version or 'none'}. Remedy: {remedy}")
    return unmet


def probe() -> tuple[dict[str, dict[str, Any]], str | None]:
    """Import torch, torchvision and Detectron2 in a child process and train one step there.

    Returns:
        The result of each step that succeeded, and the error of the first one that did not.
    """
    # -P keeps this file's folder from shadowing the standard library.
    command = [sys.executable, "-P", str(Path(__file__).with_name("probe.py"))]
    try:
        with waiting_for("torch and Detectron2 to train a step", f"at most {_TIMEOUT} s", say=_say):
            child = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT
            )
        output, status = child.stdout, child.returncode
    except subprocess.TimeoutExpired as e:
        # The output is bytes here, even with text=True.
        output, status = (e.stdout or b"").decode(errors="replace"), None
    results: dict[str, dict[str, Any]] = {}
    step, error = "torch", None
    for line in output.splitlines():
        if line.startswith(MARK):
            said = json.loads(line.removeprefix(MARK))
            step, error = said["step"], said.get("error")
            if "result" in said:
                results[step] = said["result"]
    if list(results) == list(_SUBJECTS):
        return results, None
    if error is None and status is None:
        error = f"no response after {_TIMEOUT} s"
    elif error is None:
        error = "killed by " + signal.Signals(-status).name if status < 0 else f"status {status}"
    way_out = "; CUDA_VISIBLE_DEVICES=-1 trains on the CPU" if step == "train" else ""
    packages = "--force-reinstall torch torchvision" if step.startswith("torch") else ""
    return results, f"{_SUBJECTS[step]}: {error}. Remedy: {install_advice(packages)}{way_out}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def install_advice(packages: str = "") -> str:
    """Return how to get a working installation.

    Args:
        packages: Arguments of the `pip install` that helps outside a checkout; by default, the
            command that installs Detectron2.
    """
    if not _MAKEFILE.is_file():
        if packages:
            return f"`pip install {packages}`"
        old = [name for name in ("detectron2", "sal-detectron2") if installed(name)]
        remove = f"`pip uninstall {' '.join(old)}`, then " if old else ""
        return f"{remove}`{INSTALL_DETECTRON2}`"
    # `make env` considers an environment that it has created complete until it is removed.
    if (Path(sys.prefix) / "d2ext-stamp").exists():
        return f"`rm -r {sys.prefix}`, then `make env`"
    return "`make env` creates an environment with everything that d2ext needs"


def _hardware(torch: dict[str, Any] | None, problems: list[str]) -> list[tuple[str, str]]:
    facts = [("CPU cores", str(usable_cores()))]
    if torch is None:
        return [*facts, ("GPUs", "unknown, because torch does not work")]
    way_out = "train.device=cpu trains on the CPU"
    for name, major, minor in torch["gpus"]:
        if uncovered((major, minor), torch["built_for"]):
            problems.append(
                f"the GPU {name} has compute capability {major}.{minor}, but this torch is built"
                f" only for {', '.join(torch['built_for'])}; {way_out}"
            )
    if torch["gpus"]:
        return [*facts, ("GPUs", ", ".join(name for name, *_ in torch["gpus"]))]
    if sign := expected_gpu(os.environ):
        problems.append(f"{sign}, but torch finds no GPU ({torch['reason']}); {way_out}")
    return [*facts, ("GPUs", "none; training runs on the CPU")]


def _limits(warnings: list[str]) -> list[tuple[str, str]]:
    """Return the machine's limits for loader workers, and warn if they are low for any config."""
    free, files = shared_memory_free(), open_files_allowed()
    if free < _SHARED_MEMORY:
        warnings.append(
            f"only {free / 1e6:.0f} MB of shared memory ({SHARED_MEMORY}) are free for loader"
            " workers; start the container with more (docker run --shm-size=8g), or set"
            " dataloader.train.num_workers=0"
        )
    if files < _OPEN_FILES:
        warnings.append(
            f"only {files} open files (`ulimit -Hn`) are allowed for loader workers; raise the"
            " limit, or lower dataloader.train.num_workers"
        )
    return [("shared memory", f"{free / 1e6:.0f} MB free"), ("open files", f"{files:g} allowed")]


def _operators(result: dict[str, Any], warnings: list[str]) -> list[tuple[str, str]]:
    env = _MAKEFILE.is_file()
    build = "`DETECTRON2=git make env`" if env else install_advice()
    if result["no_cuda"]:
        warnings.append(
            "Detectron2's compiled operators were built without CUDA and do not run on the GPU;"
            f" install the CUDA toolkit, then run {build}{' with a new D2EXT_VENV' if env else ''}"
        )
    if not result["missing"]:
        return [("compiled operators", "all present")]
    remedy = f"{build} builds them; Faster and Mask R-CNN do not need them"
    missing = [("without", f"{name}: {result_of}") for name, result_of in result["missing"]]
    reason = f" ({result['reason']})" if result["reason"] else ""
    return [("compiled operators", f"missing{reason}; {remedy}"), *missing]
