"""Scaling from the workers a recipe was tuned for to those of a run."""

import copy
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from d2ext.config.load import load_config
from d2ext.config.lr_scaling import Change, check_batch, check_name, scale_config
from d2ext.errors import UserError
from tests.conftest import checkout_env

EPOCHS = "1 epoch"
BATCH = "dataloader.train.total_batch_size"


def _config(workers=8, batch=16, **fields):
    """Return a recipe like those of configs/common; `fields` are keys with `__` for the dot."""
    cfg = OmegaConf.create(
        dict(
            train=dict(
                max_epochs=None,
                max_iter=90_000,
                eval_period=5000,
                checkpointer=dict(period=EPOCHS),
                warmup_iters=500,
                reference_world_size=workers,
                reference_batch_size=batch,
                auto_scale_lr=dict(enabled=False, rule=None),
                accumulate=1,
            ),
            dataloader=dict(train=dict(total_batch_size="${train.reference_batch_size}")),
            optimizer=dict(_target_="torch.optim.SGD", params=dict(), lr=0.02),
            lr_multiplier=dict(scheduler=dict(values=[1.0, 0.1], milestones=[2, 3])),
        )
    )
    for key, value in fields.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def _get(cfg, field):
    value = OmegaConf.select(cfg, field)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _changes(report):
    return {c.field: (c.before, c.after) for c in report.changes}


def test_the_example_of_mmdetection():
    cfg = _config(4, 8, optimizer__lr=0.01, dataloader__train__total_batch_size=64)
    scaled, report = scale_config(cfg, 16)
    assert scaled.optimizer.lr == 0.08
    assert scaled.dataloader.train.total_batch_size == 64
    assert (report.scale, report.lr_factor, report.rule) == (8, 8, "linear")
    assert _changes(report) == {
        "optimizer.lr": (0.01, 0.08),
        "train.max_iter": (90_000, 11_250),
        "train.eval_period": (5000, 625),
    }
    lines = report.lines()
    assert lines[0] == (
        "scaling     16 workers, 64 images per step; the recipe was tuned for 4 workers, 8:"
        " learning rates x 8 (linear)"
    )
    assert "            optimizer.lr 0.01 -> 0.08" in lines
    assert report.changes[0] == Change("optimizer.lr", 0.01, 0.08)


def test_images_per_worker_do_not_change():
    scaled, report = scale_config(_config(), 1)
    assert scaled.dataloader.train.total_batch_size == 2
    assert scaled.optimizer.lr == 0.0025
    assert scaled.train.max_iter == 720_000
    assert _changes(report)[BATCH] == (16, 2)


def test_epochs_never_and_warmup_iterations_do_not_change():
    epochs = dict(train__max_epochs=12, train__max_iter=None, train__eval_period="2 epochs")
    scaled, report = scale_config(_config(train__checkpointer__period=0, **epochs), 2)
    assert set(_changes(report)) == {"optimizer.lr", BATCH}
    assert scaled.train.checkpointer.period == 0
    assert scaled.train.warmup_iters == 500


WORLDS = st.integers(1, 64)
NUMBERS = st.integers(1, 100_000)


@st.composite
def _recipes(draw):
    workers, images = draw(WORLDS), draw(st.integers(1, 8))
    cfg = _config(workers, workers * images, optimizer__lr=draw(st.floats(1e-6, 1)))
    cfg.train.max_iter = draw(NUMBERS)
    cfg.train.eval_period = draw(NUMBERS | st.sampled_from([0, EPOCHS]))
    cfg.train.checkpointer.period = draw(NUMBERS | st.sampled_from([0, "${train.eval_period}"]))
    cfg.train.auto_scale_lr.rule = draw(st.sampled_from([None, "linear", "sqrt"]))
    if draw(st.booleans()):
        del cfg.train.warmup_iters
        cfg.lr_multiplier.warmup_length = draw(st.floats(0, 1))
    return cfg


