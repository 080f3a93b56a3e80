"""Optimizers, schedules, runners, hooks and weights of MMDetection's configs."""

import pytest
from omegaconf import OmegaConf

from d2ext.errors import UserError

SMOOTH = "convert_to_iter_based=True"
SCHEDULERS = "fvcore.common.param_scheduler"


def _scheduler(result):
    """Return the value of the schedule at points of the run, without the warm-up."""
    from detectron2.config import instantiate

    made = instantiate(result.values().lr_multiplier.scheduler)
    return [round(made(where), 6) for where in (0.0, 0.25, 0.5, 0.75, 0.999)]


def test_the_default_schedule(imported):
    found = imported().values()
    assert found.train.max_epochs == 12 and found.train.warmup_iters == 500
    assert found.lr_multiplier.warmup_factor == 0.001
    assert found.lr_multiplier.scheduler.milestones == [8, 11, 12]
    assert found.optimizer.lr == 0.02 and found.optimizer.params.weight_decay_norm is None
    assert (found.train.reference_world_size, found.train.reference_batch_size) == (8, 16)
    assert found.train.init_checkpoint.endswith("torchvision/R-50.pkl")


@pytest.mark.parametrize(
    ("schedulers", "values"),
    [
        ("[dict(type='MultiStepLR', milestones=[6], gamma=0.2)]", [1, 1, 0.2, 0.2, 0.2]),
        ("[dict(type='MultiStepLR', milestones=[99])]", [1, 1, 1, 1, 1]),
        ("[dict(type='StepLR', step_size=6)]", [1, 1, 0.1, 0.1, 0.1]),
        ("[]", [1, 1, 1, 1, 1]),
        (f"[dict(type='PolyLR', power=1, {SMOOTH})]", [1, 0.75, 0.5, 0.25, 0.001]),
        (
            f"[dict(type='CosineAnnealingLR', eta_min=0.002, T_max=12, {SMOOTH})]",
            [1, 0.868198, 0.55, 0.231802, 0.100002],
        ),
        (
            f"[dict(type='CosineAnnealingLR', begin=6, end=12, eta_min_ratio=0.0, {SMOOTH})]",
            [1, 1, 1, 0.5, 0.00001],
        ),
    ],
)
def test_schedules(imported, schedulers, values):
    result = imported(f"param_scheduler = {schedulers}")
    assert _scheduler(result) == pytest.approx(values, abs=1e-5)
    assert result.values().train.warmup_iters == 0
    assert not [name for name in result.fields("differs") if name.startswith("param_scheduler")]


@pytest.mark.parametrize(
    ("warmup", "fields"),
    [
        (
            "type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=1000",
            {"warmup_iters": 1000, "method": "linear", "factor": 0.1},
        ),
        (
            "type='ConstantLR', factor=0.5, by_epoch=False, begin=0, end=10",
            {"warmup_iters": 10, "method": "constant", "factor": 0.5},
        ),
        (
            "type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=3",
            {"warmup_iters": None, "method": "linear", "factor": 0.001, "length": 0.25},
        ),
    ],
)
def test_warm_ups(imported, warmup, fields):
    result = imported(
        f"param_scheduler = [dict({warmup}), dict(type='MultiStepLR', milestones=[8, 11])]"
    ).values()
    multiplier = result.lr_multiplier
    found = {"warmup_iters": result.train.warmup_iters, "method": multiplier.warmup_method}
    found |= {"factor": multiplier.warmup_factor}
    if "length" in fields:
        found["length"] = multiplier.warmup_length
    assert found == fields and multiplier.scheduler.milestones == [8, 11, 12]


@pytest.mark.parametrize(
    ("scheduler", "field", "words"),
    [
        ("type='PolyLR', power=1", "type", "PolyLR changes the rate once per epoch there"),
        ("type='CosineAnnealingLR', eta_min=0", "type", "CosineAnnealingLR changes the rate"),
        ("type='LinearLR', start_factor=1.0, end_factor=0.1, begin=2", "type", None),
        (f"type='CosineAnnealingLR', T_max=6, {SMOOTH}", "T_max", "the cosine ends with the"),
    ],
)
def test_schedules_that_differ(imported, scheduler, field, words):
    result = imported(f"param_scheduler = [dict({scheduler})]")
    outcome, became = result.row(f"param_scheduler.0.{field}")
    assert outcome == "differs" and (words is None or became.startswith(words))
    assert result.fields("unknown") == []


