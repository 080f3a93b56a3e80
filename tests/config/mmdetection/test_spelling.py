"""Configs of MMDetection 2.x give the same result as those of 3.x."""

import pytest

from d2ext.config.mmdetection.importer import translate
from d2ext.config.mmdetection.read import read_config
from d2ext.config.mmdetection.spelling import spelled
from d2ext.errors import UserError

# The changes of MMDetection 3.x to what 2.x wrote for Mask R-CNN R50, caffe style, multi-scale.
OLD = """
_base_ = {model!r}
model = dict(pretrained='open-mmlab://detectron2/resnet50_caffe', data_preprocessor=None,
    backbone=dict(norm_cfg=dict(requires_grad=False), style='caffe', init_cfg=None))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    dict(type='Resize', img_scale=[(1333, 640), (1333, 672), (1333, 704), (1333, 736),
        (1333, 768), (1333, 800)], multiscale_mode='value', keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='RandomFlip'),
        dict(type='Normalize', **img_norm_cfg),
        dict(type='Pad', size_divisor=32),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img']),
    ]),
]
data_root = 'data/coco/'
dataset_type = 'CocoDataset'
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=2,
    train=dict(type=dataset_type, ann_file=data_root + 'annotations/instances_train2017.json',
        img_prefix=data_root + 'train2017/', pipeline=train_pipeline),
    val=dict(type=dataset_type, ann_file=data_root + 'annotations/instances_val2017.json',
        img_prefix=data_root + 'val2017/', pipeline=test_pipeline),
    test=dict(type=dataset_type, ann_file=data_root + 'annotations/instances_val2017.json',
        img_prefix=data_root + 'val2017/', pipeline=test_pipeline))
evaluation = dict(interval=1, metric=['bbox', 'segm'])
optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[8, 11])
runner = dict(type='EpochBasedRunner', max_epochs=12)
checkpoint_config = dict(interval=1)
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])
custom_hooks = [dict(type='NumClassCheckHook')]
dist_params = dict(backend='nccl')
log_level = 'INFO'
load_from = None
resume_from = None
workflow = [('train', 1)]
opencv_num_threads = 0
mp_start_method = 'fork'
auto_scale_lr = dict(enable=False, base_batch_size=16)
"""


