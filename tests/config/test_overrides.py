"""Strict overrides, on a small config with every kind of field."""

import re
import shlex

import pytest
from detectron2.config import LazyCall as L
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.optim import SGD

from d2ext.config.overrides import apply_overrides
from d2ext.errors import UserError


@pytest.fixture
def cfg():
    return OmegaConf.create(
        dict(
            train=dict(
                max_epochs=12,
                max_iter=None,
                seed=0,
                eval_period="1 epoch",
                init_checkpoint="",
                amp=dict(enabled=False),
                checkpointer=dict(period=5000, max_to_keep=3),
            ),
            optimizer=L(SGD)(lr=0.02, momentum=0.9),
            model=dict(mean=[1.0, 2.0, 3.0], augmentations=[dict(size=3)], size="${train.seed}"),
            dataloader=dict(val=dict(dataset=dict(names="a"))),
        ),
        flags={"allow_objects": True},
    )


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        ("optimizer.lr=1", "optimizer.lr", 1),
        ("train.amp.enabled=True", "train.amp.enabled", True),
        ("train.eval_period=500", "train.eval_period", 500),
        ("train.eval_period=2 epochs", "train.eval_period", "2 epochs"),
        ("train.init_checkpoint=", "train.init_checkpoint", ""),
        ("train.init_checkpoint=/a=b/(c), d/ü.pth", "train.init_checkpoint", "/a=b/(c), d/ü.pth"),
        ("train.init_checkpoint=null", "train.init_checkpoint", None),
        ("model.mean=[4, 5.5, 6]", "model.mean", [4, 5.5, 6]),
        ("model.mean[1]=7.0", "model.mean", [1.0, 7.0, 3.0]),
        ("model.augmentations.0.size=9", "model.augmentations[0].size", 9),
        ("model.size=5", "model.size", 5),
        ("model.size=${train.max_epochs}", "model.size", 12),
        ("dataloader.val.dataset.names=[a, b]", "dataloader.val.dataset.names", ["a", "b"]),
        ("train.checkpointer={period: 7}", "train.checkpointer.period", 7),
        ("train.checkpointer={period: 7}", "train.checkpointer.max_to_keep", 3),
        ("optimizer.nesterov=True", "optimizer.nesterov", True),
        ("+train.new.deep=3", "train.new.deep", 3),
        ("train.init_checkpoint=a #1.pth", "train.init_checkpoint", "a #1.pth"),
        ("train.init_checkpoint=#", "train.init_checkpoint", "#"),
        ("train.init_checkpoint=x\n- y", "train.init_checkpoint", "x\n- y"),
        ("train.init_checkpoint= a: b ", "train.init_checkpoint", " a: b "),
        ("train.init_checkpoint='a #1'", "train.init_checkpoint", "a #1"),
        ("train.init_checkpoint='5'", "train.init_checkpoint", "5"),
        ("train.seed= 5 ", "train.seed", 5),
        # Dicts and their parents.
        ("+train.x={a: 1}", "train.x", {"a": 1}),
        ("+a.b.c.d=1", "a.b.c", {"d": 1}),
        ("+datasets.größe={_target_: my.set, file: ä=1.json}", "datasets.größe.file", "ä=1.json"),
        ("train[amp][enabled]=True", "train.amp.enabled", True),
        ("train.amp={_target_: my.amp, a: 1}", "train.amp", {"_target_": "my.amp", "a": 1}),
        # Lists.
        ("+model.mean[3]=4.0", "model.mean", [1.0, 2.0, 3.0, 4.0]),
        ("+model.augmentations.1={size: 4}", "model.augmentations", [{"size": 3}, {"size": 4}]),
        ("+model.augmentations[1].size=4", "model.augmentations", [{"size": 3}, {"size": 4}]),
        ("+new.list[0]=a", "new.list", ["a"]),
        ("+new[0].deep=a", "new", [{"deep": "a"}]),
        ("model.augmentations[0]={_target_: my.flip, p: 0.5}", "model.augmentations[0].p", 0.5),
        ("model.augmentations[0]={size: 4}", "model.augmentations", [{"size": 4}]),
        ("model.mean=[]", "model.mean", []),
        # Values with all characters that have a special meaning somewhere.
        ("+x=['a, b', \"c'd\", e=f, ü, {g: 1}]", "x", ["a, b", "c'd", "e=f", "ü", {"g": 1}]),
        ("dataloader.val.dataset.names=a=b,[c]{d}", "dataloader.val.dataset.names", "a=b,[c]{d}"),
        # Python's None, which `print_config.py` shows.
        ("train.max_iter=None", "train.max_iter", None),
        ("train.init_checkpoint='None'", "train.init_checkpoint", "None"),
        # A field that d2ext knows, in a config without it.
        ("train.bad_loss.policy=skip", "train.bad_loss", {"policy": "skip"}),
    ],
)
def test_a_valid_override_sets_its_field(cfg, override, key, value):
    apply_overrides(cfg, [override])
    assert OmegaConf.select(cfg, key) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimzer.lr=1", ["optimzer.lr", "did you mean 'optimizer.lr'"]),
        ("train.lr=1", ["train.lr", "did you mean 'optimizer.lr'"]),
        ("optimizer.nestrov=True", ["unknown key", "optimizer.nestrov"]),
        ("train.checkpointer={perod: 7}", ["train.checkpointer.period"]),
        ("optimizer.lr=abc", ["optimizer.lr", "float", "'abc'"]),
        ("optimizer.nesterov=3", ["optimizer.nesterov", "bool", "3"]),
        ("train.seed=1.5", ["train.seed", "int", "1.5"]),
        ("train.seed=True", ["train.seed", "int", "True"]),
        ("train.amp.enabled=1", ["train.amp.enabled", "bool"]),
        ("model.mean=3", ["model.mean", "list"]),
        ("train.amp=True", ["train.amp", "dict"]),
        ("train.seed.deep=1", ["train.seed", "no fields"]),
        ("model.mean[3]=1.0", ["model.mean[3]"]),
        ("model.mean=[1", ["model.mean", "[1"]),
        ("train.eval_period=1.5", ["train.eval_period", "int or str"]),
        ("train.seed=5 # five", ["train.seed", "'5 # five'"]),
        ("train.max_iter=abc", ["train.max_iter='abc'", "int or null"]),
        ("train.max_iter=1e4", ["train.max_iter=10000.0", "int or null"]),
        ("train.max_iter=true", ["train.max_iter=True", "int or null"]),
        ("train.seed=null", ["train.seed=None", "int, 0 or more"]),
        ("model.mean=[1.0] # x", ["model.mean", "text after its end", "quote it"]),
        ("train.init_checkpoint='a' b", ["train.init_checkpoint", "quote it"]),
        ("train.init_checkpoint=${train", ["train.init_checkpoint", "${train"]),
        ("--eval-only", ["--eval-only", "before the first key=value"]),
        ("train.seed", ["train.seed", "key=value"]),
        ("=3", ["key=value"]),
        ("train.x={a: 1}", ["unknown key 'train.x'", "+train.x=..."]),
        ("model.mean[7]=1.0", ["model.mean has 3 items", "+model.mean[3]=..."]),
        ("+model.mean[7]=1.0", ["model.mean has 3 items", "+model.mean[3]=..."]),
        ("model.mean.new=1.0", ["model.mean has 3 items", "+model.mean[3]=..."]),
        ("model.mean[-1]=1.0", ["model.mean has 3 items"]),
        ("model.augmentations[1].size=1", ["has 1 item;", "+model.augmentations[1]=..."]),
        ("+new[3]=1", ["new[3]", "starts at [0]"]),
        ("model.mean+=[4.0]", ["'model.mean+'", "+a.b[N]=... to append"]),
        ("+model.mean+=[4.0]", ["'model.mean+'", "+a.b[N]=... to append"]),
        ("++train.x=1", ["'+train.x'", "a.b[0].c"]),
        ("train..seed=1", ["'train..seed'", "a.b[0].c"]),
        (".seed=1", ["'.seed'", "a.b[0].c"]),
        ("+train.=1", ["'train.'", "a.b[0].c"]),
        ('train["seed"]=1', ["train", "a.b[0].c"]),
        ("+a['b.c']=1", ["b.c", "a.b[0].c"]),
        ("train[seed=1", ["'train[seed'", "a.b[0].c"]),
        ("train.max_iter[0]=1", ["train.max_iter is None", "train.max_iter=..."]),
        ("train.x={a:", ["train.x", "if the shell split the override, quote it"]),
    ],
)
def test_an_invalid_override_gives_a_one_line_error(cfg, override, words):
    before = OmegaConf.to_yaml(cfg)
    with pytest.raises(UserError) as e:
        apply_overrides(cfg, [override])
    assert all(word in str(e.value) for word in words), str(e.value)
    assert "\n" not in str(e.value)
    assert OmegaConf.to_yaml(cfg) == before