def test_a_warm_up_that_ends_at_another_rate_differs(imported):
    warmup = "type='LinearLR', start_factor=0.1, end_factor=0.5, by_epoch=False, end=1000"
    result = imported(f"param_scheduler = [dict({warmup})]")
    assert result.outcome("param_scheduler.0.end_factor") == "differs"
    assert result.row("param_scheduler.0.end") == (
        "set",
        "train.warmup_iters=1000, lr_multiplier.warmup_factor=0.1",
    )


def test_a_run_in_iterations(imported):
    found = imported(
        "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=90000,"
        " val_interval=10000)\n"
        "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500),"
        " dict(type='MultiStepLR', by_epoch=False, milestones=[60000, 80000])]\n"
        "default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000, max_keep_ckpts=1))"
    ).values()
    assert found.train.max_iter == 90000 and found.train.max_epochs is None
    assert found.train.eval_period == 10000
    assert OmegaConf.to_container(found.train.checkpointer) == {
        **{"period": 5000, "max_to_keep": 1, "asynchronous": False}
    }
    assert found.lr_multiplier.scheduler.milestones == [60000, 80000, 90000]


def test_steps_in_another_unit_differ(imported):
    result = imported(
        "param_scheduler = [dict(type='MultiStepLR', by_epoch=False, milestones=[9])]"
    )
    assert result.outcome("param_scheduler.0.milestones") == "differs"


@pytest.mark.parametrize(
    ("optimizer", "fields"),
    [
        ("type='SGD', lr=0.1", {"lr": 0.1, "momentum": 0, "weight_decay": 0}),
        ("type='SGD', lr=1, momentum=0.8, nesterov=True", {"lr": 1, "nesterov": True}),
        ("type='AdamW', lr=1e-4, betas=(0.8, 0.9)", {"betas": [0.8, 0.9], "weight_decay": 0.01}),
        ("type='Adam', lr=1e-3, weight_decay=0.1", {"lr": 1e-3, "weight_decay": 0.1}),
        ("type='RMSprop', lr=1e-3", {"lr": 1e-3}),
    ],
)
def test_optimizers(imported, optimizer, fields):
    from detectron2.config import instantiate
    from torch import nn

    result = imported(f"optim_wrapper = dict(optimizer=dict(_delete_=True, {optimizer}))")
    cfg = result.values().optimizer
    assert {name: cfg[name] for name in fields} == fields
    cfg.params.model = nn.Conv2d(1, 1, 1)
    made = instantiate(cfg)
    kind = optimizer.split("'")[1]
    assert type(made).__name__ == kind and result.fields("unknown") == []


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize(
    "name",
    [
        "nesterov=False\\nimport os\\nos.system('touch ran')\\noptimizer.nesterov",
        "eps=__import__('os').system('touch ran'), lr",
        "no_such_argument",
        "params",
        "_target_",
    ],
)
def test_only_arguments_of_the_optimizer_are_written(imported, tmp_path, kind, name):
    kinds = f"optim_wrapper = dict(optimizer=dict(_delete_=True, type='{kind}', lr=0.5))\n"
    result = imported(f'{kinds}optim_wrapper["optimizer"]["{name}"] = 0.25')
    assert "0.25" not in result.text and result.values().optimizer.lr == 0.5
    assert not (tmp_path / "ran").exists()
    [unknown] = result.fields("unknown")
    assert unknown.startswith("optim_wrapper.optimizer.")


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ("dampening=dict(_target_='os.system', command='touch ran')", "optimizer.dampening"),
        ("weight_decay='${oc.env:HOME}'", "optimizer.weight_decay"),
        ("dampening=[0.5, 'x']", "optimizer.dampening"),
        ("lr='0.01'", "optimizer.lr"),
        ("lr=None", "optimizer.lr"),
    ],
)
def test_arguments_of_the_optimizer_are_numbers(imported, argument, field):
    message = rf"optim_wrapper\.{field}=.* is neither a number nor a list of numbers"
    with pytest.raises(UserError, match=message):
        imported(f"optim_wrapper = dict(optimizer=dict({argument}))")