@settings(deadline=None)  # a busy machine is not a failure
@given(_recipes(), WORLDS, st.none() | st.integers(1, 8))
def test_scaling_is_idempotent_and_proportional(cfg, world_size, images):
    if images:
        cfg.dataloader.train.total_batch_size = world_size * images
    text = OmegaConf.to_yaml(cfg)
    scaled, report = scale_config(cfg, world_size)
    assert OmegaConf.to_yaml(cfg) == text, "the input has changed"

    again, second = scale_config(scaled, world_size)
    assert again == scaled
    assert OmegaConf.to_yaml(again) == OmegaConf.to_yaml(scaled)
    assert not second.changes
    assert len(second.lines()) == 1

    reference, batch = cfg.train.reference_batch_size, scaled.dataloader.train.total_batch_size
    per_worker = images or reference // cfg.train.reference_world_size
    assert batch == world_size * per_worker
    s = batch / reference
    factor = math.sqrt(s) if cfg.train.auto_scale_lr.rule == "sqrt" else s
    assert scaled.optimizer.lr == pytest.approx(cfg.optimizer.lr * factor)

    # Not fewer images than before, and less than one step more.
    extra = scaled.train.max_iter * batch - cfg.train.max_iter * reference
    assert 0 <= extra < batch
    for period in ("eval_period", "checkpointer.period"):
        before, after = _get(cfg.train, period), _get(scaled.train, period)
        if before in (0, EPOCHS):
            assert after == before
        else:
            assert after >= 1
            assert 0 <= after * batch - before * reference < batch
    if "warmup_iters" not in cfg.train:
        before = cfg.lr_multiplier.warmup_length * cfg.train.max_iter
        after = scaled.lr_multiplier.warmup_length * scaled.train.max_iter
        cap = max(cfg.lr_multiplier.warmup_length, 0.5) * scaled.train.max_iter
        assert after == pytest.approx(min(before, cap))


@settings(deadline=None)
@given(_recipes())
def test_the_reference_world_size_changes_nothing(cfg):
    scaled, report = scale_config(cfg, cfg.train.reference_world_size)
    assert OmegaConf.to_yaml(scaled) == OmegaConf.to_yaml(cfg)
    assert report.scale == 1
    assert not report.changes
    assert len(report.lines()) == 1
    assert "none" in report.lines()[0]


def test_a_scaled_config_cannot_be_scaled_for_another_world_size():
    scaled, report = scale_config(_config(), 4)
    assert "already scaled for" in scale_config(scaled, 4)[1].lines()[0]
    with pytest.raises(UserError, match="already scaled for 4 workers, not 2"):
        scale_config(scaled, 2)


def test_each_learning_rate_is_scaled_once():
    params = dict(
        base_lr="${..lr}",
        backbone_lr=1e-3,
        bias_lr_factor=2.0,
        overrides=dict(offset=dict(lr=0.5, weight_decay=0.0), query=dict(lr="${optimizer.lr}")),
    )
    cfg = _config(optimizer__params=params)
    scaled, report = scale_config(cfg, 16)
    assert _get(scaled, "optimizer.params") == dict(
        base_lr=0.04,
        backbone_lr=2e-3,
        bias_lr_factor=2.0,
        overrides=dict(offset=dict(lr=1.0, weight_decay=0.0), query=dict(lr=0.04)),
    )
    assert OmegaConf.is_interpolation(scaled.optimizer.params, "base_lr")
    assert _changes(report)["optimizer.params.overrides.offset.lr"] == (0.5, 1.0)


def test_a_separate_rate_and_one_outside_the_section():
    cfg = _config(optimizer__params__base_lr=0.1, optimizer__lr="${my.lr}", my=dict(lr=0.2))
    scaled, _ = scale_config(cfg, 16)
    assert (scaled.optimizer.params.base_lr, scaled.optimizer.lr) == (0.2, 0.4)
    assert scaled.my.lr == 0.2
    assert scale_config(scaled, 16)[0] == scaled


@pytest.mark.parametrize(
    ("optimizer", "rule", "factor", "warns"),
    [
        ("torch.optim.SGD", None, 4, False),
        ("torch.optim.SGD", "linear", 4, False),
        ("torch.optim.SGD", "sqrt", 2, True),
        ("torch.optim.AdamW", None, 2, False),
        ("torch.optim.adamw.AdamW", "sqrt", 2, False),
        ("torch.optim.AdamW", "linear", 4, True),
        ("torch.optim.RAdam", "linear", 4, True),
        ("timm.optim.Lamb", None, 2, False),
    ],
)
def test_the_optimizer_determines_the_rule(optimizer, rule, factor, warns):
    cfg = _config(train__auto_scale_lr__rule=rule)
    cfg.optimizer._target_ = optimizer
    scaled, report = scale_config(cfg, 32)
    assert scaled.optimizer.lr == 0.02 * factor
    assert bool(report.warnings) == warns
    assert any("suits it better" in line for line in report.lines()) == warns
    assert not scale_config(cfg, 8)[1].warnings