@pytest.mark.parametrize(
    "override",
    [
        "train.x=1",
        "train.x={a: [1, 2]}",
        "optimizer.nestrov=True",
        "new.deep.field=1",
        "new[0]=1",
        "model.mean[7]=1.0",
        "model.mean.new=1.0",
        "model.augmentations[1].size=1",
        "train.init_checkpoint=[a",
        "train.init_checkpoint='a' b",
        "train.init_checkpoint={a: ü",
        "+train.new='it''s' \"b\" \\ c",
    ],
)
def test_suggested_overrides_work_as_printed(cfg, override):
    """`+KEY=...` accepts the given value; other suggestions are complete shell words."""
    with pytest.raises(UserError) as e:
        apply_overrides(cfg, [override])
    key, _, value = override.partition("=")
    if offered := re.search(r"(\+\S+?)=\.\.\.", str(e.value)):
        apply_overrides(cfg, [f"{offered[1]}={value}"])
        return
    (text,) = shlex.split(str(e.value).partition("for text, write ")[2])
    apply_overrides(cfg, [text])
    assert OmegaConf.select(cfg, key.removeprefix("+")) == value


def test_a_dict_with_another_target_replaces_the_old_one(cfg):
    """The old arguments are dropped, because the new target may not accept them."""
    apply_overrides(cfg, ["optimizer={_target_: torch.optim.AdamW, lr: 0.1}"])
    assert dict(cfg.optimizer) == {"_target_": "torch.optim.AdamW", "lr": 0.1}
    apply_overrides(cfg, ["optimizer={_target_: torch.optim.adamw.AdamW, lr: 0.2}"])  # the same
    apply_overrides(cfg, ["+optimizer.weight_decay=0.1", "optimizer={lr: 0.3}"])
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (0.3, 0.1)


