"""Shared fixtures, and checks that tests write only to their own folders."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import hypothesis
import pytest

REPO = Path(__file__).resolve().parent.parent
LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
# The `d2ext` command as pip writes it.
SCRIPT = """import sys
from d2ext.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""

# These variables are removed: libraries then use $HOME, and d2ext finds no datasets.
_FOLDERS = (
    "D2EXT_CACHE",
    "DETECTRON2_DATASETS",
    "FVCORE_CACHE",
    "HF_HOME",
    "MPLCONFIGDIR",
    "TORCH_HOME",
    "TRITON_CACHE_DIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
)
# Folders that pytest, Python and linters create in a checkout.
_CACHES = {".git", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", "__pycache__"}
_CHECKOUT = pytest.StashKey[dict[str, int]]()

# A rare failure must not block an unrelated change; `make nightly` draws new examples each time.
hypothesis.settings.register_profile("derandomized", derandomize=True, deadline=None)
hypothesis.settings.register_profile("random", database=None, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "derandomized"))


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests, their workers and their subprocesses a home of their own."""
    if hasattr(config, "workerinput"):  # xdist workers inherit it
        return
    home = tempfile.mkdtemp(prefix="d2ext-tests-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    for name in _FOLDERS:
        os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        del os.environ[name]
    os.environ |= {  # no test needs a network
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_MODE": "offline",
    }
    if config.option.markexpr != "gpu":  # kernels on a GPU do not repeat results bit for bit
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["HOME"] = home
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = os.path.join(home, "hypothesis")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(home, "inductor")
    config.stash[_CHECKOUT] = _files_of_the_checkout()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if files of the checkout were added, changed or removed."""
    before = session.config.stash.get(_CHECKOUT, None)
    if before is None:
        return
    after = _files_of_the_checkout()
    differing = sorted(name for name, _ in before.items() ^ after.items())
    if differing:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        writer = session.config.get_terminal_writer()
        writer.line()
        writer.line(
            "FAILED: these files of the checkout changed while the tests ran; a test must write to"
            f" its own folder only: {', '.join(sorted(set(differing))[:10])}",
            red=True,
        )


def _files_of_the_checkout() -> dict[str, int]:
    """Return the modification time of each file, without environments and caches."""
    found = {}
    for folder, folders, files in os.walk(REPO):
        folders[:] = [
            name
            for name in folders
            if name not in _CACHES and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
        ]
        for name in files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, REPO)] = os.lstat(path).st_mtime_ns
    return found


@pytest.fixture(scope="session", autouse=True)
def _directory_of_session_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make a temporary folder the current directory while shared fixtures are set up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        yield


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `tmp_path` the current directory, so that a command's relative paths lie in it."""
    monkeypatch.chdir(tmp_path)


# Opening lines of a Python program. As in those of pip, `#!` with the path of Python would not work
# in a folder with a blank in its name.
SHEBANG = f"""#!/bin/sh
'''exec' {shlex.quote(sys.executable)} "$0" "$@"
' '''
"""


def checkout_env() -> dict[str, str]:
    """Return an environment in which `python -c` imports this checkout's d2ext."""
    return {**os.environ, "PYTHONPATH": str(REPO)}


@pytest.fixture(scope="session")
def repo() -> Path:
    """Return the root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def real_balloon() -> Path:
    """Return the folder with the checkout's balloon photos."""
    return REPO / "examples" / "balloon"


