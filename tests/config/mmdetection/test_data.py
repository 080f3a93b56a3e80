"""Datasets, loaders, pipelines and evaluators of MMDetection's configs."""

import json

import pytest
from omegaconf import OmegaConf

from d2ext.errors import UserError

TRAIN = "train_dataloader = dict(dataset=dict({}))"
T = "detectron2.data.transforms"


def _pipeline(step, where="train"):
    first = "dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)"
    return f"{where}_dataloader = dict(dataset=dict(pipeline=[{first}, {step}]))"


def _plain(node):
    """Return a node with the names of its targets."""
    if isinstance(node, dict):
        return {
            key: f"{v.__module__}.{v.__qualname__}"
            if key == "_target_" and callable(v)
            else _plain(v)
            for key, v in node.items()
        }
    return [_plain(v) for v in node] if isinstance(node, list) else node


def _augmentations(result, split="train"):
    node = result.values().dataloader[split].mapper.augmentations
    found = _plain(OmegaConf.to_container(node, resolve=False))
    return [{**entry, "_target_": entry["_target_"].rpartition(".")[2]} for entry in found]


def test_coco(imported):
    result = imported()
    found = result.values()
    assert found.data.root == "data/coco"
    train = found.datasets.coco_train
    assert train["json_file"] == "data/coco/annotations/instances_train2017.json"
    assert train["image_root"] == "data/coco/train2017" and len(train["classes"]) == 80
    loaders = found.dataloader
    assert loaders.train.dataset.names == "coco_train" and loaders.val.dataset.names == "coco_val"
    assert loaders.train.dataset.filter_empty is True and loaders.train.dataset.min_size == 32
    assert loaders.train.num_workers == loaders.val.num_workers == 2 and loaders.test is None
    assert found.evaluators.coco.tasks == ["bbox", "segm"]
    assert result.fields("unknown") == []


@pytest.mark.parametrize("spelling", ["2.x", "3.x"])
def test_classes_in_a_file(imported, tmp_path, monkeypatch, spelling):
    """A path of a file is relative to the current folder, as in MMDetection."""
    monkeypatch.chdir(tmp_path)
    text = "train_dataloader = dict(dataset=dict(metainfo=dict(classes='mine/classes.txt')))"
    if spelling == "2.x":
        text = "data = dict(train=dict(type='CocoDataset', classes='mine/classes.txt'))"
    with pytest.raises(UserError, match=r"cannot read .*classes=mine/classes\.txt: .*; imp"):
        imported(text)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "classes.txt").write_text("traffic light\ndog\n\n")
    [made] = [v for k, v in imported(text).values().datasets.items() if k.endswith("train")]
    assert made.classes == ["traffic light", "dog"]


def test_a_single_class(imported):
    meta = "train_dataloader = dict(dataset=dict(metainfo=dict(classes='traffic light')))"
    assert imported(meta).values().datasets.coco_train.classes == ["traffic light"]


def test_classes_and_palette_of_the_config(imported):
    meta = "metainfo=dict(classes=('cat', 'dog'), palette=[(1, 2, 3), (4, 5, 6)])"
    result = imported(TRAIN.format(f"{meta}, ann_file='/abs/a.json', data_prefix=dict(img='')"))
    train = result.values().datasets.coco_train
    assert train.classes == ["cat", "dog"] and train.palette == [[1, 2, 3], [4, 5, 6]]
    assert train.json_file == "/abs/a.json" and train.image_root == "data/coco"


def test_the_annotations_order_the_classes(imported, tmp_path):
    """Classes that the file lacks come last; an absent file orders nothing."""
    listed = [{"id": i, "name": name} for i, name in enumerate(("dog", "ant", "cat"))]
    (tmp_path / "a.json").write_text(json.dumps({"categories": listed}))
    meta = "metainfo=dict(classes=('cat', 'cow', 'dog')), data_root=''"
    result = imported(TRAIN.format(f"{meta}, ann_file={str(tmp_path / 'a.json')!r}"))
    found = result.values()
    assert found.datasets.coco_train.classes == ["dog", "cat", "cow"]
    assert found.train.init_checkpoint_classes == ["dog", "cat", "cow"]
    assert result.outcome("train_dataloader.dataset.metainfo.classes") == "differs"
    result = imported(TRAIN.format(f"{meta}, ann_file='absent.json'"))
    assert result.values().datasets.coco_train.classes == ["cat", "cow", "dog"]
    assert result.values().train.init_checkpoint_classes == []
    outcome, became = result.row("train_dataloader.dataset.metainfo.classes")
    assert outcome == "set" and became.endswith("orders them as absent.json, which cannot be read")


