"""A run and its exported model, which all workers of pytest-xdist share."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from tests.export.models import spread_outputs

# In the config of a tiny run: photos of the usual size, and up to 300 objects.
CHANGES = {
    "short_edge_length: 96": "short_edge_length: 640",
    "post_nms_topk: [300, 200]": "post_nms_topk: [300, 1000]",
    "test_score_thresh: 0.05": "test_score_thresh: 0.02\n      test_topk_per_image: 300",
}
STOCK = ("train.fast_layers=false", "train.channels_last=false")


def _shared(name: str, factory: pytest.TempPathFactory, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first worker fills; tests must not change it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            new = folder.with_name(f"{name}-new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            make(new)
            new.rename(folder)
    return folder


@pytest.fixture(scope="session")
def spread_run(
    request: pytest.FixtureRequest, real_balloon: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a run directory whose model finds many objects in photos of 640 pixels."""
    from d2ext.predict.predictor import load_trained

    def make(folder: Path) -> None:
        trained = request.getfixturevalue("trained")  # other workers need no training
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        config, weights = folder / "config.yaml", folder / "model_final.pth"
        text = config.read_text()
        for before, after in CHANGES.items():
            assert before in text
            text = text.replace(before, after)
        config.write_text(text)
        weights.with_name(f"{weights.name}.sha256").unlink()
        model = load_trained(config, str(weights), STOCK).model
        photo = Image.open(sorted((real_balloon / "val").glob("*.jpg"))[0]).convert("RGB")
        image = torch.from_numpy(np.asarray(photo).transpose(2, 0, 1).copy())
        spread_outputs(model, [{"image": image}])
        torch.save({"model": model.state_dict()}, weights)

    return _shared("spread_run", tmp_path_factory, make)


@pytest.fixture(scope="session")
def exported(spread_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with model.onnx of `spread_run`, its proof and its runner."""
    from d2ext.export.export import export_model

    def make(folder: Path) -> None:
        assert export_model(spread_run / "config.yaml", output=folder / "model.onnx")

    return _shared("exported", tmp_path_factory, make)
