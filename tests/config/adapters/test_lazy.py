import textwrap
from pathlib import Path

import pytest
from detectron2 import model_zoo
from omegaconf import OmegaConf

from d2ext import load_config
from d2ext.config.check import target_name
from d2ext.errors import UserError

ZOO = Path(model_zoo.__file__).parent / "configs"
MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"
FILES = [f for f in sorted(ZOO.glob("*/*.py")) if f.parent.name != "common"]
FILES = [f for f in FILES if f.name != "torchvision_imagenet_R_50.py"]  # a classifier


def zoo_config(name, *overrides):
    return load_config(ZOO / name, overrides)


def config(tmp_path, text):
    """Write a config that changes Detectron2's Mask R-CNN, and return its path."""
    head = f"""
        from detectron2 import model_zoo
        from detectron2.config import LazyCall as L
        _cfg = model_zoo.get_config({MASK_RCNN!r})
        model, dataloader, train = _cfg.model, _cfg.dataloader, _cfg.train
        optimizer, lr_multiplier = _cfg.optimizer, _cfg.lr_multiplier
    """
    file = tmp_path / "theirs.py"
    file.write_text(textwrap.dedent(head) + textwrap.dedent(text))
    return file


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_lazy_config_of_detectron2_loads(file):
    cfg = load_config(file)
    assert cfg.origin.format == "Detectron2's LazyConfig"
    assert cfg.dataloader.train._target_ == "d2ext.data.loading.loader.build_train_loader"
    assert set(cfg.origin.ignored) <= {"train.cudnn_benchmark"}


def test_their_loader_becomes_ours_around_the_same_mapper():
    theirs, cfg = model_zoo.get_config(MASK_RCNN), zoo_config(MASK_RCNN)
    for split in ("train", "test"):
        mine, original = cfg.dataloader[split], theirs.dataloader[split]
        for key in ("mapper", "num_workers", "dataset.names"):
            assert OmegaConf.select(mine, key) == OmegaConf.select(original, key)
    assert cfg.dataloader.train.total_batch_size == 16
    assert OmegaConf.is_interpolation(cfg.dataloader.train, "total_batch_size")
    assert cfg.dataloader.val is cfg.dataloader.test
    assert (cfg.train.reference_world_size, cfg.train.reference_batch_size) == (8, 16)


def test_train_gets_the_missing_options_and_keeps_theirs():
    cfg = zoo_config(MASK_RCNN)
    assert cfg.train.output_dir is None
    assert (cfg.train.max_iter, cfg.train.eval_period, cfg.train.checkpointer.max_to_keep) == (
        90000,
        5000,
        100,
    )
    assert (cfg.train.seed, cfg.train.bad_images) == (0, "stop")
    assert zoo_config(MASK_RCNN, "train.output_dir=runs/a").train.output_dir == "runs/a"


def test_overrides_use_their_keys():
    key = "dataloader.train.mapper.augmentations[0].short_edge_length=[128]"
    cfg = zoo_config(MASK_RCNN, "dataloader.train.total_batch_size=1", key, "train.max_iter=2")
    assert cfg.dataloader.train.total_batch_size == 1
    assert cfg.dataloader.train.mapper.augmentations[0].short_edge_length == [128]
    assert cfg.train.max_iter == 2
    with pytest.raises(UserError, match="did you mean 'train.max_iter'"):
        zoo_config(MASK_RCNN, "train.max_itr=2")


@pytest.mark.parametrize("name", [MASK_RCNN, MASK_RCNN.replace(".py", ".yaml")])
@pytest.mark.parametrize(
    ("overrides", "iterations"),
    [
        ([], 1000),
        (["train.max_iter=900"], None),
        (["train.max_epochs=3"], None),
        (["lr_multiplier.warmup_length=0.5"], None),
        (["train.max_iter=900", "train.warmup_iters=7"], 7),
    ],
)
def test_warm_up_keeps_its_share_of_a_run_of_another_length(name, overrides, iterations):
    cfg = zoo_config(name, *overrides)
    assert cfg.train.warmup_iters == iterations
    if "lr_multiplier" not in str(overrides):
        assert cfg.lr_multiplier.warmup_length == 1000 / 90000


def test_mixed_precision_is_for_a_gpu_unless_the_user_sets_it():
    name = "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py"
    assert zoo_config(name).train.amp.enabled == "auto"
    assert zoo_config(name, "train.amp.enabled=True").train.amp.enabled is True
    with pytest.raises(UserError, match="train.amp.enabled='always': takes bool or auto"):
        zoo_config(name, "train.amp.enabled=always")


