"""Trainings compute the training losses on the validation set, and are otherwise the same."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage

from d2ext.config.load import load_config
from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.data.datasets.register import unregister_datasets
from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.via import read_via
from tests.balloons import write_balloons
from tests.conftest import LITE0, REPO, checkout_env

PREFIX = "balloon_val/validation_loss/"
# All anchors and proposals are sampled, so the random choice does not matter.
ALL_SAMPLED = [
    "model.proposal_generator.batch_size_per_image=100000",
    "model.roi_heads.batch_size_per_image=100000",
]


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def _validation(folder):
    """Return the validation losses by iteration and name."""
    return {
        line["iteration"]: named
        for line in _lines(folder)
        if (named := {k: v for k, v in line.items() if "/validation_loss/" in k})
    }


def _reference(overrides, weights):
    """Return the mean losses of Detectron2's own layers on the validation set, by name."""
    cfg = load_config(REPO / LITE0, [*overrides, "train.device=cpu"])
    register_run_datasets(cfg)
    try:
        records = DatasetCatalog.get("balloon_val")
        cfg.dataloader.train.mapper.augmentations = cfg.dataloader.val.mapper.augmentations
        mapper = instantiate(cfg.dataloader.train.mapper)
        samples = [mapper(record) for record in records]
    finally:
        unregister_datasets()
    model = instantiate(cfg.model).train()
    model.load_state_dict(weights)
    with torch.no_grad(), EventStorage():
        losses = [model([sample]) for sample in samples]
    return {name: np.mean([float(each[name]) for each in losses]) for name in losses[0]}


def test_losses_are_those_of_detectron2_s_model_with_the_evaluated_weights(
    train_net, tiny, tmp_path
):
    options = [*tiny, *ALL_SAMPLED, "train.ema_decay=0.9", "optimizer.lr=0.01"]
    done = train_net("--work-dir", tmp_path / "run", *options)
    assert done.status == 0, done.stderr
    content = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    expected = _reference(options, content["ema"])
    expected["total_loss"] = sum(expected.values())
    (found,) = _validation(tmp_path / "run").values()
    assert found == {PREFIX + k: pytest.approx(v, rel=1e-3) for k, v in expected.items()}
    other = _reference(options, content["model"])
    assert other["loss_mask"] != pytest.approx(expected["loss_mask"], rel=1e-3)
    last = json.loads((tmp_path / "run" / "results.json").read_text())["last"]
    assert last["losses"] == found and not found.keys() & last["results"].keys()
    assert f"balloon_val: validation loss {found[PREFIX + 'total_loss']:.4g}" in done.stdout
    # They are not repeated in the lines of the training losses.
    (step, *_) = [line for line in done.stdout.splitlines() if " iter: 3 " in line]
    assert "total_loss" in step and "validation_loss" not in step


def test_a_resumed_run_has_the_same_validation_losses(train_net, tiny, tmp_path):
    options = [*tiny, "train.eval_period=2", "train.checkpointer.period=2"]
    assert train_net("--work-dir", tmp_path / "whole", *options).status == 0
    whole = _validation(tmp_path / "whole")
    assert list(whole) == [1, 3]
    # Killed in the first evaluation, before its line was written.
    (folder := tmp_path / "killed").mkdir()
    for name in ("run.json", "config.yaml", "model_0000001.pth", "model_0000001.pth.sha256"):
        shutil.copy(tmp_path / "whole" / name, folder)
    rows = (tmp_path / "whole" / "metrics.json").read_text().splitlines(keepends=True)
    (folder / "metrics.json").write_text(rows[0])
    assert train_net("--work-dir", folder, "--resume", *options).status == 0
    assert _validation(folder) == whole


def test_the_option_turns_it_off(train_net, tiny, tmp_path):
    done = train_net("--work-dir", tmp_path, *tiny, "train.validation_loss=False")
    assert done.status == 0 and "validation loss" not in done.stdout
    assert not _validation(tmp_path)
    assert "losses" not in json.loads((tmp_path / "results.json").read_text())["last"]