def test_factors_of_parameters_are_numbers(imported):
    factor = "bias_lr_mult=dict(_target_='os.system', command='touch ran')"
    with pytest.raises(UserError, match=r"paramwise_cfg\.bias_lr_mult=.* is neither a number"):
        imported(f"optim_wrapper = dict(paramwise_cfg=dict({factor}))")


def test_parameters_of_their_own(imported):
    result = imported(
        "optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0., bias_lr_mult=2.,"
        " bias_decay_mult=0.5, bypass_duplicate=True,"
        " custom_keys=dict(backbone=dict(lr_mult=0.1))))"
    )
    params = result.values().optimizer.params
    assert params.weight_decay_norm == 0 and params.bias_lr_factor == 2
    assert params.weight_decay_bias == 5e-5
    assert result.fields("unknown") == []
    assert result.outcome("optim_wrapper.paramwise_cfg.custom_keys") == "differs"
    assert result.outcome("optim_wrapper.paramwise_cfg.bypass_duplicate") == "unused"


def test_steps_of_the_optimizer(imported):
    result = imported(
        "optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='bfloat16',"
        " clip_grad=dict(max_norm=35, norm_type=2), accumulative_counts=4)"
    )
    train = result.values().train
    # Accumulation multiplies MMDetection's batch, and divides that of d2ext.
    assert (train.reference_world_size, train.reference_batch_size) == (8, 64)
    assert result.translation.batch == "64 images, 8 workers x 2 x 4 accumulated"
    assert train.amp.enabled == "auto" and train.amp.dtype == "bfloat16"
    assert train.clip_grad_norm == 35 and train.accumulate == 4
    assert not [n for n in result.fields("differs") if n.startswith("optim_wrapper")]


@pytest.mark.parametrize(
    ("text", "name", "sizes", "outcome"),
    [
        ("auto_scale_lr = dict(base_batch_size=64)", "a.py", (32, 64), "set"),
        ("train_dataloader = dict(batch_size=1)", "a.py", (16, 16), "set"),
        ("train_dataloader = dict(batch_size=3)", "a.py", (8, 16), "differs"),
        ("auto_scale_lr = None\ntrain_dataloader = dict(batch_size=3)", "a.py", (8, 24), "set"),
        (
            "auto_scale_lr = None\ntrain_dataloader = dict(batch_size=3)",
            "a_32xb3-210e_coco.py",
            (32, 96),
            "set",
        ),
        (
            "auto_scale_lr = None\ntrain_dataloader = dict(batch_size=1)",
            "a_8x1_c.py",
            (8, 8),
            "set",
        ),
        (  # the base is inherited
            "train_dataloader = dict(batch_size=1)\n# = (8 GPUs) x (1 samples per GPU)",
            "cityscapes.py",
            (8, 8),
            "set",
        ),
    ],
)
def test_the_batch_that_the_rate_was_tuned_for(imported, text, name, sizes, outcome):
    text = text.replace("auto_scale_lr = None", "auto_scale_lr = dict(_delete_=True)")
    result = imported(text, name)
    train = result.values().train
    assert (train.reference_world_size, train.reference_batch_size) == sizes
    assert result.outcome("train_dataloader.batch_size") == outcome


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("load_from = 'a.pth'", "init_checkpoint", "a.pth"),
        ("randomness = dict(seed=7)", "seed", 7),
        ("randomness = dict(deterministic=True)", "deterministic", True),
        ("find_unused_parameters = True", "ddp.find_unused_parameters", True),
        ("auto_scale_lr = dict(enable=True)", "auto_scale_lr.enabled", True),
        ("env_cfg = dict(dist_cfg=dict(backend='gloo'))", "dist.backend", "gloo"),
        ("vis_backends = [dict(type='WandbVisBackend')]", "writers", ["wandb"]),
        ("default_hooks = dict(logger=dict(interval=5))", "log_period", 5),
        ("train_cfg = dict(val_interval=3)", "eval_period", "3 epochs"),
        (
            "default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))",
            "best.metric",
            "coco/segm/AP",
        ),
        (
            "default_hooks = dict(checkpoint=dict(save_best=['coco/segm_mAP']))",
            "best.metric",
            "coco/segm/AP",
        ),
        ("default_hooks = dict(checkpoint=dict(save_best='auto'))", "best.metric", "coco/bbox/AP"),
        ("custom_hooks = [dict(type='EMAHook', momentum=0.001)]", "ema_decay", 0.999),
    ],
)
def test_options(imported, text, field, value):
    result = imported(text)
    assert OmegaConf.select(result.values(), f"train.{field}") == value
    assert result.fields("unknown") == []