def test_options_of_detrex(tmp_path):
    cfg = load_config(
        config(
            tmp_path,
            """
            train.clip_grad = dict(enabled=True, params=dict(max_norm=0.1, norm_type=2))
            train.model_ema = dict(enabled=True, decay=0.999, device="")
            train.wandb = dict(enabled=True, params=dict(project="p"))
            train.seed = -1
            train.fast_dev_run = dict(enabled=False)
            """,
        )
    )
    assert (cfg.train.clip_grad_norm, cfg.train.ema_decay, cfg.train.seed) == (0.1, 0.999, 0)
    wandb = {"_target_": "d2ext.engine.trackers.WandbWriter", "project": "p"}
    assert cfg.train.writers == ["tensorboard", wandb]
    assert list(cfg.origin.ignored) == ["train.fast_dev_run"]
    assert "train.clip_grad -> train.clip_grad_norm=0.1" in cfg.origin.changes


def test_what_detrex_turned_off_is_not_reported(tmp_path):
    cfg = load_config(
        config(
            tmp_path,
            """
            train.clip_grad = dict(enabled=False, params=dict(max_norm=0.1, norm_type=2))
            train.model_ema = dict(enabled=False)
            train.wandb = dict(enabled=False)
            train.seed = 7
            """,
        )
    )
    assert (cfg.train.clip_grad_norm, cfg.train.ema_decay, cfg.train.seed) == (None, None, 7)
    assert not cfg.origin.ignored


REPEAT = """
    from detectron2.data.samplers import RepeatFactorTrainingSampler as Sampler
    dataloader.train.sampler = L(Sampler)(
        repeat_factors=L(Sampler.repeat_factors_from_category_frequency)(
            dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
        )
    )
"""
SUBSET = """
    from detectron2.data.samplers import RandomSubsetTrainingSampler
    dataloader.train.sampler = L(RandomSubsetTrainingSampler)(size=100, subset_ratio=0.1)
"""


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [(REPEAT, "oversample_threshold", 0.001), (SUBSET, "subset", 0.1)],
    ids=["repeat", "subset"],
)
def test_samplers_become_arguments_of_the_training_set(tmp_path, text, key, value):
    cfg = load_config(config(tmp_path, text))
    assert cfg.dataloader.train.dataset[key] == value
    assert "sampler" not in cfg.dataloader.train


def test_a_sampler_of_their_own_keeps_their_loader(tmp_path):
    text = """
        from torch.utils.data import RandomSampler
        dataloader.train.sampler = L(RandomSampler)(data_source="${dataloader.train.dataset}")
    """
    cfg = load_config(config(tmp_path, text))
    name = "detectron2.data.build.build_detection_train_loader"
    assert target_name(cfg.dataloader.train._target_) == name
    assert any("runs unchanged" in line and "resumed" in line for line in cfg.origin.changes)


def test_arguments_without_a_meaning_are_listed(tmp_path):
    text = """
        dataloader.train.pin_memory = True
        dataloader.test.batch_size = 4
        dataloader.train.total_batch_size = 12
    """
    cfg = load_config(config(tmp_path, text))
    assert list(cfg.origin.ignored) == ["dataloader.train.pin_memory", "dataloader.test.batch_size"]
    assert (cfg.train.reference_world_size, cfg.train.reference_batch_size) == (4, 12)


def test_unknown_keys_of_train_are_listed_and_can_be_referred_to(tmp_path):
    text = """
        train.base_lr = 0.03
        train.amp.opt_level = "O1"
        train.ddp.static_graph = True
        train.wandb = True
        train.clip_grad = None
        optimizer.lr = "${train.base_lr}"
    """
    cfg = load_config(config(tmp_path, text))
    assert cfg.optimizer.lr == 0.03
    assert set(cfg.origin.ignored) == {"train.base_lr", "train.amp.opt_level", "train.wandb"}


def test_test_images_without_objects_are_dropped_as_in_detectron2(tmp_path):
    cfg = load_config(config(tmp_path, "del dataloader.test.dataset['filter_empty']"))
    assert cfg.dataloader.val.dataset.filter_empty is True
    assert zoo_config(MASK_RCNN).dataloader.val.dataset.filter_empty is False


def test_evaluators_by_name_and_their_other_arguments(tmp_path):
    text = """
        from detectron2.evaluation import COCOEvaluator
        dataloader.evaluator = dict(
            a=L(COCOEvaluator)(dataset_name="coco_2017_val", output_dir="./out", tasks=("bbox",))
        )
    """
    cfg = load_config(config(tmp_path, text))
    assert cfg.evaluators.coco.tasks == ["bbox"]
    assert any(line.endswith("its output_dir is ignored") for line in cfg.origin.changes)


def test_a_config_without_a_training_loader(tmp_path):
    with pytest.raises(UserError, match="dataloader.train=None: takes a dict"):
        load_config(config(tmp_path, "del dataloader['train']"))
