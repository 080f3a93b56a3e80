"""Configs with wrong values are reported, and nothing is half-written."""

import copy
import functools
import itertools
import os
from pathlib import Path

import pytest

import d2ext
from d2ext.config import recipes
from d2ext.config.augmentation import with_augmentation
from d2ext.config.mmdetection.importer import import_config, translate
from d2ext.config.mmdetection.read import read_config
from d2ext.errors import UserError

CONFIGS = Path(__file__).parent / "configs"
BALLOON = CONFIGS / "balloon" / "mask-rcnn_r50-caffe_fpn_ms-poly-1x_balloon.py"
MORE = """
optim_wrapper = dict(
    type='AmpOptimWrapper', clip_grad=dict(max_norm=35), paramwise_cfg=dict(norm_decay_mult=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='StepLR', step_size=6, gamma=0.1)]
custom_hooks = [dict(type='EMAHook', momentum=0.001)]
default_hooks = dict(checkpoint=dict(save_best='auto'))
randomness = dict(seed=3)
"""
OLD = """
model = dict(type='MaskRCNN')
data = dict(
    samples_per_gpu=2, workers_per_gpu=2,
    train=dict(type='RepeatDataset', times=2, dataset=dict(
        type='CocoDataset', ann_file='a.json', img_prefix='a', classes=('a',), pipeline=[
            dict(type='Resize', img_scale=[(1333, 640), (1333, 800)], keep_ratio=True),
            dict(type='RandomFlip', flip_ratio=0.5),
            dict(type='Normalize', mean=[1, 2, 3], std=[1, 1, 1], to_rgb=True)])),
    val=dict(type='CocoDataset', ann_file='a.json', img_prefix='a', pipeline=[dict(
        type='MultiScaleFlipAug', img_scale=(1333, 800), transforms=[dict(type='Resize')])]))
optimizer = dict(type='SGD', lr=0.02)
optimizer_config = dict(grad_clip=dict(max_norm=1))
lr_config = dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[8])
runner = dict(type='EpochBasedRunner', max_epochs=12)
checkpoint_config = dict(interval=1)
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])
evaluation = dict(interval=1, metric=['bbox'], save_best='bbox_mAP')
fp16 = dict(loss_scale=512.)
"""
ALIKE = ("train_pipeline", "test_pipeline", "test_dataloader", "test_evaluator")
WRONG = ["four", 0, -3, [], {}, None, [[1]], {"type": 5}, 0.5, True]


@pytest.fixture
def cached_recipes(monkeypatch):
    """Load each recipe once; translators only read them."""
    monkeypatch.setattr(recipes, "get_config", functools.cache(recipes.get_config))


@pytest.fixture
def configs(tmp_path):
    """Return the values of a config in the spelling of 3.x, and of one of 2.x."""
    (tmp_path / "new.py").write_text(f"_base_ = {str(BALLOON)!r}\n{MORE}")
    new, old = read_config(tmp_path / "new.py"), {}
    (tmp_path / "old.py").write_text(OLD)
    old = read_config(tmp_path / "old.py")
    model = {k: v for k, v in new["model"].items() if k != "data_preprocessor"}
    return {"new": new, "old": {**old, "model": model}}


def _places(value, place=()):
    """Return the keys that lead to each part of a value."""
    if place:
        yield place
    parts = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple):
        parts = enumerate(value)
    for key, part in parts:
        yield from _places(part, (*place, key))


def _changed(values, place, change):
    """Return a copy in which a part is replaced, or removed from its dict."""
    values = copy.deepcopy(values)
    owner = values
    for key in place[:-1]:
        if isinstance(owner[key], tuple):
            owner[key] = list(owner[key])
        owner = owner[key]
    if change == "remove" and isinstance(owner, dict):
        del owner[place[-1]]
    else:
        owner[place[-1]] = change
    return values