def test_data_roots_that_differ(imported):
    found = imported(TRAIN.format("data_root='/x/birds/'")).values()
    assert "root" not in found.data
    assert found.datasets.birds_train.json_file == "/x/birds/annotations/instances_train2017.json"
    assert found.datasets.coco_val.image_root == "data/coco/val2017"


def test_joined_repeated_and_balanced_datasets(imported):
    leaf = "dict(type='CocoDataset', ann_file='{}.json', data_root='', pipeline=[])"
    join = f"dict(type='ConcatDataset', datasets=[{leaf.format('a')}, {leaf.format('b')}])"
    repeat = f"dict(type='RepeatDataset', times=3, dataset={join})"
    balanced = (
        f"dict(_delete_=True, type='ClassBalancedDataset', oversample_thr=1e-3, dataset={repeat})"
    )
    found = imported(f"train_dataloader = dict(dataset={balanced})")
    train = found.values().dataloader.train.dataset
    assert train.names == ["coco_train_1", "coco_train_2"] and train.repeat == 3
    assert train.oversample_threshold == 1e-3 and train.filter_empty is False
    assert found.outcome("train_dataloader.dataset.dataset.times") == "set"


def test_voc(imported):
    leaf = (
        "dict(_delete_=True, type='VOCDataset', data_root='data/VOCdevkit/',"
        " ann_file='VOC2007/ImageSets/Main/{}.txt', data_prefix=dict(sub_data_root='VOC2007/'),"
        " filter_cfg=dict(filter_empty_gt=True, min_size=32, bbox_min_size=16), pipeline=[])"
    )
    result = imported(
        f"train_dataloader = dict(dataset={leaf.format('trainval')})\n"
        f"val_dataloader = dict(dataset={leaf.format('test')})\n"
        "test_dataloader = val_dataloader\n"
        "val_evaluator = dict(_delete_=True, type='VOCMetric', eval_mode='11points')\n"
        "test_evaluator = val_evaluator"
    )
    found = result.values()
    train = found.datasets.vocdevkit_train
    assert train["list_file"] == "data/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt"
    assert train["annotation_root"] == "data/VOCdevkit/VOC2007/Annotations"
    assert train["image_root"] == "data/VOCdevkit/VOC2007/JPEGImages"
    assert train["min_box_side"] == 16 and "min_box_side" not in found.datasets.vocdevkit_val
    metric = found.evaluators.voc  # boxes of voc_dataset end after their last pixel
    assert (metric.mode, metric.iou_thresholds) == ("11points", [0.5]) and "plus_one" not in metric
    assert result.outcome("train_dataloader.dataset.type") == "differs"


def test_the_voc_metric_of_other_datasets(imported):
    """MMDetection's metric adds a pixel to all boxes; its mode is 11 points by default."""
    metric = "dict(_delete_=True, type='VOCMetric')"
    found = imported(f"val_evaluator = {metric}\ntest_evaluator = {metric}").values()
    assert found.evaluators.voc.mode == "11points" and found.evaluators.voc.plus_one is True


def test_open_images(imported):
    leaf = (
        "dict(_delete_=True, type='OpenImagesDataset', data_root='data/OpenImages/',"
        " ann_file='annotations/b.csv', data_prefix=dict(img='OpenImages/train/'),"
        " label_file='annotations/c.csv', hierarchy_file='annotations/h.json', meta_file='m.pkl',"
        " image_level_ann_file='i.csv', pipeline=[])"
    )
    result = imported(
        f"train_dataloader = dict(dataset={leaf})\nval_dataloader = dict(dataset={leaf})\n"
        "test_dataloader = val_dataloader\n"
        "val_evaluator = dict(_delete_=True, type='OpenImagesMetric', iou_thrs=0.5, ioa_thrs=0.5,"
        " use_group_of=True, get_supercategory=True)\ntest_evaluator = val_evaluator"
    )
    found = result.values()
    train = found.datasets.openimages_train
    assert train["annotation_file"] == "data/OpenImages/annotations/b.csv"
    assert train["class_file"] == "data/OpenImages/annotations/c.csv"
    assert found.evaluators.open_images.hierarchy_file == "data/OpenImages/annotations/h.json"
    assert result.outcome("val_dataloader.dataset.image_level_ann_file") == "differs"
    outcome, became = result.row("train_dataloader.dataset.type")
    assert outcome == "differs" and became.endswith("boxes of groups are not trained on")
    assert result.outcome("val_dataloader.dataset.type") == "set"