def test_a_config_of_2_gives_what_that_of_3_gives(imported):
    from tests.config.mmdetection.conftest import CONFIGS

    model = str(CONFIGS / "_base_" / "models" / "mask-rcnn_r50_fpn.py")
    old = imported(OLD.format(model=model))
    new = imported(base="mask_rcnn/mask-rcnn_r50-caffe_fpn_ms-poly-1x_coco.py")
    # 2.x has paths in place of data_root.
    mine = old.text.replace('"data/coco/', '"${data.root}/').replace("data = dict()", "")
    assert [line for line in mine.splitlines() if line] == [
        line for line in new.text.splitlines() if line and not line.startswith("data = ")
    ]
    assert old.fields("unknown") == [] and old.fields("differs") == []
    assert old.row("data.samples_per_gpu") == new.row("train_dataloader.batch_size")
    for name in (
        "model.pretrained",
        "optimizer.lr",
        "lr_config",
        "runner.max_epochs",
        "evaluation",
    ):
        rows = [row for row in old.translation.rows if row.field.startswith(name)]
        assert rows and all(row.outcome == "set" for row in rows), name
    assert old.outcome("data.train.pipeline.2.img_scale") == "set"
    assert old.outcome("data.val.pipeline.1.transforms.0.keep_ratio") == "set"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"fp16": {"loss_scale": 512.0}}, {"optim_wrapper": {"loss_scale": 512.0}}),
        (
            {"optimizer_config": {"grad_clip": {"max_norm": 35, "norm_type": 2}}},
            {"optim_wrapper": {"clip_grad": {"max_norm": 35, "norm_type": 2}}},
        ),
        (
            {"optimizer": {"type": "SGD", "paramwise_cfg": {"norm_decay_mult": 0}}},
            {"optim_wrapper": {"paramwise_cfg": {"norm_decay_mult": 0}}},
        ),
        (
            {"optimizer_config": {"cumulative_iters": 4}},
            {"optim_wrapper": {"accumulative_counts": 4}},
        ),
        ({"total_epochs": 24}, {"train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 24}}),
        (
            {"runner": {"type": "IterBasedRunner", "max_iters": 9}},
            {"train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 9}},
        ),
        ({"resume_from": "a.pth"}, {"load_from": "a.pth", "resume": True}),
        ({"dist_params": {"port": 29501}}, {"env_cfg": {"dist_cfg": {"port": 29501}}}),
        ({"seed": 3}, {"randomness": {"seed": 3}}),
        (
            {"checkpoint_config": {"interval": 4}},
            {"default_hooks": {"checkpoint": {"interval": 4}}},
        ),
        (
            {"log_config": {"hooks": [{"type": "TensorboardLoggerHook"}]}},
            {"vis_backends": [{"type": "TensorboardVisBackend"}]},
        ),
        (
            {"evaluation": {"interval": 2, "save_best": "bbox_mAP"}, "data": {}},
            {
                "train_cfg": {"val_interval": 2},
                "default_hooks": {"checkpoint": {"save_best": "coco/bbox_mAP"}},
            },
        ),
        (
            {"lr_config": {"policy": "CosineAnnealing", "min_lr_ratio": 0.1}},
            {
                "param_scheduler": [
                    {"type": "CosineAnnealingLR", "eta_min_ratio": 0.1, "by_epoch": True}
                ]
            },
        ),
        (
            {"lr_config": {"policy": "poly", "power": 0.9, "by_epoch": False}},
            {
                "param_scheduler": [
                    {"type": "PolyLR", "power": 0.9, "eta_min": 0, "by_epoch": False}
                ]
            },
        ),
        (
            {"model": {"pretrained": "a"}, "train_cfg": {"rpn": 1}, "test_cfg": {"rcnn": 2}},
            {
                "model": {
                    "train_cfg": {"rpn": 1},
                    "test_cfg": {"rcnn": 2},
                    "backbone": {"init_cfg": {"type": "Pretrained", "checkpoint": "a"}},
                }
            },
        ),
    ],
)
def test_spellings(old, new):
    values = spelled(old).values

    def contains(found, expected):
        if isinstance(expected, dict):
            return all(k in found and contains(found[k], v) for k, v in expected.items())
        return found == expected

    assert contains(values, new), values
    assert not set(old) - {"model", "train_cfg"} & set(values) or set(old) & set(new)


@pytest.mark.parametrize(
    ("step", "made"),
    [
        (
            {"type": "Resize", "img_scale": [(9, 5), (9, 7)], "multiscale_mode": "range"},
            {"type": "RandomResize", "scale": [(9, 5), (9, 7)], "keep_ratio": True},
        ),
        (
            {"type": "Resize", "img_scale": (8, 8), "ratio_range": (0.1, 2)},
            {"type": "RandomResize", "scale": (8, 8), "ratio_range": (0.1, 2), "keep_ratio": True},
        ),
        (
            {"type": "Resize", "img_scale": [(9, 5)], "keep_ratio": False},
            {"type": "Resize", "scale": (9, 5), "keep_ratio": False},
        ),
        ({"type": "RandomFlip", "flip_ratio": 0.2}, {"type": "RandomFlip", "prob": 0.2}),
    ],
)
def test_steps(step, made):
    spelling = spelled(
        {"data": {"train": {"type": "CocoDataset", "pipeline": [step]}}, "model": {}}
    )
    assert spelling.values["train_dataloader"]["dataset"]["pipeline"] == [made]
    assert (
        spelling.original("train_dataloader.dataset.pipeline.0.type")
        == "data.train.pipeline.0.type"
    )


def test_datasets():
    """Lists of files join; classes and prefixes move; filters are those of 2.x."""
    leaf = {"type": "CocoDataset", "ann_file": ["a", "b"], "img_prefix": ["x", "y"]}
    leaf |= {"classes": ["cat"], "pipeline": [{"type": "Pad"}]}
    repeat = {"type": "RepeatDataset", "times": 2, "dataset": leaf}
    voc = {"type": "VOCDataset", "ann_file": "c", "img_prefix": "VOC2007/", "test_mode": True}
    spelling = spelled({"data": {"train": repeat, "val": voc, "samples_per_gpu": 3}})
    found = spelling.values["train_dataloader"]
    parts = found["dataset"]["dataset"]["datasets"]
    assert found["batch_size"] == 3
    assert [part["ann_file"] for part in parts] == ["a", "b"]
    assert parts[1]["data_prefix"] == {"img": "y"}
    assert parts[0]["metainfo"] == {"classes": ["cat"]}
    assert parts[0]["filter_cfg"] == {"filter_empty_gt": True, "min_size": 32}
    name = "train_dataloader.dataset.dataset.datasets.0"
    assert spelling.original(f"{name}.ann_file") == "data.train.dataset.ann_file"
    assert spelling.original(f"{name}.metainfo.classes") == "data.train.dataset.classes"
    val = spelling.values["val_dataloader"]["dataset"]
    assert val["data_prefix"] == {"sub_data_root": "VOC2007/"} and "filter_cfg" not in val
    metric = {"type": "VOCMetric", "metric": "mAP", "eval_mode": "11points"}
    assert spelling.values["val_evaluator"] == metric
    names = [f"train_dataloader.dataset.dataset.datasets.{i}.pipeline.0" for i in (0, 1)]
    assert [spelling.original(name) for name in names] == ["data.train.dataset.pipeline.0", ""]


def test_the_year_of_voc():
    """2.x averages precisions at 11 recalls for VOC 2007 only."""
    leaf = {"type": "VOCDataset", "ann_file": "c", "img_prefix": "VOC2012/"}
    values = spelled({"data": {"val": leaf}}).values
    assert values["val_evaluator"]["eval_mode"] == "area"


def test_proposals_of_early_versions():
    rpn = {"nms_post": 1000, "max_num": 900, "nms_thr": 0.6, "nms_across_levels": False}
    late = {"max_per_img": 1, "max_num": 2, "nms": {"type": "nms"}, "nms_thr": 0.7}
    spelling = spelled(
        {"model": {}, "train_cfg": {"rpn_proposal": rpn}, "test_cfg": {"rpn": {"nms_post": 5}}}
    )
    made = spelling.values["model"]
    assert made["train_cfg"]["rpn_proposal"] == {
        **{"nms_post": 1000, "max_per_img": 900, "nms_across_levels": False},
        **{"nms": {"type": "nms", "iou_threshold": 0.6}},
    }
    assert made["test_cfg"]["rpn"] == {"max_per_img": 5}
    name = "model.train_cfg.rpn_proposal.nms.iou_threshold"
    assert spelling.original(name) == "train_cfg.rpn_proposal.nms_thr"
    assert (
        spelled({"model": {"test_cfg": {"rpn": late}}}).values["model"]["test_cfg"]["rpn"] == late
    )


def test_fields_of_2_are_listed_once_with_their_values(tmp_path):
    """The table has the fields and values of the file; the worst outcome of a field counts."""
    from tests.config.mmdetection.conftest import CONFIGS

    text = OLD.format(model=str(CONFIGS / "_base_" / "models" / "mask-rcnn_r50_fpn.py"))
    text = text.replace("flip=False", "flip=True").replace("resume_from = None", "")
    text += "resume_from = 'a.pth'\nfp16 = dict(loss_scale=512.)\n"
    path = tmp_path / "old.py"
    path.write_text(text)
    values = read_config(path)
    rows = {row.field: row for row in translate(values, path).rows}
    for name, row in rows.items():
        value = values
        for part in name.split("."):
            value = value[int(part) if isinstance(value, list | tuple) else part]
        assert value == row.value, name
    assert not [name for name in rows if any(other.startswith(f"{name}.") for other in rows)]
    assert rows["resume_from"].outcome == rows["fp16.loss_scale"].outcome == "differs"
    assert rows["data.val.pipeline.1.flip"].outcome == "differs"
    assert rows["data.val.pipeline.1.img_scale"].outcome == "set"
    assert rows["lr_config.warmup_ratio"].became == (
        "train.warmup_iters=500, lr_multiplier.warmup_factor=0.001"
    )
    assert [row for row in rows.values() if row.outcome == "unknown"] == []
    assert rows["img_norm_cfg"].became == "a variable; see data"


def test_a_config_without_normalization(imported):
    with pytest.raises(UserError, match="no normalization found in the config .img_norm_cfg or"):
        imported("model = dict(data_preprocessor=None)")


def test_a_config_of_3_is_not_changed():
    values = {
        "model": {"type": "A", "train_cfg": {}},
        "train_cfg": {"type": "EpochBasedTrainLoop"},
        "test_cfg": {"type": "TestLoop"},
        "load_from": None,
        "train_dataloader": {"dataset": {"pipeline": [{"type": "Resize", "scale": (2, 1)}]}},
    }
    spelling = spelled(values)
    assert spelling.values == values and spelling.names == {}
