"""Warn before a run if its loader workers may need more than the machine has."""

import pytest

from d2ext.config.load import load_config
from d2ext.data.datasets.register import register_datasets, unregister_datasets
from d2ext.preflight import loader_needs
from tests.conftest import LITE0


@pytest.fixture
def warnings(repo, tiny, monkeypatch):
    """Return a function that gets the warnings on a machine with 64 kB of shared memory."""
    monkeypatch.setattr(loader_needs, "shared_memory_free", lambda: 64_000)

    def read(*overrides, splits=("train", "val")):
        cfg = load_config(repo / LITE0, [*tiny, *overrides])
        register_datasets(cfg.datasets)
        loaders = {split: cfg.dataloader[split] for split in splits}
        return loader_needs.loader_warnings(loaders, accumulate=1, world_size=1, here=1)

    yield read
    unregister_datasets()


def test_no_workers_means_no_warnings(warnings):
    assert warnings() == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_warning_names_the_loader_that_needs_too_much(warnings, split):
    (line,) = warnings(f"dataloader.{split}.num_workers=2")
    assert "2 workers may need" in line and f"lower dataloader.{split}.num_workers" in line


def test_the_largest_image_of_each_test_dataset_counts(warnings):
    options = ["dataloader.val.num_workers=1"]
    assert warnings(*options, "dataloader.val.dataset.names=[balloon_val,balloon_train]")


def test_an_unused_loader_gives_no_warning(warnings):
    assert warnings("dataloader.val.num_workers=2", splits=["train"]) == []
    assert warnings("dataloader.train.num_workers=2", splits=["val"]) == []
