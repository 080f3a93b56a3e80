"""Run the overrides in docs/datasets.md as written (test_docs.py runs its commands)."""

import json
import re
import shlex
import shutil

import pytest

from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.via import read_via

QUICK = ["train.max_iter=1", "train.reference_batch_size=1", "train.init_checkpoint="]
QUICK += ["dataloader.train.num_workers=0", "dataloader.val.num_workers=0"]


@pytest.fixture(scope="module")
def section(repo):
    return (repo / "docs" / "datasets.md").read_text()


@pytest.fixture
def photos(tiny_root, tmp_path):
    """Write the tiny balloons as a.json, b.json (COCO) and imgs/; return their folder."""
    for split, name in (("train", "a"), ("val", "b")):
        source = tiny_root / "balloon" / split
        records = read_via(source / "via_region_data.json", source, ["balloon"])
        (tmp_path / f"{name}.json").write_text(json.dumps(to_coco(records, ["balloon"], source)))
        shutil.copytree(source, tmp_path / "imgs", dirs_exist_ok=True)
    return tmp_path


def test_the_overrides_of_the_page_work(repo, train_net, photos, section, monkeypatch):
    data = shlex.split(re.search(r"DATA=\((.*)\)", section)[1])
    monkeypatch.chdir(photos)
    config = repo / "configs/custom/mask_rcnn_lite0_fpn.py"
    overrides = re.findall(r"`(?:data|dataloader)\.[\w.]+=.*?`", section.replace("\n  ", " "))
    assert len(overrides) >= 5
    for text in overrides:
        (override,) = shlex.split(text.strip("`"))
        if "names=" in override or "repeat=[" in override:  # they name other datasets
            continue
        override = override.replace("[cat, dog]", "[balloon]").replace(", [0, 128, 0]", "")
        done = train_net("--dry-run", *data, *QUICK, override, config=config)
        assert done.status == 0, (override, done.stderr)


def test_overrides_add_a_dataset_a_metric_and_an_augmentation(repo, train_net, photos):
    """They apply to the run and are saved in config.yaml, which can start another run."""
    dataset = f"_target_: d2ext.data.datasets.declare.coco_dataset, image_root: {photos / 'imgs'}"
    flip = "{_target_: detectron2.data.transforms.RandomFlip}"
    rotate = "{_target_: detectron2.data.transforms.RandomRotation, angle: [-10, 10]}"
    added = [
        f"data.train.json={photos / 'a.json'}",
        f"data.train.images={photos / 'imgs'}",
        f"+datasets.more={{{dataset}, json_file: {photos / 'b.json'}, classes: [balloon]}}",
        "dataloader.train.dataset.names=[custom_train]",
        "+dataloader.train.dataset.names[1]=more",
        "dataloader.val.dataset.names=more",
        f"+dataloader.train.mapper.augmentations[2]={rotate}",
        f"dataloader.train.mapper.augmentations[1]={flip}",
        "+evaluators.voc={_target_: d2ext.evaluation.voc.VocMetric, iou_thresholds: [0.5]}",
        "optimizer={_target_: torch.optim.SGD, lr: 1e-3}",
    ]
    config = repo / "configs/custom/mask_rcnn_lite0_fpn.py"
    done = train_net("--work-dir", photos / "run", *added, *QUICK, config=config)
    assert done.status == 0, done.stderr
    results = json.loads((photos / "run" / "results.json").read_text())["last"]["results"]
    assert any(key.startswith("more/voc/") for key in results)
    again = ["--no-validate", "--work-dir", photos / "again"]
    done = train_net(*again, config=photos / "run" / "config.yaml")
    assert done.status == 0, done.stderr
    assert re.search(r"more +2 +\d+  balloon", done.stdout), done.stdout


def test_filtered_and_repeated_images_are_counted(repo, train_net, photos, monkeypatch):
    content = json.loads((photos / "a.json").read_text())
    empty = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != empty]
    (photos / "a.json").write_text(json.dumps(content))
    monkeypatch.chdir(photos)
    options = ["data.train.json=a.json", "data.train.images=imgs", "train.init_checkpoint="]
    options += ["dataloader.train.dataset.repeat=3", "train.reference_batch_size=3"]
    options.append("data.auto=False")
    config = repo / "configs/custom/mask_rcnn_lite0_fpn.py"
    done = train_net("--no-validate", "--dry-run", *options, config=config)
    assert done.status == 0, done.stderr
    words = r"run +15 images \(1 without objects dropped, filter_empty\) from 5, repeated up to 3"
    assert re.search(words, done.stdout), done.stdout
    assert "24 epochs = 120 iterations" in done.stdout
    options.append("dataloader.train.dataset.filter_empty=False")
    done = train_net("--no-validate", "--dry-run", *options, config=config)
    assert re.search(r"run +18 images from 6", done.stdout), done.stdout