@pytest.mark.parametrize(
    ("text", "field", "outcome"),
    [
        ("resume = True", "resume", "differs"),
        ("custom_imports = dict(imports=['mine'])", "custom_imports", "differs"),
        ("custom_hooks = [dict(type='MyHook')]", "custom_hooks.0.type", "differs"),
        ("custom_hooks = [dict(type='NumClassCheckHook')]", "custom_hooks.0.type", "unused"),
        ("optim_wrapper = dict(constructor='Mine')", "optim_wrapper.constructor", "differs"),
        ("optim_wrapper = dict(type='Mine')", "optim_wrapper.type", "differs"),
        ("vis_backends = [dict(type='Mine')]", "vis_backends.0.type", "differs"),
        ("train_cfg = dict(dynamic_intervals=[(5, 1)])", "train_cfg.dynamic_intervals", "differs"),
        ("default_hooks = dict(checkpoint=dict(save_best='x'))", None, "differs"),
        ("my_field = 'x y'", "my_field", "unknown"),
        ("my_scale = (1333, 800)", "my_scale", "unused"),
        ("my_pieces = ['annotations/', 'CocoDataset']", "my_pieces", "unused"),
        ("use_ema = True", "use_ema", "unknown"),
        ("num_last_epochs = 12", "num_last_epochs", "unknown"),
        ("stage_switch = 0.5", "stage_switch", "unknown"),
        ("nothing = None", "nothing", "unknown"),
        ("max_epochs = 12", "max_epochs", "unused"),
        ("max_epoch = 12", "max_epoch", "unused"),
        ("max_epochs = 7", "max_epochs", "unknown"),
        ("empty = []", "empty", "unknown"),
        ("mode = 'img'", "mode", "unknown"),
        ("train_pipeline = [dict(type='A')]", "train_pipeline", "unused"),
    ],
)
def test_outcomes(imported, text, field, outcome):
    field = field or "default_hooks.checkpoint.save_best"
    assert imported(text).outcome(field) == outcome


def test_the_first_of_several_best_results_is_used(imported):
    result = imported(
        "default_hooks = dict(checkpoint=dict(save_best=['coco/segm_mAP', 'coco/bbox_mAP']))"
    )
    assert result.values().train.best.metric == "coco/segm/AP"
    assert result.row("default_hooks.checkpoint.save_best") == (
        "differs",
        "train.best.metric=coco/segm/AP: only the first is used",
    )


def test_moving_averages(imported):
    """Only the decay of a moving average is the same here."""
    hook = "type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.001, warm_up=9, priority=49"
    result = imported(f"custom_hooks = [dict({hook}, update_buffers=True, begin_iter=0)]")
    assert result.values().train.ema_decay == 0.999
    different = [name.rpartition(".")[2] for name in result.fields("differs")[-5:]]
    assert different == ["type", "ema_type", "momentum", "warm_up", "update_buffers"]
    result = imported("custom_hooks = [dict(type='EMAHook', interval=10, begin_iter=0)]")
    assert result.outcome("custom_hooks.0.type") == "set"
    assert result.outcome("custom_hooks.0.begin_iter") == "set"
    assert result.outcome("custom_hooks.0.interval") == "differs"


def test_errors(imported):
    with pytest.raises(
        UserError, match=r"optim_wrapper\.optimizer\.type=Lion is not supported; d2"
    ):
        imported("optim_wrapper = dict(optimizer=dict(type='Lion'))")
    with pytest.raises(UserError, match="has no section `model`"):
        imported("x = 1", base=None)
