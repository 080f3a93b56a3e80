"""The wheel of this checkout, and environments that have it installed."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.conftest import REPO


def build_wheel(folder: Path) -> tuple[Path, set[str]]:
    """Build the wheel without writing to the checkout.

    Args:
        folder: An empty folder for the sources and the wheel.

    Returns:
        The wheel, and the files of the package that it is built from.
    """
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("d2ext", "configs", "examples"):  # d2ext/configs is a link to configs/
        no_cache = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / name, source / name, symlinks=True, ignore=no_cache)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (REPO / name).exists():
            shutil.copy(REPO / name, source)
    files = {str(f.relative_to(source)) for f in (source / "d2ext").rglob("*") if f.is_file()}
    files |= {f"d2ext/{f.relative_to(source)}" for f in (source / "configs").rglob("*.py")}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", "-w", folder, source], check=True)
    return next(folder.glob("*.whl")), files


def install_wheel(folder: Path) -> Path:
    """Install the wheel into a new environment, beside the packages of this one.

    Args:
        folder: An empty folder for the wheel and the environment.

    Returns:
        The `bin` folder of the environment.
    """
    wheel, _ = build_wheel(folder / "wheel")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "zz.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    return venv / "bin"
