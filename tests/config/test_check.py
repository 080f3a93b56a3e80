"""Which values the fields that d2ext reads accept."""

import re

import pytest
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from torch.optim import SGD

from d2ext.config.check import check_config, shared_fields, training_fields
from d2ext.config.load import load_config
from d2ext.config.yaml_io import saved_text
from d2ext.errors import UserError

RECIPE = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"


@pytest.fixture
def cfg():
    """Return a minimal config with empty sections."""
    return OmegaConf.create(
        dict(
            model={},
            dataloader=dict(train={}, val=None),
            optimizer=L(SGD)(),
            lr_multiplier={},
            train={},
            datasets={},
            evaluators={},
        ),
        flags={"allow_objects": True},
    )


def test_absent_fields_are_fine(cfg):
    check_config(cfg)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("train.seed", [0, 7], [-1, None, 1.0, True, "0"]),
        ("train.log_period", [1], [0, None, 1.5]),
        ("train.max_iter", [1, None], [0, -1, 2.5, 1e4, True, "abc"]),
        ("train.max_epochs", [1, 1.5, None], [0, -0.5, True, "1", float("nan"), float("inf")]),
        ("train.warmup_iters", [0, None], [-1, 0.5]),
        ("train.accumulate", [1], [0, None, "2"]),
        ("train.reference_world_size", [1, None], [0, "8"]),
        ("train.reference_batch_size", [1, None], [0, 1.5]),
        ("train.eval_period", [0, "2 epochs", None], [1.5, True, []]),
        ("train.checkpointer", [{}], [None, 5]),
        ("train.checkpointer.period", [0, "2 epochs", None], [1.5, {}]),
        ("train.checkpointer.max_to_keep", [-1, 0, 3], [-2, None, "3"]),
        ("train.device", ["cpu"], [None, 0]),
        ("train.output_dir", ["a", None], [5, []]),
        ("train.init_checkpoint", ["", "a", None], [5]),
        ("train.channels_last", [True, False, None], [1, "yes"]),
        ("train.auto_scale_lr", [{}], [None, True]),
        ("train.dist", [{}], [None, 29500]),
        ("train.dist.port", [29500, None], ["29500", -1]),
        ("train.hooks", [[], [{"_target_": "a.Hook"}]], [None, {}, "a.Hook"]),
        (
            "train.writers",
            [[], ["mlflow", "tensorboard", "wandb"], [{"_target_": "a.Writer"}]],
            [None, {}, "mlflow"],
        ),
        ("optimizer.lr", [1, 1e-3], [0, -1.0, None, True, "fast", float("nan")]),
        ("dataloader.train.total_batch_size", [1], [0, None, 1.5]),
        ("dataloader.train", [{}], [None, 5, []]),
        ("dataloader.val", [{}, None], [5, []]),
        ("dataloader.test", [{}, None], ["val"]),
        *((name, [], [None, 5, "x", []]) for name in ("model", "lr_multiplier", "train")),
        *((name, [], [None, 5, "x", []]) for name in ("optimizer", "datasets", "evaluators")),
        ("dataloader", [], [None, 5]),
    ],
)
def test_accepted_and_refused_values(cfg, key, good, bad):
    for value in good:
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        check_config(cfg)
    for value in bad:
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        with pytest.raises(UserError) as e:
            check_config(cfg)
        assert str(e.value).startswith(f"{key}={value!r}: "), str(e.value)
        assert "take" in str(e.value)


@pytest.mark.parametrize("bad", ["a.Hook", {"path": "a"}])
def test_a_hook_needs_a_target(cfg, bad):
    cfg.train.hooks = [{"_target_": "a.Hook"}, bad]
    with pytest.raises(UserError) as e:
        check_config(cfg)
    assert str(e.value).startswith(f"train.hooks[1]={bad!r}: takes a dict with the _target_")


@pytest.mark.parametrize(
    ("bad", "hint"), [("mlfow", "; did you mean 'mlflow'?"), ({"path": "a"}, ""), (3, "")]
)
def test_a_writer_is_a_known_name_or_has_a_target(cfg, bad, hint):
    cfg.train.writers = ["wandb", bad]
    with pytest.raises(UserError) as e:
        check_config(cfg)
    assert str(e.value) == (
        f"train.writers[1]={bad!r}: takes mlflow, tensorboard, wandb or a dict with the _target_ of"
        f" a writer{hint}"
    )