@pytest.fixture
def via_shapes(tmp_path: Path) -> Path:
    """Return a folder with the test files of VIA's authors (BSD 2-Clause) and blank images."""
    from PIL import Image

    folder = shutil.copytree(REPO / "tests" / "data" / "via_shapes", tmp_path / "via_shapes")
    for entry in json.loads((folder / "via_region_data.json").read_text()).values():
        Image.new("RGB", (640, 480)).save(folder / entry["filename"])
    return folder


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with a tiny balloon dataset: 6 + 2 photos of 160 pixels."""
    from tests.balloons import write_balloons

    root = tmp_path_factory.mktemp("datasets")
    write_balloons(root / "balloon", num_train=6, num_val=2)
    return root


@pytest.fixture(scope="session")
def tiny_coco(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with COCO's layout and 80 classes: the tiny balloons as sports balls.

    The photos have label maps. Tests must not change the folder.
    """
    from detectron2.data import MetadataCatalog

    from d2ext.data.formats.coco import to_coco
    from d2ext.data.formats.via import read_via
    from tests.balloons import write_label_maps

    root = tmp_path_factory.mktemp("datasets")
    classes = MetadataCatalog.get("coco_2017_val").thing_classes
    (root / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        images = root / "coco" / f"{split}2017"
        shutil.copytree(tiny_root / "balloon" / split, images)
        records = read_via(images / "via_region_data.json", images, ["balloon"])
        for annotation in (a for r in records for a in r["annotations"]):
            annotation["category_id"] = classes.index("sports ball")
        content = json.dumps(to_coco(records, classes, images))
        annotations = root / "coco" / "annotations" / f"instances_{split}2017.json"
        annotations.write_text(content)
        write_label_maps(annotations, root / "coco" / "stuffthingmaps" / f"{split}2017")
    return root


@pytest.fixture(scope="session")
def tiny_voc(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with VOC2007 and VOC2012; see `write_voc`. Tests must not change it."""
    from tests.standard_data import write_voc

    root = tmp_path_factory.mktemp("datasets")
    write_voc(root, tiny_root / "balloon")
    return root


@pytest.fixture(scope="session")
def tiny_open_images(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with OpenImages; see `write_open_images`. Tests must not change it."""
    from tests.standard_data import write_open_images

    root = tmp_path_factory.mktemp("datasets")
    write_open_images(root, tiny_root / "balloon")
    return root


@pytest.fixture(scope="session")
def tiny_cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with Cityscapes' layout: 2 + 1 images of 192 x 96, two objects each."""
    import numpy as np
    from PIL import Image, ImageDraw

    root = tmp_path_factory.mktemp("datasets")
    shapes = {"car": [20, 30, 90, 80], "person": [110, 20, 140, 85]}  # x0, y0, x1, y1
    ids = {"car": 26, "person": 24}
    for split, count in (("train", 2), ("val", 1)):
        photos = root / "cityscapes" / "leftImg8bit" / split / "town"
        truth = root / "cityscapes" / "gtFine" / split / "town"
        photos.mkdir(parents=True)
        truth.mkdir(parents=True)
        for i in range(count):
            photo, objects = Image.new("RGB", (192, 96), (90, 90, 100 + i)), []
            labels = Image.new("L", photo.size, 7)
            instances = np.full((96, 192), 7, dtype=np.uint16)  # Pillow's paste spoils 16 bits
            for name, (x0, y0, x1, y1) in shapes.items():
                polygon = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
                objects.append({"label": name, "polygon": polygon})
                ImageDraw.Draw(photo).rectangle((x0, y0, x1, y1), fill=(200, 40 * i, 30))
                labels.paste(ids[name], (x0, y0, x1, y1))
                instances[y0:y1, x0:x1] = ids[name] * 1000
            stem = f"town_{i:06d}_000019"
            photo.save(photos / f"{stem}_leftImg8bit.png")
            labels.save(truth / f"{stem}_gtFine_labelIds.png")
            Image.fromarray(instances).save(truth / f"{stem}_gtFine_instanceIds.png")
            described = {"imgHeight": 96, "imgWidth": 192, "objects": objects}
            (truth / f"{stem}_gtFine_polygons.json").write_text(json.dumps(described))
    return root


@pytest.fixture(scope="session")
def tiny(tiny_root: Path) -> list[str]:
    """Return overrides with which the lite0 recipe trains in a second: tiny data, images, batch."""
    return [
        f"data.root={tiny_root}",
        "train.max_iter=4",
        "train.reference_batch_size=2",
        "train.log_period=1",
        "dataloader.train.num_workers=0",
        "dataloader.val.num_workers=0",
        "dataloader.train.mapper.augmentations[0].short_edge_length=96",
        "dataloader.val.mapper.augmentations[0].short_edge_length=96",
    ]


@pytest.fixture(scope="session")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of a short training; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    command = [sys.executable, REPO / "tools/train_net.py", "--config-file", REPO / LITE0]
    command += ["--no-validate", "--work-dir", folder, "--options", *tiny]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` folder of a new environment with the wheel of this checkout."""
    from tests.wheel import install_wheel

    return install_wheel(tmp_path_factory.mktemp("installed"))


@dataclass(frozen=True)
class Finished:
    """Exit status and output of a tool."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def run_tool(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Return a function that runs a tool in this process, which saves seconds of imports."""
    from d2ext.invocation import TOOLS

    commands = {file.removesuffix(".py"): name for name, file in TOOLS.items()}

    def run(name: str, *args: str | Path) -> Finished:
        argv = list(map(str, args))
        program = [str(REPO / "tools" / f"{name}.py"), *argv]
        return _finished(program, [commands[name], *argv], capsys)

    return run


@pytest.fixture
def d2ext_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Return a function that runs `d2ext ...` in this process."""

    def run(*args: str | Path) -> Finished:
        argv = list(map(str, args))
        return _finished(["/usr/bin/d2ext", *argv], argv, capsys)

    return run


def _finished(program: list[str], argv: list[str], capsys: pytest.CaptureFixture[str]) -> Finished:
    """Run a command with `program` as sys.argv, and clean up like the end of a process."""
    from d2ext.__main__ import main

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN)
    handlers = {number: signal.getsignal(number) for number in handled}
    before, paths, sys.argv = sys.argv, list(sys.path), program
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as e:
            main(argv)
    finally:
        sys.argv, sys.path[:] = before, paths
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if register := sys.modules.get("d2ext.data.datasets.register"):
            register.unregister_datasets()
    out = capsys.readouterr()
    return Finished(e.value.code, out.out, out.err)


@pytest.fixture
def train_net(run_tool: Callable[..., Finished]) -> Callable[..., Finished]:
    """Return a function that runs tools/train_net.py in this process."""

    def run(*args: str | Path, config: str | Path = REPO / LITE0) -> Finished:
        return run_tool("train_net", "--config-file", config, *args)

    return run


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a headless browser; skip the test if chromium is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if not path:
        pytest.skip("needs chromium (as root on Debian: make test-browser)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox does not start for root, and is not needed for our pages.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a file; fail on messages, errors and requests of the page."""
    messages: list[str] = []
    contexts = []

    def open_page(file: Path, now: datetime | None = None, **options: Any) -> Any:
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        if now:
            page.clock.install(time=now)
        page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(dialog.message))
        inside = (file.as_uri(), "data:", "blob:")
        page.on("request", lambda r: r.url.startswith(inside) or messages.append(r.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []


@pytest.fixture
def style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write the photos that the configs of Detectron2's style read; forget them afterwards."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from d2ext.config.adapters import yacs
    from tests.detectron2_style.photos import write_photos

    write_photos(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    known = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    yacs._call_once.cache_clear()  # the next test's photos have to be registered again