def test_cityscapes_has_several_metrics(imported):
    result = imported(
        "d = dict(type='CityscapesDataset', data_root='data/cityscapes/')\n"
        "train_dataloader = dict(dataset=d)\nval_dataloader = dict(dataset=d)\n"
        "test_dataloader = val_dataloader\n"
        "val_evaluator = [dict(type='CocoMetric', metric='bbox'), dict(type='CityScapesMetric',"
        " seg_prefix='data/cityscapes/gtFine/val', outfile_prefix='x')]\n"
        "test_evaluator = val_evaluator"
    )
    found = result.values()
    assert found.datasets.cityscapes_train.classes[:2] == ["person", "rider"]
    assert found.evaluators.cityscapes.gt_dir == "data/cityscapes/gtFine/val"
    assert found.evaluators.coco.tasks == ["bbox"]


def test_another_dataset_needs_the_users_data(imported):
    result = imported(
        "\n".join(f"{s}_dataloader = dict(dataset=dict(type='Mine'))" for s in ("train", "val"))
    )
    found = result.values()
    assert found.dataloader.train.dataset.names == "custom_train" and "train" in found.data
    assert result.row("train_dataloader.dataset.type")[0] == "differs"


def test_a_test_set_of_its_own(imported):
    result = imported(
        "test_dataloader = dict(dataset=dict(ann_file='t.json'))\n"
        "test_evaluator = dict(metric='bbox', ann_file='t.json')"
    )
    found = result.values()
    assert found.dataloader.test.dataset.names == "coco_test"
    assert found.datasets.coco_test.json_file == "data/coco/t.json"
    assert found.evaluators.coco_test.coco.tasks == ["bbox"]


@pytest.mark.parametrize(
    ("step", "made"),
    [
        (
            "dict(type='Resize', scale=(1000, 600), keep_ratio=True)",
            {"_target_": "ResizeShortestEdge", "short_edge_length": 600, "max_size": 1000},
        ),
        (
            "dict(type='mmdet.Resize', scale=(300, 200))",
            {"_target_": "Resize", "shape": [200, 300]},
        ),
        (
            "dict(type='RandomChoiceResize', scales=[(90, 60), (90, 70)], keep_ratio=True)",
            {
                **{"_target_": "ResizeShortestEdge", "short_edge_length": [60, 70]},
                **{"sample_style": "choice", "max_size": 90},
            },
        ),
        (
            "dict(type='RandomResize', scale=[(90, 60), (90, 70)], keep_ratio=True)",
            {
                **{"_target_": "ResizeShortestEdge", "short_edge_length": [60, 70]},
                **{"sample_style": "range", "max_size": 90},
            },
        ),
        (
            "dict(type='RandomResize', scale=(64, 64), ratio_range=(0.1, 2.0), keep_ratio=True)",
            {
                **{"_target_": "ResizeScale", "min_scale": 0.1, "max_scale": 2.0},
                **{"target_height": 64, "target_width": 64},
            },
        ),
        ("dict(type='RandomFlip', prob=0.5)", {"_target_": "RandomFlip", "horizontal": True}),
        (
            "dict(type='RandomFlip', prob=0.3, direction='vertical')",
            {"_target_": "RandomFlip", "prob": 0.3, "horizontal": False, "vertical": True},
        ),
        (
            "dict(type='PhotoMetricDistortion', hue_delta=9, contrast_range=(0.6, 1.4))",
            {
                **{"_target_": "PhotoMetricDistortion", "contrast_range": [0.6, 1.4]},
                **{"hue_delta": 9, "image_format": "${model.input_format}"},
            },
        ),
    ],
)
def test_steps_of_a_pipeline(imported, step, made):
    result = imported(_pipeline(step))
    assert _augmentations(result) == [made]
    assert not [f for f in result.fields("differs") if f.startswith("train_dataloader")]