@pytest.mark.parametrize(
    ("intervals", "resamples", "message"),
    [
        (None, 1, "train.resamples=1: takes 0 or at least 100"),
        (None, 99, "train.resamples=99: takes 0 or at least 100"),
        (True, 0, "train.intervals=True needs draws of the images, but train.resamples=0"),
        (None, 0, ""),
        (False, 0, ""),
        (True, 100, ""),
    ],
)
def test_intervals_need_enough_draws(cfg, intervals, resamples, message):
    cfg.train.intervals, cfg.train.resamples = intervals, resamples
    if not message:
        check_config(cfg)
        return
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(cfg)


def test_a_missing_section_is_named(cfg):
    del cfg.evaluators
    with pytest.raises(UserError, match="no section evaluators"):
        check_config(cfg)


@pytest.mark.parametrize("value", ["${nope}", "${train.seed}", "???", "${oc.env:D2EXT_NOT_SET}"])
def test_an_unresolvable_value_names_its_key(cfg, value):
    cfg.train.seed, cfg.dataloader.train.seed = value, "${train.seed}"
    with pytest.raises(UserError, match="^train.seed: ") as e:
        check_config(cfg)
    assert "\n" not in str(e.value)


def test_interpolations_are_checked_and_kept(cfg):
    cfg.train.max_iter, cfg.train.seed = 3, "${train.max_iter}"
    before = OmegaConf.to_yaml(cfg)
    check_config(cfg)
    assert OmegaConf.to_yaml(cfg) == before

    cfg.dataloader.val = "${dataloader.train}"
    check_config(cfg)
    cfg.dataloader.val = "${train.max_iter}"
    with pytest.raises(UserError, match="^dataloader.val=3: "):
        check_config(cfg)
    cfg.dataloader.val = None
    cfg.train.max_iter = -3
    cfg.train.seed = "${optimizer._target_}"
    with pytest.raises(UserError, match="^train.seed="):
        check_config(cfg)


@pytest.mark.parametrize(
    "override",
    [
        "train.output_dir=5",
        "train.seed=${nope}",
        "+train.log_period=0",
        "optimizer.lr=null",
        "dataloader.train.total_batch_size=null",
        "train.checkpointer=null",
        "train=null",
        "model=null",
        "datasets=null",
        "lr_multiplier=null",
        "dataloader.train=null",
        "evaluators=null",
    ],
)
def test_loading_checks_the_config_after_overrides(repo, override):
    key = override.partition("=")[0].removeprefix("+")
    with pytest.raises(UserError, match=key):
        load_config(repo / RECIPE, [override])


def test_a_config_without_validation_loads(repo):
    assert load_config(repo / RECIPE, ["dataloader.val=null"]).dataloader.val is None


@pytest.mark.parametrize("recipe", [RECIPE, "configs/custom/mask_rcnn_r50_fpn.py"])
def test_a_saved_config_has_the_same_training_fields(repo, tmp_path, recipe):
    """Classes may have other names in the file; resuming from it causes no warning."""
    cfg = load_config(repo / recipe)
    (tmp_path / "config.yaml").write_text(saved_text(cfg)[0])
    saved = load_config(tmp_path / "config.yaml")
    assert saved.optimizer._target_ != cfg.optimizer._target_  # the name as exported by the package
    assert training_fields(saved) == training_fields(cfg)
    saved.optimizer._target_ = "torch.optim.Adam"
    changed = training_fields(saved).items() ^ training_fields(cfg).items()
    assert {key for key, _ in changed} == {"optimizer._target_"}


def test_all_machines_must_cut_the_same_tiles(repo):
    one, other = (
        shared_fields(
            load_config(repo / RECIPE, ["data.tiles=640", f"data.tile_overlap={overlap}"])
        )
        for overlap in (0.2, 0.3)
    )
    assert one.items() ^ other.items() == {
        ("data.tile_overlap", "0.2"),
        ("data.tile_overlap", "0.3"),
    }