@pytest.mark.slow
def test_the_number_of_processes_and_workers_does_not_matter(train_net, tiny, tmp_path):
    """The learning rate is too small to change the initial weights, which are the same."""
    write_balloons(tmp_path / "balloon", num_train=2, num_val=3)
    options = [*tiny, f"data.root={tmp_path}", "optimizer.lr=1e-30", "train.max_iter=1"]
    done = train_net("--work-dir", tmp_path / "one", *options)
    assert done.status == 0, done.stderr
    command = [sys.executable, REPO / "tools/train_net.py", "--config-file", REPO / LITE0]
    command += ["--num-gpus", "2", "--work-dir", tmp_path / "two", *options]
    subprocess.run(
        [*command, "dataloader.val.num_workers=1"],
        env=checkout_env() | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert len(_validation(tmp_path / "one")[0]) == 6
    assert _validation(tmp_path / "one") == _validation(tmp_path / "two")


@pytest.fixture
def own(tiny_root, tmp_path):
    """Return overrides for the tiny balloons as COCO files, and the content of the second one."""
    source = tiny_root / "balloon" / "train"
    records = read_via(source / "via_region_data.json", source, ["balloon"])
    content = to_coco(records, ["balloon"], source)
    options = ["train.max_iter=1", "train.init_checkpoint=", "train.reference_batch_size=2"]
    options += ["dataloader.train.num_workers=0", "dataloader.val.num_workers=0"]
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        options += [f"data.{split}.json={tmp_path / split}.json", f"data.{split}.images={source}"]
        options += [f"dataloader.{split}.mapper.augmentations[0].short_edge_length=96"]
    return options, content


CUSTOM = REPO / "configs/custom/mask_rcnn_lite0_fpn.py"


def test_the_plan_says_why_a_set_has_none(train_net, own, tmp_path):
    options, content = own
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    options.append("train.best.metric=coco/bbox/AP")
    done = train_net("--work-dir", tmp_path / "run", *options, config=CUSTOM)
    assert done.status == 0, done.stderr
    assert "val loss    none on custom_val: " in done.stdout
    assert "mask" in done.stdout.partition("none on custom_val: ")[2].splitlines()[0]
    assert not _validation(tmp_path / "run")


def test_images_without_objects_are_left_out_and_counted(train_net, own, tmp_path):
    options, content = own
    first = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first]
    (tmp_path / "val.json").write_text(json.dumps(content))
    done = train_net("--work-dir", tmp_path / "run", *options, config=CUSTOM)
    assert done.status == 0, done.stderr
    assert "val loss    custom_val: without 1 image that training would drop" in done.stdout
    content["images"] = content["images"][1:]
    (tmp_path / "val.json").write_text(json.dumps(content))
    done = train_net("--work-dir", tmp_path / "other", *options, config=CUSTOM)
    assert done.status == 0 and "val loss" not in done.stdout
    assert _validation(tmp_path / "other") == _validation(tmp_path / "run")


def test_a_mapper_of_another_kind_has_none(train_net, own, tmp_path):
    options, _ = own
    mapper = "dataloader.val.mapper={_target_: tests.cli.test_validation_loss.Fixed}"
    done = train_net("--work-dir", tmp_path / "run", *options, mapper, config=CUSTOM)
    assert done.status == 0, done.stderr
    reason = "dataloader.train.mapper and dataloader.val.mapper need augmentations"
    assert f"val loss    none on custom_val: {reason}" in done.stdout
    assert not _validation(tmp_path / "run")


class Fixed:
    """A user's mapper without augmentations."""

    def __call__(self, record):
        """Return an image of 64 x 64 pixels."""
        return {**record, "image": torch.zeros(3, 64, 64, dtype=torch.uint8)}