@pytest.mark.parametrize(
    ("kind", "size", "made"),
    [
        ("absolute", (30, 20), [20, 30]),
        ("absolute_range", (20, 30), [20, 30]),
        ("relative", (0.3, 0.2), [0.2, 0.3]),
        ("relative_range", (0.3, 0.2), [0.3, 0.2]),
    ],
)
def test_sizes_of_crops(imported, kind, size, made):
    """Widths come first in MMDetection, except in ranges."""
    step = f"dict(type='RandomCrop', crop_type={kind!r}, crop_size={size})"
    [crop] = _augmentations(imported(_pipeline(step)))
    assert crop == {"_target_": "RandomCrop", "crop_type": kind, "crop_size": made}


def test_crops(imported):
    crop = "type='RandomCrop', crop_size=(300, 200), recompute_bbox=True, allow_negative_crop=True"
    result = imported(_pipeline(f"dict({crop})").replace("with_bbox", "with_mask=True, with_bbox"))
    made = {"_target_": "RandomCrop", "crop_type": "absolute", "crop_size": [200, 300]}
    assert _augmentations(result) == [made]
    assert result.values().dataloader.train.mapper.recompute_boxes is True


@pytest.mark.parametrize(
    "step",
    [
        "dict(type='Resize', scale_factor=0.5)",
        "dict(type='RandomChoiceResize', scales=[(90, 60), (80, 70)], keep_ratio=True)",
        "dict(type='RandomResize', scale=(90, 60), ratio_range=(0.5, 2), keep_ratio=True)",
        "dict(type='RandomFlip', prob=[0.2, 0.3], direction=['horizontal', 'vertical'])",
        "dict(type='RandomCrop', crop_size=(9, 9), allow_negative_crop=False)",
        "dict(type='Pad', size=(1024, 1024))",
        "dict(type='FilterAnnotations', min_gt_bbox_wh=(8, 8))",
        "dict(type='CachedMosaic', img_scale=(640, 640))",
        "dict(type='AutoAugment', policies=[])",
    ],
)
def test_steps_that_differ(imported, step):
    result = imported(_pipeline(step))
    assert any(
        f.startswith("train_dataloader.dataset.pipeline.2") for f in result.fields("differs")
    )
    assert result.fields("unknown") == []


def test_masks(imported):
    """Masks are read as the pipeline says; bitmaps as targets are named as a difference."""
    load = "dict(type='LoadAnnotations', with_bbox=True, with_mask=True{})"
    text = "train_dataloader = dict(dataset=dict(pipeline=[{}]))"
    polygons = imported(text.format(load.format(", poly2mask=False")))
    bitmaps = imported(text.format(load.format("")))
    boxes = imported(_pipeline("dict(type='PackDetInputs')"))
    assert polygons.values().dataloader.train.mapper.use_instance_mask is True
    field = "train_dataloader.dataset.pipeline.0.with_mask"
    assert polygons.outcome(field) == "set" and bitmaps.outcome(field) == "differs"
    assert boxes.values().dataloader.train.mapper.use_instance_mask is False


@pytest.mark.parametrize(
    ("loader", "field", "outcome"),
    [
        ("sampler=dict(type='ClassAwareSampler')", "sampler.type", "differs"),
        ("sampler=dict(shuffle=False)", "sampler.shuffle", "differs"),
        ("batch_sampler=dict(type='MyBatches')", "batch_sampler.type", "differs"),
        ("drop_last=True", "drop_last", "unused"),
        ("my_field=1", "my_field", "unknown"),
    ],
)
def test_loaders(imported, loader, field, outcome):
    result = imported(f"train_dataloader = dict({loader})")
    assert result.outcome(f"train_dataloader.{field}") == outcome


def test_batches_of_mixed_orientation(imported):
    result = imported("train_dataloader = dict(batch_sampler=None)")
    assert result.values().dataloader.train.aspect_ratio_grouping is False


def test_training_without_validation(imported):
    """Nothing is evaluated."""
    text = "val_dataloader = test_dataloader = val_evaluator = test_evaluator = None\n"
    result = imported(f"{text}val_cfg = test_cfg = None")
    found = result.values()
    assert found.train.eval_period == 0 and found.evaluators == {}
    assert result.fields("unknown") == []


def test_metrics_that_are_not_computed(imported):
    result = imported("val_evaluator = dict(_delete_=True, type='DumpDetResults', out='x')")
    assert result.outcome("val_evaluator.type") == "differs"
    assert "coco" in result.values().evaluators
