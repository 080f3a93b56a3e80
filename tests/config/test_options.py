"""TrainOptions, which defines the options of `train`."""

import dataclasses

import pytest
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf

from d2ext.config.check import accepted
from d2ext.config.load import load_config
from d2ext.config.options import DDP, Compile, TrainOptions, train_options
from tests.conftest import LITE0

# Options that the common recipe sets, because they go with its learning rate.
OF_THE_RECIPE = dict(
    max_epochs=12, warmup_iters=500, reference_world_size=8, reference_batch_size=16
)


def test_every_option_has_help():
    for key, option in train_options().items():
        is_section = option.accepts.types == (dict,)
        assert is_section or len(option.help) > 3, key


def test_defaults_are_accepted():
    values = TrainOptions().as_dict()
    for key, option in train_options().items():
        node = {"train": values}
        for name in key.split("."):
            node = node[name]
        assert option.accepts.accepts(node), key


def test_recipes_load_the_defaults(repo):
    train = LazyConfig.load(str(repo / "configs/common/train.py")).train
    plain = OmegaConf.to_container(train)
    assert plain == TrainOptions().as_dict() | OF_THE_RECIPE
    assert list(plain) == [f.name for f in dataclasses.fields(TrainOptions)]
    assert TrainOptions.from_config(train) == TrainOptions(**OF_THE_RECIPE)


def test_options_survive_a_round_trip(repo):
    options = TrainOptions.from_config(load_config(repo / LITE0).train)
    assert options.max_epochs == 22
    assert TrainOptions.from_config(options.as_dict()) == options
    assert TrainOptions.from_config(OmegaConf.create(options.as_dict())) == options


def test_absent_keys_have_defaults():
    """Configs of other projects lack most of our keys."""
    assert TrainOptions.from_config({}) == TrainOptions()
    train = OmegaConf.create(dict(max_iter=90000, amp=dict(enabled=True), ddp=None))
    options = TrainOptions.from_config(train)
    assert (options.max_epochs, options.max_iter, options.warmup_iters) == (None, 90000, None)
    assert options.amp.enabled and options.amp.dtype == "float16"
    assert options.ddp == DDP()
    assert options.checkpointer.max_to_keep == 3


def test_interpolations_are_followed():
    cfg = OmegaConf.create(dict(train=dict(max_iter=5, eval_period="${.max_iter}")))
    assert TrainOptions.from_config(cfg.train).eval_period == 5


def test_unknown_keys_are_ignored_or_passed_on():
    """They are ignored, except in sections that are passed on as arguments of a function."""
    train = OmegaConf.create(
        dict(mine=1, compile=dict(mode="default"), ddp=dict(static_graph=True))
    )
    options = TrainOptions.from_config(train)
    assert options == TrainOptions(
        compile=Compile(extra={"mode": "default"}), ddp=DDP(extra={"static_graph": True})
    )
    assert options.compile.arguments() == dict(backend="inductor", dynamic=None, mode="default")
    assert options.ddp.arguments() == dict(
        broadcast_buffers=False,
        find_unused_parameters=False,
        fp16_compression=False,
        static_graph=True,
    )


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainOptions().seed = 1


def test_hooks_can_be_instantiated(repo):
    target = "detectron2.engine.hooks.PeriodicWriter"
    hook = f"train.hooks=[{{_target_: {target}, writers: [], period: '${{train.seed}}'}}]"
    train = load_config(repo / LITE0, [hook, "train.seed=3"]).train
    (built,) = instantiate(TrainOptions.from_config(train).hooks)
    assert built._period == 3


def test_options_as_text():
    for key, text in {
        "train.seed": "int, 0 or more",
        "train.max_epochs": "int or float or null, above 0",
        "train.eval_period": "int or str or null",
        "train.checkpointer": "dict",
        "train.bad_loss.policy": "stop or skip",
        "train.ema_decay": "float or null, above 0 and below 1",
        "train.dist.backend": "nccl or gloo or null",
        "train.dist.port": "int or null, above 0 and below 65536",
        "train.hooks": "list",
        "optimizer.lr": "int or float, above 0",
        "train.ddp": "dict",
        "train.ddp.fp16_compression": "",  # torch checks it
        "train.mine": "",
    }.items():
        assert accepted(key) == text