def test_a_config_without_auto_scale_lr_is_scaled_by_its_optimizer():
    cfg = _config()
    del cfg.train.auto_scale_lr
    scaled, _ = scale_config(cfg, 16)
    assert scaled.optimizer.lr == 0.04
    assert scale_config(scaled, 16)[0] == scaled


def test_relative_milestones_do_not_change():
    for milestones in ([8, 11, 12], [60_000, 80_000, 120_000]):
        cfg = _config(lr_multiplier__scheduler__milestones=milestones)
        assert _get(scale_config(cfg, 16)[0], "lr_multiplier") == _get(cfg, "lr_multiplier")


@pytest.mark.parametrize("end", [90_000, "${train.max_iter}"])
def test_milestones_in_iterations_are_divided(end):
    inside = _config(lr_multiplier__scheduler__milestones=[60_000, 80_001, end])
    scaled, report = scale_config(inside, 16)
    assert list(scaled.lr_multiplier.scheduler.milestones) == [30_000, 40_001, 45_000]
    assert "lr_multiplier.scheduler.milestones [60000, 80001, 90000] -> [30000, 40001, 45000]" in (
        line.strip() for line in report.lines()
    )
    beside = _config(lr_multiplier__scheduler=dict(milestones=[60_000, 80_000], num_updates=end))
    scheduler = scale_config(beside, 16)[0].lr_multiplier.scheduler
    assert (list(scheduler.milestones), scheduler.num_updates) == ([30_000, 40_000], 45_000)


def test_milestones_of_a_very_short_run_stay_distinct():
    cfg = _config(train__max_iter=9)
    cfg.lr_multiplier.scheduler = dict(milestones=[6, 8], num_updates="${train.max_iter}")
    scaled, _ = scale_config(cfg, 64)
    assert scaled.train.max_iter == 2
    assert _get(scaled, "lr_multiplier.scheduler") == dict(milestones=[6, 8], num_updates=9)


@pytest.mark.parametrize("world_size", [1, 4, 16, 128])
def test_the_schedule_of_detectron2_keeps_its_shape(world_size):
    from detectron2 import model_zoo
    from detectron2.config import instantiate

    cfg = _config(lr_multiplier=model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x)
    del cfg.train.warmup_iters
    scaled, _ = scale_config(cfg, world_size)
    before, after = instantiate(cfg.lr_multiplier), instantiate(scaled.lr_multiplier)
    # The same rate after the same fraction of the run, except in the warm-up (at most 18% of it),
    for progress in [0.2, 0.5, 0.66, 0.67, 0.88, 0.9, 0.999]:
        assert after(progress) == before(progress)
    # which takes the same number of iterations.
    for iteration in [0, 1, 500, 999]:
        expected = before(iteration / cfg.train.max_iter)
        assert after(iteration / scaled.train.max_iter) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("world_size", "fields", "words"),
    [
        (4, dict(train__reference_world_size=None), r"; give train\.reference_world_size=N"),
        (4, dict(train__reference_batch_size=0), "train.reference_batch_size=0: give"),
        (4, dict(train__reference_world_size="8"), "train.reference_world_size='8': give"),
        (2, dict(train__reference_world_size=3), "10.6667 images .* 2 workers.*=10 or 12$"),
        (1, dict(train__reference_world_size=32), "0.5 images .* 1 worker;.*=1$"),
        (8, dict(dataloader__train__total_batch_size=20), "20 images .* 8 workers;.*=16 or 24$"),
        (8, dict(dataloader__train__total_batch_size=3), "3 images .*size=8$"),
        (8, dict(dataloader__train__total_batch_size=0), f"{BATCH}=0: give 1"),
        (8, dict(dataloader__train__total_batch_size=1.5), f"{BATCH}=1.5: give a number"),
        (8, dict(dataloader__train__total_batch_size=None), f"{BATCH}=None: give a number"),
        (2, dict(train__accumulate=4), "4 images .* with 4 micro-batches .*size=8$"),
        (2, dict(train__accumulate=0), "train.accumulate=0: give 1"),
        (2, dict(train__accumulate=None), "train.accumulate=None: give 1"),
        (4, dict(train__auto_scale_lr__rule="cubic"), "rule='cubic': give linear or sqrt"),
        (4, dict(optimizer__lr="fast"), "optimizer.lr='fast'"),
        (4, dict(optimizer__lr=None), "optimizer.lr is not set"),
    ],
)
def test_invalid_input_names_the_field_and_the_fix(world_size, fields, words):
    with pytest.raises(UserError, match=words):
        scale_config(_config(**fields), world_size)


