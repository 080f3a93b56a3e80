"""Fixtures shared by all tests."""

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def real_balloon() -> Path:
    """The folder with the real balloon photos; skips where they are not at hand."""
    root = Path(os.environ.get("DETECTRON2_DATASETS") or REPO / "datasets") / "balloon"
    if not (root / "train" / "via_region_data.json").is_file() or (root / "SYNTHETIC").exists():
        pytest.skip(f"needs the real balloon photos in {root} (set DETECTRON2_DATASETS)")
    return root


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a tiny synthetic balloon set: 6 + 2 images of 160 pixels."""
    from d2ext.data.synthetic import draw_balloons

    root = tmp_path_factory.mktemp("datasets")
    draw_balloons(root / "balloon", num_train=6, num_val=2, long_side=160, seed=0)
    return root


@pytest.fixture(scope="session")
def tiny(tiny_root: Path) -> list[str]:
    """Overrides that make the lite0 recipe a matter of a second: tiny data, images and batch."""
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


@dataclass(frozen=True)
class Finished:
    """How a tool ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def train_net(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs tools/train_net.py in this process (a new one costs seconds of imports)."""
    spec = importlib.util.spec_from_file_location("train_net", REPO / "tools" / "train_net.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(*args: str | Path, config: str | Path = REPO / LITE0) -> Finished:
        argv, sys.argv = (
            sys.argv,
            ["tools/train_net.py", "--config-file", str(config), *map(str, args)],
        )
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as e:
                tool.run_tool(tool.main)
        finally:
            sys.argv = argv
            if catalog := sys.modules.get("d2ext.data.catalog"):
                catalog.unregister_datasets()
        out = capsys.readouterr()
        return Finished(e.value.code, out.out, out.err)

    return run