@pytest.mark.parametrize("which", ["new", "old"])
def test_wrong_values_are_errors_of_the_user(configs, cached_recipes, which):
    """Parts of a config are removed or replaced, one at a time: only UserErrors are raised."""
    sections = {name: v for name, v in configs[which].items() if name not in ALIKE}
    failed = 0
    places = list(_places(sections))[:: 2 if which == "new" else 1]  # half of them, for time
    for place, change in zip(places, itertools.cycle(["remove", *WRONG]), strict=False):
        try:
            translate(_changed(configs[which], place, change), Path("mine.py"))
        except UserError as e:
            failed += 1
            assert "\n" not in str(e)
    assert failed > 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train_dataloader = dict(batch_size='4')",
            r"the optimizer, schedule and hooks: a value .* MMDetection expects \(TypeError: .*\);"
            r" the last fields read were .*train_dataloader\.batch_size",
        ),
        ("train_dataloader = dict(batch_size=0)", "train_dataloader"),
        ("train_cfg = dict(max_epochs='twelve')", r"\(ValueError: .*'twelve'\); .*\.max_epochs"),
        (
            "param_scheduler = [dict(type='StepLR')]",
            r"\(KeyError: 'step_size'\); .*param_scheduler\.0\.step_size",
        ),
        (
            "model = dict(roi_head=dict(bbox_head=[]))",
            r"the model: .*\(IndexError: .*model\.roi_head\.bbox_head",
        ),
        ("train_dataloader = dict(dataset=dict(pipeline=5))", "the data: .*dataset.pipeline"),
    ],
)
def test_an_error_names_the_section(imported, text, message):
    with pytest.raises(UserError, match=f"mine.py: .*{message}"):
        imported(text)


def test_neither_file_is_left_without_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f".mine.md.{os.getpid()}.tmp").mkdir()  # the table cannot be written
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"cannot write mine\.md"):
        import_config(BALLOON, output=Path("mine.py"))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "text",
    [
        'optim_wrapper = dict(optimizer={\'nesterov=False\\nimport os\\nos.system("touch ran")'
        "\\noptimizer.nesterov': False})",
        "optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam',"
        ' **{\'eps=__import__("os").system("touch ran"), lr\': 0.1}))',
        "load_from = '${oc.env:HOME}'",
        "train_dataloader = dict(dataset=dict(data_root='a\"); import os; os.system(\"touch ran'))",
    ],
)
def test_a_config_is_never_executed(tmp_path, monkeypatch, text):
    """Names and values that look like code, calls or interpolations stay data."""
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text(f"_base_ = {str(BALLOON)!r}\n{text}\n")
    import_config(Path("a.py"), output=Path("mine.py"))
    start = d2ext.load_config("mine.py").train.init_checkpoint
    assert not Path("ran").exists() and start != os.environ["HOME"]


@pytest.mark.parametrize(
    "text",
    [
        "optim_wrapper = dict(optimizer=dict(dampening=CALL))",
        "load_from = CALL",
        "train_dataloader = dict(num_workers=CALL)",
        "train_dataloader = dict(dataset=dict(metainfo=dict(classes=[CALL])))",
    ],
)
def test_calls_in_a_config_are_errors(imported, text):
    """Detectron2 would call a `_target_` when it builds the run."""
    with pytest.raises(UserError):
        imported(text.replace("CALL", "dict(_target_='os.system', command='touch ran')"))


def test_an_imported_config_takes_presets(imported, tmp_path):
    """Its own distortions are replaced; its crop stays."""
    steps = [
        "dict(type='LoadImageFromFile')",
        "dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False)",
        "dict(type='PhotoMetricDistortion')",
        "dict(type='RandomCrop', crop_size=(300, 200))",
        "dict(type='RandomFlip', prob=0.5)",
    ]
    text = f"train_dataloader = dict(dataset=dict(pipeline=[{', '.join(steps)}]))\n"
    (tmp_path / "theirs.py").write_text(imported(text).text)
    cfg = d2ext.load_config(tmp_path / "theirs.py", ["data.augmentation=aerial"])
    names = [
        str(getattr(node._target_, "__name__", node._target_)).rpartition(".")[2]
        for node in with_augmentation(cfg).dataloader.train.mapper.augmentations
    ]
    assert names == ["RandomCrop", "RandomFlip", "RandomQuarterTurn", "ColorJitter"]