def test_the_suggested_override_of_a_missing_field_has_a_plus():
    cfg = _config()
    del cfg.train.reference_batch_size
    cfg.dataloader.train.total_batch_size = 16
    with pytest.raises(UserError, match=r"give \+train\.reference_batch_size=N"):
        scale_config(cfg, 4)


def test_accumulation_does_not_count_as_workers():
    scaled, _ = scale_config(_config(train__accumulate=2), 4)
    assert (scaled.dataloader.train.total_batch_size, scaled.optimizer.lr) == (8, 0.01)


@given(st.integers(1, 500), st.integers(1, 16), st.integers(1, 4))
def test_a_batch_divides_or_the_error_names_the_nearest(batch, world_size, accumulate):
    unit = world_size * accumulate
    if batch % unit == 0:
        check_batch(batch, world_size, accumulate)
        return
    with pytest.raises(UserError) as e:
        check_batch(batch, world_size, accumulate)
    nearest = [int(n) for n in str(e.value).rpartition("=")[2].split(" or ")]
    assert all(abs(n - batch) < unit for n in nearest)
    for n in nearest:
        check_batch(n, world_size, accumulate)


@pytest.mark.parametrize(
    ("name", "workers", "images"),
    [
        ("configs/a_1x2/faster_rcnn_r50_fpn_8x2_1x_coco.py", 8, 2),
        ("detr_r50_16x1.py", 16, 1),
        ("mask_rcnn_x101_32x4d_fpn_4x2_1x_coco", 4, 2),
    ],
)
def test_a_name_with_workers_and_images_is_checked(name, workers, images):
    check_name(name, workers, workers * images)
    with pytest.raises(UserError, match=f"train.reference_batch_size={workers * images} "):
        check_name(name, workers, workers * images + 1)
    with pytest.raises(UserError, match=f"train.reference_world_size={workers} "):
        check_name(name, 2 * workers, workers * images)


@pytest.mark.parametrize(
    "name", ["mask_rcnn_x101_64x4d_fpn_1x.py", "x_101_32x8d_fpn_3x", "r50_fpn_1x", "a8x2_b", "3x3"]
)
def test_other_names_are_not_checked(name):
    check_name(name, 1, 1)


def test_a_recipe_and_its_saved_copy_scale_the_same_way(repo, tmp_path):
    from detectron2.config import LazyConfig

    recipe = repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
    cfg = load_config(recipe)
    scaled, report = scale_config(cfg, 4)
    assert report.rule == "sqrt"  # AdamW
    assert _changes(report)[BATCH] == (4, 16)
    assert scaled.optimizer.params.base_lr == scaled.optimizer.lr > cfg.optimizer.lr
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    _, reloaded = scale_config(load_config(tmp_path / "config.yaml"), 4)
    assert _changes(reloaded) == _changes(report)
    _, mine = scale_config(load_config(recipe, [f"{BATCH}=8"]), 4)
    assert (mine.batch_size, mine.scale) == (8, 2)


def test_the_scaled_config_is_a_deep_copy():
    cfg = _config(optimizer__params__overrides=dict(offset=dict(lr=1.0)))
    before = copy.deepcopy(cfg)
    scaled, _ = scale_config(cfg, 16)
    scaled.optimizer.params.overrides.offset.lr = 7
    assert cfg == before


def test_the_import_needs_no_torch():
    code = "import sys, d2ext.config.lr_scaling; print({'torch', 'detectron2'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=checkout_env(), capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