def _own(photos, train, *, images="imgs", val=None):
    """Return overrides that train on the COCO dict `train`."""
    (photos / "t.json").write_text(json.dumps(train))
    options = [f"data.train.json={photos / 't.json'}", f"data.train.images={photos / images}"]
    if val:
        (photos / "v.json").write_text(json.dumps(val))
        options += [f"data.val.json={photos / 'v.json'}", f"data.val.images={photos / images}"]
    return [*options, *QUICK, "train.best.metric=null"]


def _plan(train_net, repo, photos, *overrides):
    config = repo / "configs/custom/mask_rcnn_lite0_fpn.py"
    flags = ["--no-validate", "--dry-run", "--work-dir", photos / "run"]
    return train_net(*flags, *overrides, config=config)


def test_the_plan_counts_annotations_that_are_not_trained_on(repo, train_net, photos):
    content = json.loads((photos / "a.json").read_text())
    objects = content["annotations"]
    total = len(objects)
    content["categories"].append({"id": 2, "name": "kite"})
    for annotation, mark in zip(
        objects,
        [{"iscrowd": 1}, {"ignore": 1}, {"is_group_of": 1}, {"category_id": 2}],
        strict=False,
    ):
        annotation |= mark
    objects[4]["keypoints"], objects[4]["num_keypoints"] = [3, 3, 2], 1
    options = _own(photos, content)
    done = _plan(train_net, repo, photos, *options, "data.classes=[balloon]")
    assert done.status == 0, done.stderr
    words = f"4 of {total} annotations are not trained on: 1 crowd, 1 marked difficult or ignore, 1"
    assert f"{words} group (is_group_of), 1 of classes not asked for" in done.stdout
    assert "1 object has keypoints, which are not trained on" in done.stdout
    for annotation in objects:
        annotation |= {"iscrowd": 1, "category_id": 1}
    done = _plan(train_net, repo, photos, *_own(photos, content))
    assert done.status == 2 and not (photos / "run").exists()
    line = done.stderr.strip().splitlines()[-1]
    words = f"{total} of {total} annotations are not trained on: {total - 2} crowds (CVAT"
    assert words in line and "1 marked difficult or ignore, 1 group" in line
    assert "sed -E" in line


@pytest.fixture
def mixed(photos):
    """Return the training annotations with every second outline removed."""
    content = json.loads((photos / "a.json").read_text())
    for annotation in content["annotations"][::2]:
        del annotation["segmentation"]
    return content


def test_objects_without_an_outline_are_an_error_with_two_fixes(repo, train_net, photos, mixed):
    total = len(mixed["annotations"])
    done = _plan(train_net, repo, photos, *_own(photos, mixed))
    assert done.status == 2 and "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert f"{(total + 1) // 2} of {total} objects have no outline" in line
    assert "data.boxes_as_masks=True" in line and "faster_rcnn_lite0_fpn.py" in line


def test_boxes_as_masks_are_trained_on_and_evaluated(repo, train_net, photos, mixed):
    options = _own(photos, mixed, val=mixed)
    small = [
        f"dataloader.{split}.mapper.augmentations[0].short_edge_length=96"
        for split in ("train", "val")
    ]
    done = train_net(
        *["--work-dir", photos / "run", *options, *small, "data.boxes_as_masks=True"],
        config=repo / "configs/custom/mask_rcnn_lite0_fpn.py",
    )
    assert done.status == 0, done.stderr
    results = json.loads((photos / "run" / "results.json").read_text())["last"]["results"]
    assert "custom_val/coco/segm/AP" in results


def test_more_objects_than_the_model_returns_print_a_note(repo, train_net, photos):
    content = json.loads((photos / "a.json").read_text())
    first = content["annotations"][0]
    content["annotations"] += [first | {"id": 1000 + i} for i in range(100)]
    done = _plan(train_net, repo, photos, *_own(photos, content))
    assert done.status == 0, done.stderr
    assert "model.roi_heads.box_predictor.test_topk_per_image=200" in done.stdout