def test_a_nonexistent_target_is_left_to_the_builder(cfg):
    apply_overrides(cfg, ["optimizer={_target_: no.such, a: 1}", "+optimizer.b=2"])
    assert dict(cfg.optimizer) == {"_target_": "no.such", "a": 1, "b": 2}
    with pytest.raises(UserError, match="unknown key 'optimizer.c'"):
        apply_overrides(cfg, ["optimizer.c=3"])


def test_setting_one_length_clears_the_other(cfg):
    apply_overrides(cfg, ["train.max_iter=9"])
    assert (cfg.train.max_epochs, cfg.train.max_iter) == (None, 9)
    apply_overrides(cfg, ["train.max_epochs=2"])
    assert (cfg.train.max_epochs, cfg.train.max_iter) == (2, None)


@pytest.mark.parametrize(
    ("overrides", "lengths"),
    [
        (["train.max_epochs=2", "train.max_iter=9"], (None, 9)),
        (["train.max_iter=9", "train.max_epochs=2"], (2, None)),
        (["train.max_epochs=2", "train.max_iter=null"], (2, None)),
        (["train.max_iter=null"], (12, None)),
        (["train.max_epochs=1.5"], (1.5, None)),
        (["train={max_iter: 9}"], (None, 9)),
        (["train[max_iter]=9"], (None, 9)),
        (["train.max_epochs=null"], (None, None)),
    ],
)
def test_the_last_length_that_is_set_wins(cfg, overrides, lengths):
    apply_overrides(cfg, overrides)
    assert (cfg.train.max_epochs, cfg.train.max_iter) == lengths


def test_kwargs_are_looked_up_in_base_classes_only():
    class Base:
        def __init__(self, width=1, **kwargs): ...

    class Derived(Base):
        def __init__(self, height=1, **kwargs): ...

    cfg = OmegaConf.create(dict(node=L(Derived)()), flags={"allow_objects": True})
    apply_overrides(cfg, ["node.height=2", "node.width=3"])
    assert (cfg.node.height, cfg.node.width) == (2, 3)
    with pytest.raises(UserError, match="unknown key"):
        apply_overrides(cfg, ["node.anything=3"])


def test_a_double_dash_is_not_an_override(cfg):
    apply_overrides(cfg, ["--", "train.seed=3"])
    assert cfg.train.seed == 3


def test_an_unresolvable_field_can_be_set(cfg):
    apply_overrides(cfg, ["model.size=${nope}", "model.size=5"])
    assert cfg.model.size == 5


@given(st.text(st.characters(codec="utf-8")))
@example("a #b")
@example("a\n- b")
@example("[a] # b")
@example("???")
def test_any_text_is_a_value_or_a_one_line_error(text):
    cfg = OmegaConf.create(dict(a=dict(b="x")))
    try:
        apply_overrides(cfg, [f"a.b={text}"])
    except UserError as e:
        assert "a.b" in str(e) and "\n" not in str(e)
    else:
        value = OmegaConf.to_container(cfg)["a"]["b"]
        assert isinstance(value, str | None)
        # Only a quote changes a text; nothing is truncated.
        assert value is None or value == text or text[0] in "'\""


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_round_trip(number):
    cfg = OmegaConf.create(dict(a=0.5))
    apply_overrides(cfg, [f"a={number!r}"])
    assert cfg.a == number
