"""The doctor, by its real command, on this installation and on broken ones.

A broken package is a folder on PYTHONPATH that comes before the real one and fails like it.
"""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from d2ext.doctor import report


def run_doctor(repo, path=""):
    """Runs tools/doctor.py from elsewhere, as from a checkout without an installed d2ext."""
    return subprocess.run(
        [sys.executable, str(repo / "tools/doctor.py")],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )


def write_package(root, name, code):
    """A package whose `__init__` holds `code`."""
    (root / name).mkdir(parents=True)
    (root / name / "__init__.py").write_text(code)


def write_distribution(root, name, version):
    """What pip leaves of an installed distribution."""
    folder = root / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_this_installation_can_train(repo):
    """The environment that runs the tests is one that the doctor must find sound."""
    result = run_doctor(repo)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("training works\n")
    assert "work on cpu" in result.stdout
    installed = report.which_detectron2()
    assert installed in result.stdout
    if "PyPI wheel" in installed:
        for operator in ("deformable convolution", "rotated boxes", "C++ COCOeval"):
            assert operator in result.stdout


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "No module named 'torch'"),
        ("raise OSError('libcudart.so.13: no such file')", "OSError: libcudart.so.13"),
        (f"import os; os.kill(os.getpid(), {signal.SIGILL:d})", "killed by SIGILL"),
        ("import sys; sys.exit(3)", "status 3"),
    ],
)
def test_broken_torch_is_reported(repo, tmp_path, code, reason):
    """Whatever torch does on import: exit status 1, the reason, a remedy, no stack trace."""
    write_package(tmp_path, "torch", code)
    result = run_doctor(repo, tmp_path)
    assert result.returncode == 1
    problem = [line for line in result.stdout.splitlines() if line.startswith("problem:")]
    assert len(problem) == 1 and reason in problem[0] and "make env" in problem[0]
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stdout.endswith("training cannot work\n")


def test_remedies_without_a_checkout(repo, tmp_path):
    """There is no Makefile, so they are commands of pip."""
    shutil.copytree(repo / "d2ext", tmp_path / "d2ext")
    write_package(tmp_path, "torch", "raise OSError('libcudart.so.13: no such file')")
    command = [sys.executable, "-m", "d2ext", "doctor"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    remedy = "Remedy: `pip install --force-reinstall torch torchvision`\n"
    assert result.returncode == 1 and remedy in result.stdout, result.stderr
    assert "make env" not in result.stdout


def test_old_detectron2_is_told_from_upstream(repo, tmp_path):
    """Upstream and the release of 2021 both call themselves 0.6."""
    write_package(tmp_path, "detectron2", '__version__ = "0.6"')
    write_package(tmp_path, "detectron2/utils", "")
    (tmp_path / "detectron2/utils/comm.py").write_text("def get_local_rank(): return 0\n")
    result = run_doctor(repo, tmp_path)
    assert result.returncode == 1
    assert "v0.6 (2021) or older" in result.stdout


def test_packages_that_overwrite_one_another(repo, tmp_path):
    """Two OpenCVs, or two Detectron2s, in one environment."""
    write_package(tmp_path, "torch", "raise ImportError('not needed here')")
    for name in ("opencv-python", "opencv-python-headless", "detectron2", "sal-detectron2"):
        write_distribution(tmp_path, name, "5.0")
    output = run_doctor(repo, tmp_path).stdout
    assert "warning: several OpenCV packages" in output
    assert "warning: two Detectron2 packages" in output


def test_requirements_of_d2ext(tmp_path, monkeypatch):
    """What d2ext's metadata asks for is compared with what is there; extras are not asked for."""
    write_distribution(tmp_path, "d2ext", "9")
    with open(tmp_path / "d2ext-9.dist-info/METADATA", "a") as f:
        f.write("Requires-Dist: pytest>=1\nRequires-Dist: hypothesis>=999\n")
        f.write("Requires-Dist: no-such-package\nRequires-Dist: other-package; extra == 'dev'\n")
    monkeypatch.syspath_prepend(tmp_path)
    unmet = report.unmet_requirements()
    assert len(unmet) == 2
    assert "hypothesis>=999" in unmet[0]
    assert "no-such-package, found none" in unmet[1]


def test_datasets(tmp_path, monkeypatch, real_balloon):
    """The folder of datasets and the photos of the balloon recipes are named, or the remedy."""
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    said = report.describe_datasets()
    assert said == f"/data (DETECTRON2_DATASETS); balloon photos: {real_balloon}"
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    monkeypatch.setattr(report, "PHOTOS", tmp_path / "absent")
    said = report.describe_datasets()
    assert said.startswith("datasets (the default)")
    assert "d2ext prepare balloon --root DIR" in said
