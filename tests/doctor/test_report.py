"""Run the doctor on this installation and on broken ones.

A broken package is a folder on PYTHONPATH that shadows the real one and fails on import.
"""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from d2ext.doctor import report


def run_doctor(repo, path=""):
    """Run tools/doctor.py with `path` as PYTHONPATH."""
    return subprocess.run(
        [sys.executable, str(repo / "tools/doctor.py")],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )


def write_package(root, name, code):
    """Write a package whose `__init__` contains `code`."""
    (root / name).mkdir(parents=True)
    (root / name / "__init__.py").write_text(code)


def write_distribution(root, name, version):
    """Write the metadata of an installed distribution, as pip does."""
    folder = root / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_this_installation_can_train(repo):
    """The doctor must find no problem in the environment that runs the tests."""
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
    """However the import of torch fails, the doctor exits with status 1, a reason and a fix."""
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


def test_the_2021_release_of_detectron2_is_a_problem(repo, tmp_path):
    """Upstream and the release of 2021 both call themselves 0.6."""
    write_package(tmp_path, "detectron2", '__version__ = "0.6"')
    write_package(tmp_path, "detectron2/utils", "")
    (tmp_path / "detectron2/utils/comm.py").write_text("def get_local_rank(): return 0\n")
    result = run_doctor(repo, tmp_path)
    assert result.returncode == 1
    assert "v0.6 (2021) or older" in result.stdout


def test_packages_that_overwrite_each_other_are_a_warning(repo, tmp_path):
    """There are two OpenCV packages and two Detectron2 packages in one environment."""
    write_package(tmp_path, "torch", "raise ImportError('not needed here')")
    for name in ("opencv-python", "opencv-python-headless", "detectron2", "sal-detectron2"):
        write_distribution(tmp_path, name, "5.0")
    output = run_doctor(repo, tmp_path).stdout
    assert "warning: several OpenCV packages" in output
    assert "warning: two Detectron2 packages" in output


def test_unmet_requirements_of_d2ext_are_listed(tmp_path, monkeypatch):
    """The requirements in the metadata are compared with installed packages, without extras."""
    write_distribution(tmp_path, "d2ext", "9")
    with open(tmp_path / "d2ext-9.dist-info/METADATA", "a") as f:
        f.write("Requires-Dist: pytest>=1\nRequires-Dist: hypothesis>=999\n")
        f.write("Requires-Dist: no-such-package\nRequires-Dist: other-package; extra == 'dev'\n")
    monkeypatch.syspath_prepend(tmp_path)
    unmet = report.unmet_requirements()
    assert len(unmet) == 2
    assert "hypothesis>=999" in unmet[0]
    assert "no-such-package, found none" in unmet[1]


def test_the_datasets_folder_and_balloon_photos_are_reported(tmp_path, monkeypatch, real_balloon):
    """If the photos are missing, the command that fetches them is printed."""
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    described = report.describe_datasets()
    assert described == f"/data (DETECTRON2_DATASETS); balloon photos: {real_balloon}"
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    monkeypatch.setattr(report, "PHOTOS", tmp_path / "absent")
    described = report.describe_datasets()
    assert described.startswith("datasets (the default)")
    assert "d2ext prepare balloon --root DIR" in described
