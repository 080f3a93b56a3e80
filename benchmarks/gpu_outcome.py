"""Define the device, the recipe and the outcomes of the checks in gpu_check.py."""

import contextlib
import functools
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import ROOT
from weights import save_calibrated

from d2ext.config.load import load_config
from d2ext.data.datasets.register import register_datasets, unregister_datasets

LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
R50 = "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py"
_SHORT_EDGE = "dataloader.{}.mapper.augmentations[0].short_edge_length={}"


class NotRun(Exception):
    """A check cannot run here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """Result of a check.

    Attributes:
        status: PASS, FAIL, NOT RUN, or RAN for a figure without a target.
        found: What was found, as text.
    """

    status: str
    found: str


def passes(good: bool, found: str) -> Outcome:
    """Return the outcome of a check with a bound."""
    return Outcome("PASS" if good else "FAIL", found)


@dataclass(frozen=True)
class Target:
    """Device and size of what is checked.

    Attributes:
        device: `cuda` or `cpu`.
        tiny: Use the lite0 recipe with images of 96 pixels instead of R50-FPN.
        fake: The device is that of `fake_cuda`: results are a CPU's, and times mean nothing.
        folder: Folder for files of the checks.
    """

    device: str
    tiny: bool
    fake: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Return whether there is a real GPU."""
        return self.device == "cuda" and not self.fake

    @property
    def measures(self) -> bool:
        """Return whether times are those that the check is for."""
        return self.on_gpu and not self.tiny

    def need_gpu(self) -> None:
        """Raise NotRun without a real GPU."""
        if not self.on_gpu:
            raise NotRun("needs a GPU")

    def need_real_device(self) -> None:
        """Raise NotRun on the fake device."""
        if self.fake:
            raise NotRun("needs a GPU; --cpu --tiny rehearses it")

    def speed(self, good: bool, found: str) -> Outcome:
        """Return the outcome of a measurement; in a rehearsal, it has no bound."""
        if self.measures:
            return passes(good, found)
        if self.fake:
            return Outcome("RAN", "no times on a fake device")
        return Outcome("RAN", f"{found} (tiny, {self.device})")

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Provide the device in the block."""
        if not self.fake:
            yield
            return
        from fake_cuda import FakeCuda

        # In inference mode, torch does not pass all operations to FakeCuda.
        with FakeCuda(), mock.patch("torch.inference_mode", torch.no_grad):
            yield

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def small(self) -> list[str]:
        """Return overrides with which the lite0 recipe trains in seconds: data, sizes, batch."""
        return [
            f"data.root={self.folder / 'tiny'}",
            "train.max_iter=4",
            "train.reference_batch_size=2",
            "train.log_period=1",
            "dataloader.train.num_workers=0",
            "dataloader.val.num_workers=0",
            _SHORT_EDGE.format("train", 96),
            _SHORT_EDGE.format("val", 96),
        ]

    def recipe(self, *overrides: str) -> Any:
        """Return the config that is measured, with registered datasets.

        The learning rate does not change the weights.
        """
        if self.tiny:
            config, options = LITE0, self.small()
        else:
            config, options = R50, [f"train.init_checkpoint={calibrated(self.folder)}"]
        cfg = load_config(str(ROOT / config), [*options, "optimizer.lr=1e-9", *overrides])
        unregister_datasets()  # those of another check
        register_datasets(cfg.datasets)
        return cfg


@functools.cache
def calibrated(folder: Path) -> Path:
    """Return a file with weights for R50, which needs no network."""
    file = folder / "calibrated.pth"
    if not file.exists():
        unfinished = file.with_suffix(".unfinished")
        save_calibrated(load_config(str(ROOT / R50), ["train.init_checkpoint="]), unfinished)
        unfinished.rename(file)
    return file


def write_tiny_photos(folder: Path) -> None:
    """Write 6 + 2 photos of 160 pixels to folder/tiny, unless they are there."""
    if not (folder / "tiny").exists():
        sys.path.append(str(ROOT))
        from tests.balloons import write_balloons

        unfinished = folder / "tiny.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was interrupted
        write_balloons(unfinished / "balloon", num_train=6, num_val=2)
        unfinished.rename(folder / "tiny")
