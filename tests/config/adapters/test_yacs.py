"""Translation of yacs configs, compared with what Detectron2 builds from the same files."""

from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as detectron2s_optimizer
from omegaconf import OmegaConf
from torch import nn

from d2ext.config.adapters.yacs import is_yacs, load_yacs
from d2ext.config.load import load_config
from d2ext.config.options import TrainOptions
from d2ext.config.schedule import resolve_schedule
from d2ext.config.yaml_io import parse_saved, saved_text
from d2ext.engine.builders import build_multiplier, build_optimizer
from d2ext.errors import UserError

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
KEYPOINT = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
SEMANTIC = "Misc/semantic_R_50_FPN_1x.yaml"
FAST = "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml"
LVIS = "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
CITYSCAPES = "Cityscapes/mask_rcnn_R_50_FPN.yaml"
VOC = "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml"
RPN = "COCO-Detection/rpn_R_50_FPN_1x.yaml"
ONE_OF_EACH = [
    *(MASK, RETINANET, KEYPOINT, PANOPTIC, SEMANTIC, FAST, LVIS, CITYSCAPES, VOC, RPN),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
]
# A ResNet-50 with few channels.
TINY = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS=8", "MODEL.RESNETS.RES2_OUT_CHANNELS=16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP=4", "MODEL.FPN.OUT_CHANNELS=8", "MODEL.ROI_BOX_HEAD.FC_DIM=8"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM=8", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS=[8]"),
]
SETUP = "train.yacs_setup=[detectron2.projects.point_rend.add_pointrend_config]"


def _both(name, overrides=()):
    """Return Detectron2's CfgNode of a file with overrides, and the translated config."""
    theirs = get_cfg()
    theirs.merge_from_file(str(ZOO / name))
    theirs.merge_from_list([word for text in overrides for word in text.split("=", 1)])
    ours, rest = load_yacs(ZOO / name, overrides)
    assert rest == []
    return theirs, ours


def _yacs_file(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def _plain(value):
    """Return nested lists and dicts for any kind of list, tuple and dict."""
    if OmegaConf.is_config(value):
        return _plain(OmegaConf.to_container(value, resolve=True))
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _description(mapper):
    augmentations = [
        (type(a).__name__, {k: _plain(v) for k, v in vars(a).items() if not callable(v)})
        for a in mapper.augmentations.augs
    ]
    return {**_plain(vars(mapper)), "augmentations": augmentations}


@pytest.mark.slow
def test_every_config_of_the_package_is_translated():
    files = sorted(ZOO.rglob("*.yaml"))
    assert len(files) > 80
    for file in files:
        assert is_yacs(file)
        cfg, _ = load_yacs(file, [])
        assert saved_text(cfg)[1] is None, file


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_mappers_are_those_of_detectron2(name):
    theirs, ours = _both(name)
    for is_train, loader in ((True, ours.dataloader.train), (False, ours.dataloader.test)):
        made = instantiate(loader.mapper)
        assert type(made) is DatasetMapper
        assert _description(made) == _description(DatasetMapper(theirs, is_train))


@pytest.mark.parametrize(
    "overrides",
    [
        ["INPUT.CROP.ENABLED=True", "INPUT.CROP.TYPE=absolute", "INPUT.CROP.SIZE=(64,64)"],
        ["INPUT.MIN_SIZE_TRAIN=(300,500)", "INPUT.MIN_SIZE_TRAIN_SAMPLING=range"],
        ["INPUT.RANDOM_FLIP=vertical", "INPUT.MASK_FORMAT=bitmask", "INPUT.FORMAT=RGB"],
        ["INPUT.RANDOM_FLIP=none", "INPUT.MIN_SIZE_TEST=0"],
    ],
)
def test_mappers_follow_the_keys_of_input(overrides):
    theirs, ours = _both(MASK, overrides)
    for is_train, loader in ((True, ours.dataloader.train), (False, ours.dataloader.test)):
        made = instantiate(loader.mapper)
        assert _description(made) == _description(DatasetMapper(theirs, is_train))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_models_are_those_of_detectron2(name):
    theirs, ours = _both(name, TINY)
    theirs.MODEL.DEVICE = "cpu"
    torch.manual_seed(3)
    expected = build_model(theirs)
    torch.manual_seed(3)
    made = instantiate(ours.model)
    assert str(made) == str(expected)
    weights = expected.state_dict()
    assert weights.keys() == made.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in made.state_dict().items())


def test_a_saved_config_builds_the_same_model():
    _, cfg = _both(MASK, [*TINY, "MODEL.ROI_HEADS.NUM_CLASSES=3"])
    text, problem = saved_text(cfg)
    assert problem is None
    saved = parse_saved(text)
    assert saved.model.config == cfg.model.config
    assert str(instantiate(saved.model)) == str(instantiate(cfg.model))


def test_the_model_follows_overrides_of_its_config():
    _, cfg = _both(MASK, TINY)
    cfg.model.config.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.model.config.MODEL.RPN.LOSS_WEIGHT = 2  # an int for a float
    cfg.model.config.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.6]
    model = instantiate(cfg.model)
    assert model.roi_heads.num_classes == 3
    assert model.proposal_generator.loss_weight["loss_rpn_cls"] == 2
    cfg.model.config.MODEL.MASK_ON = "yes"
    with pytest.raises(UserError, match="^MODEL.MASK_ON takes bool, not str"):
        instantiate(cfg.model)


def test_only_class_counts_that_the_model_reads_are_kept():
    def heads(name):
        sections = load_yacs(ZOO / name, [])[0].model.config.MODEL
        return [k for k, v in sections.items() if OmegaConf.is_dict(v) and "NUM_CLASSES" in v]

    assert heads(MASK) == ["ROI_HEADS"]
    assert heads(RETINANET) == ["RETINANET"]
    assert heads(PANOPTIC) == ["ROI_HEADS", "SEM_SEG_HEAD"]
    assert heads(RPN) == []


class _Net(nn.Module):
    """A model with all kinds of parameters that the optimizer distinguishes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.fc.weight.requires_grad = False


@pytest.mark.parametrize(
    ("name", "overrides"),
    [(name, []) for name in (MASK, RETINANET, VOC)]
    + [
        (MASK, ["SOLVER.BASE_LR=0.3", "SOLVER.BIAS_LR_FACTOR=2.0", "SOLVER.MOMENTUM=0.8"]),
        (MASK, ["SOLVER.WEIGHT_DECAY_BIAS=0.5", "SOLVER.WEIGHT_DECAY_NORM=0.25"]),
        (MASK, ["SOLVER.NESTEROV=True", "SOLVER.WEIGHT_DECAY=0.01"]),
    ],
)
def test_parameter_groups_are_those_of_detectron2(name, overrides):
    theirs, ours = _both(name, overrides)
    net = _Net()
    names = {id(p): name for name, p in net.named_parameters()}

    def groups(optimizer):
        keys = ("lr", "weight_decay", "momentum", "nesterov", "dampening", "maximize")
        return [
            ({key: group[key] for key in keys}, [names[id(p)] for p in group["params"]])
            for group in optimizer.param_groups
        ]

    assert groups(build_optimizer(ours, net)) == groups(detectron2s_optimizer(theirs, net))


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_gradients_of_each_parameter_are_clipped_as_in_detectron2(kind):
    clipping = [
        "SOLVER.CLIP_GRADIENTS.ENABLED=True",
        f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE={kind}",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE=0.5",
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE=1.0",
    ]
    theirs, ours = _both(MASK, clipping)
    stepped = []
    for cfg, build in ((theirs, detectron2s_optimizer), (ours, build_optimizer)):
        torch.manual_seed(0)
        net = _Net()
        optimizer = build(cfg, net)
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        stepped.append([p.detach() for p in net.parameters()])
    assert all(map(torch.equal, *stepped))
    assert "clip_grad_norm" not in ours.train
    assert list(ours.origin.ignored) == []


def test_clipping_of_the_whole_model():
    clipping = ["SOLVER.CLIP_GRADIENTS.ENABLED=True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE=full_model"]
    cfg, _ = load_yacs(ZOO / MASK, [*clipping, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE=0.1"])
    assert cfg.train.clip_grad_norm == 0.1
    assert cfg.optimizer["_target_"] is torch.optim.SGD
    cfg, _ = load_yacs(ZOO / MASK, [*clipping, "SOLVER.CLIP_GRADIENTS.NORM_TYPE=1.0"])
    assert "clip_grad_norm" not in cfg.train
    assert "full_model" in cfg.origin.ignored[0]


def _check_rates(name, overrides):
    theirs, ours = _both(name, overrides)
    net = _Net()
    optimizer = detectron2s_optimizer(theirs, net)
    scheduler = build_lr_scheduler(theirs, optimizer)
    options = TrainOptions.from_config(ours.train)
    fraction = ours.lr_multiplier.warmup_length
    schedule = resolve_schedule(options, 16, 1000, fraction)
    multiplier = build_multiplier(ours, schedule)
    rates = [group["lr"] for group in build_optimizer(ours, net).param_groups]
    for i in range(theirs.SOLVER.MAX_ITER):
        if i:
            scheduler.step()
        factor = multiplier(i / schedule.max_iter)
        assert [rate * factor for rate in rates] == scheduler.get_last_lr(), i
        optimizer.step()


SHORT = ["SOLVER.MAX_ITER=300", "SOLVER.STEPS=(200,280)", "SOLVER.WARMUP_ITERS=70"]


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["SOLVER.WARMUP_ITERS=0"],
        ["SOLVER.WARMUP_ITERS=180"],
        ["SOLVER.WARMUP_ITERS=1000"],
        ["SOLVER.WARMUP_METHOD=constant", "SOLVER.WARMUP_FACTOR=0.3"],
        ["SOLVER.RESCALE_INTERVAL=True", "SOLVER.LR_SCHEDULER_NAME=WarmupCosineLR"],
        ["SOLVER.LR_SCHEDULER_NAME=WarmupCosineLR", "SOLVER.BASE_LR_END=0.001"],
        ["SOLVER.LR_SCHEDULER_NAME=WarmupStepWithFixedGammaLR", "SOLVER.NUM_DECAYS=4"],
        ["SOLVER.STEPS=()", "SOLVER.GAMMA=0.5"],
        ["SOLVER.STEPS=(100,200,40000)", "SOLVER.BIAS_LR_FACTOR=2.0", "SOLVER.GAMMA=0.3"],
    ],
)
def test_learning_rates_are_those_of_detectron2(overrides):
    _check_rates(MASK, SHORT + overrides)


@pytest.mark.slow
@pytest.mark.parametrize("name", [MASK, CITYSCAPES, VOC])
def test_learning_rates_of_whole_schedules(name):
    _check_rates(name, [])


def test_steps_after_the_end_are_reported():
    cfg, _ = load_yacs(ZOO / MASK, ["SOLVER.MAX_ITER=70000"])
    assert list(cfg.lr_multiplier.scheduler.milestones) == [60000]
    assert list(cfg.origin.ignored) == ["SOLVER.STEPS after SOLVER.MAX_ITER: [80000]"]


def test_the_train_section():
    cfg, _ = load_yacs(ZOO / MASK, [])
    assert dict(cfg.train) == {
        "init_checkpoint": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        "max_iter": 90000,
        "warmup_iters": 1000,
        "eval_period": 0,
        "checkpointer": {"period": 5000},
        "amp": {"enabled": False},
        "device": "cuda",
        "yacs_setup": [],
    }
    overrides = ["SEED=7", "SOLVER.REFERENCE_WORLD_SIZE=4", "MODEL.DEVICE=cpu"]
    cfg, _ = load_yacs(ZOO / MASK, [*overrides, "SOLVER.AMP.ENABLED=True"])
    assert (cfg.train.seed, cfg.train.reference_world_size) == (7, 4)
    assert (cfg.train.device, cfg.train.amp.enabled) == ("cpu", True)


def test_the_output_directory_is_only_that_of_the_command_line(tmp_path):
    file = _yacs_file(tmp_path, f"_BASE_: {ZOO / MASK}\nOUTPUT_DIR: ./there\n")
    cfg, rest = load_yacs(file, [])
    assert "output_dir" not in cfg.train and rest == []
    assert cfg.origin.ignored[0].startswith("OUTPUT_DIR=./there")
    for folder in ("here", "./there"):
        assert load_yacs(file, [f"OUTPUT_DIR={folder}"])[1] == [f'+train.output_dir="{folder}"']
    assert load_yacs(ZOO / MASK, ["OUTPUT_DIR", "./output"])[1] == ['+train.output_dir="./output"']


def test_datasets_of_the_loaders():
    train, test = _datasets(KEYPOINT)
    assert train["names"] == "keypoints_coco_2017_train"
    assert train["min_keypoints"] == 1
    assert test["names"] == "keypoints_coco_2017_val"
    train, test = _datasets(FAST)
    assert len(train["proposal_files"]) == len(test["proposal_files"]) == 1
    train, test = _datasets(VOC)
    assert train["names"] == ["voc_2007_trainval", "voc_2012_trainval"]
    assert (train["filter_empty"], test["filter_empty"]) == (True, False)
    assert _datasets(PANOPTIC)[0]["filter_empty"] is False


def _datasets(name):
    loaders = load_yacs(ZOO / name, [])[0].dataloader
    return _plain(loaders.train.dataset), _plain(loaders.test.dataset)


def test_the_model_reads_the_datasets_of_the_loaders():
    """Models with a federated loss read the class frequencies of their training set."""
    cfg, _ = load_yacs(ZOO / LVIS, [])
    assert cfg.model.config.DATASETS.TRAIN == "lvis_v1_train"
    cfg.dataloader.train.dataset.names = ["a", "b"]
    assert cfg.model.config.DATASETS.TRAIN == ["a", "b"]


def test_samplers():
    sampler = load_yacs(ZOO / LVIS, [])[0].dataloader.train.sampler
    assert sampler["_target_"].__name__ == "RepeatFactorTrainingSampler"
    assert sampler.repeat_factors.repeat_thresh == 0.001
    assert "sampler" not in load_yacs(ZOO / MASK, [])[0].dataloader.train
    for name in ("Mine", "RandomSubsetTrainingSampler"):  # the latter without its ratio
        with pytest.raises(UserError, match=f"^DATALOADER.SAMPLER_TRAIN={name} has no counterpart"):
            load_yacs(ZOO / MASK, [f"DATALOADER.SAMPLER_TRAIN={name}"])


@pytest.mark.parametrize(
    ("name", "evaluators"),
    [
        (MASK, ["COCOEvaluator"]),
        (PANOPTIC, ["SemSegEvaluator", "COCOEvaluator", "COCOPanopticEvaluator"]),
        (LVIS, ["LVISEvaluator"]),
        (CITYSCAPES, ["CityscapesInstanceEvaluator"]),
        (VOC, ["PascalVOCDetectionEvaluator"]),
    ],
)
def test_evaluators_follow_the_type_of_the_test_set(name, evaluators):
    cfg, _ = load_yacs(ZOO / name, [])
    node = cfg.dataloader.evaluator
    nodes = list(node) if OmegaConf.is_list(node) else [node]
    assert [n["_target_"].__name__ for n in nodes] == evaluators
    assert {n.dataset_name for n in nodes} == {cfg.dataloader.test.dataset.names}


def test_evaluators_of_several_test_sets():
    cfg, _ = load_yacs(ZOO / MASK, ["DATASETS.TEST=('coco_2017_val','coco_2014_minival')"])
    assert cfg.dataloader.evaluator.dataset_name == ["coco_2017_val", "coco_2014_minival"]
    assert list(cfg.origin.ignored) == []
    cfg, _ = load_yacs(ZOO / MASK, ["DATASETS.TEST=('coco_2017_val','lvis_v1_val')"])
    assert "lvis_v1_val (lvis)" in cfg.origin.ignored[0]
    cfg, _ = load_yacs(ZOO / MASK, ["DATASETS.TEST=('not_registered',)"])
    assert any("not_registered is COCO's" in line for line in cfg.origin.changes)
    cfg, _ = load_yacs(ZOO / MASK, ["DATASETS.TEST=()"])
    assert cfg.dataloader.test is None and "evaluator" not in cfg.dataloader


def test_keys_without_a_counterpart_are_reported():
    overrides = [
        *("TEST.PRECISE_BN.ENABLED=True", "TEST.AUG.ENABLED=True", "CUDNN_BENCHMARK=True"),
        "TEST.EXPECTED_RESULTS=[['bbox', 'AP', 30.0, 0.1]]",
    ]
    cfg, _ = load_yacs(ZOO / MASK, overrides)
    keys = [line.partition(" ")[0] for line in cfg.origin.ignored]
    expected = ["TEST.PRECISE_BN", "TEST.EXPECTED_RESULTS", "TEST.AUG.ENABLED", "CUDNN_BENCHMARK"]
    assert keys == expected
    assert cfg.dataloader.tta.max_size == 4000


def test_overrides_in_both_forms():
    words = ["SOLVER.BASE_LR=1", "optimizer.lr=0.1", "SOLVER.STEPS", "(10, 20)", "INPUT.FORMAT=RGB"]
    cfg, rest = load_yacs(ZOO / MASK, [*words, "DATASETS.TRAIN=[a]", "MODEL.MASK_ON=false"])
    assert rest == ["optimizer.lr=0.1"]
    assert cfg.optimizer.lr == 1.0
    assert list(cfg.lr_multiplier.scheduler.milestones) == [10, 20]
    assert cfg.dataloader.train.mapper.image_format == "RGB"
    assert cfg.dataloader.train.dataset.names == "a"
    assert cfg.model.config.MODEL.MASK_ON is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("SOLVER.BSE_LR=1", "^unknown key 'SOLVER.BSE_LR'; did you mean 'SOLVER.BASE_LR'"),
        ("SOLVR.BASE_LR=1", "^unknown key 'SOLVR.BASE_LR'; did you mean 'SOLVER.BASE_LR'"),
        ("SOLVER.BASE_LR.X=1", "^unknown key 'SOLVER.BASE_LR.X'"),
        ("SOLVER.BASE_LR=fast", r"^SOLVER.BASE_LR takes float, not str \('fast'\)"),
        ("DATASETS.TRAIN=coco", "^DATASETS.TRAIN takes tuple, not str"),
        ("DATASETS.TRAIN=[a", "^cannot parse the value"),
        ("SOLVER.AMP=True", "^SOLVER.AMP is a section; set its keys, such as SOLVER.AMP.ENABLED"),
        ("SOLVER.BASE_LR", "has no value"),
        ("SOLVER.LR_SCHEDULER_NAME=Poly", "^SOLVER.LR_SCHEDULER_NAME=Poly is not one of"),
        ("+SOLVER.NEW=1", r"^unknown key 'SOLVER.NEW'; only functions add .*: train.yacs_setup=\["),
        ("SOLVER.MAX_ITER=0", "^SOLVER.MAX_ITER=0: give at least 1 iteration"),
        ("SOLVER.MAX_ITER=null", "^SOLVER.MAX_ITER=null: give a value, such as .* 40000"),
        ("SOLVER.STEPS=None", "^SOLVER.STEPS=null: give a value, such as"),
        ("SEED=null", "^SEED=null: give a value, such as"),
        ("DATASETS.TRAIN=null", "^DATASETS.TRAIN=null: give a value, such as"),
        ("OUTPUT_DIR=null", "^OUTPUT_DIR=null: give a value, such as"),
        ("INPUT.RANDOM_FLIP=up", "^INPUT.RANDOM_FLIP=up: give horizontal, vertical or none"),
    ],
)
def test_wrong_overrides(override, message):
    with pytest.raises(UserError, match=message):
        load_yacs(ZOO / MASK, [override])


def test_a_cosine_schedule_needs_a_learning_rate():
    words = ["SOLVER.BASE_LR=0", "SOLVER.LR_SCHEDULER_NAME=WarmupCosineLR"]
    with pytest.raises(UserError, match="^SOLVER.BASE_LR=0.0: WarmupCosineLR needs more than 0"):
        load_yacs(ZOO / MASK, words)


def test_a_plus_may_stand_before_a_known_key():
    assert load_yacs(ZOO / MASK, ["+SOLVER.BASE_LR=1"])[0].optimizer.lr == 1.0


def test_keypoints_need_the_names_of_a_registered_dataset():
    with pytest.raises(UserError, match="DATASETS.TRAIN=.*keypoint_names"):
        load_yacs(ZOO / KEYPOINT, ["DATASETS.TRAIN=('not_registered',)"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {MASK_ONE: True}", "unknown key 'MODEL.MASK_ONE'; did you mean 'MODEL.MASK_ON'"),
        ("MODEL: {MASK_ON: 3}", "Type mismatch"),
        ("_BASE_: missing.yaml", "FileNotFoundError.*missing.yaml"),
        ("SOLVER: {STEPS: [1", "ParserError"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    file = _yacs_file(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        load_yacs(file, [])
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


POINT_REND = f"""_BASE_: {ZOO / MASK}
MODEL:
  ROI_MASK_HEAD: {{NAME: PointRendMaskHead, POOLER_TYPE: '', POINT_HEAD_ON: True}}
  POINT_HEAD: {{NUM_CLASSES: 80, IN_FEATURES: [p2]}}
"""


def test_a_project_adds_keys_and_classes(tmp_path):
    file = _yacs_file(tmp_path, POINT_REND)
    with pytest.raises(UserError, match="unknown key 'MODEL.*train.yacs_setup="):
        load_yacs(file, [])
    cfg, rest = load_yacs(file, [SETUP, *TINY])
    assert rest == []
    assert list(cfg.train.yacs_setup) == [SETUP.partition("[")[2].rstrip("]")]
    assert type(instantiate(cfg.model).roi_heads.mask_head).__name__ == "PointRendMaskHead"
    assert list(cfg.origin.ignored) == ["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA=1.0"]


def test_augmentations_of_semantic_segmentation_projects():
    words = ["INPUT.CROP.ENABLED=True", "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA=0.75"]
    cfg, _ = load_yacs(ZOO / SEMANTIC, [SETUP, *words, "INPUT.COLOR_AUG_SSD=True"])
    made = instantiate(cfg.dataloader.train.mapper).augmentations.augs
    names = ["ResizeShortestEdge", "RandomCrop_CategoryAreaConstraint", "RandomFlip"]
    assert [type(a).__name__ for a in made if type(a).__name__ in names] == names
    assert (made[1].single_category_max_area, made[1].ignored_category) == (0.75, 255)
    assert type(made[2].tfm).__name__ == "ColorAugSSDTransform"
    assert list(cfg.origin.ignored) == []


def test_a_project_registers_its_datasets_once(tmp_path, monkeypatch):
    (tmp_path / "yacs_project.py").write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "def register():\n"
        "    DatasetCatalog.register('yacs_project_val', list)\n"
        "    MetadataCatalog.get('yacs_project_val').set(evaluator_type='lvis')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["train.yacs_setup=[yacs_project.register]", "DATASETS.TEST=[yacs_project_val]"]
    for _ in range(2):
        cfg, _ = load_yacs(ZOO / MASK, words)
    assert cfg.dataloader.evaluator["_target_"].__name__ == "LVISEvaluator"
    MetadataCatalog.remove("yacs_project_val")


def test_a_saved_config_registers_the_datasets_of_its_project(tmp_path, monkeypatch):
    (tmp_path / "yacs_project_2.py").write_text(
        "from detectron2.data import DatasetCatalog\n"
        "def register():\n"
        "    DatasetCatalog.register('yacs_project_2_val', list)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(saved_text(load_config(ZOO / MASK))[0])
    load_config(file, ["train.yacs_setup=[yacs_project_2.register]"])
    assert "yacs_project_2_val" in DatasetCatalog
    DatasetCatalog.remove("yacs_project_2_val")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x.y", "takes a list"),
        ("[1]", "takes a list"),
        ("[x", "takes a list"),
        ("[no_such_project.add_config]", "cannot import no_such_project.add_config"),
        ("[json.loads]", "json.loads fails: TypeError"),
    ],
)
def test_wrong_functions_of_a_project(value, message):
    with pytest.raises(UserError, match=f"^train.yacs_setup.*{message}"):
        load_yacs(ZOO / MASK, [f"train.yacs_setup={value}"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("_BASE_: a.yaml", True),
        ("SOLVER: {MAX_ITER: 3}", True),
        ("MODEL: {SIZES: !!python/object/apply:eval ['1']}", True),
        ("model: {}\ntrain: {}", False),
        ("- MODEL", False),
        ("MODEL: [1", False),
        ("", False),
    ],
)
def test_yacs_files_are_recognized(tmp_path, text, expected):
    assert is_yacs(_yacs_file(tmp_path, text)) is expected


def test_other_files_are_not_yacs(tmp_path):
    file = tmp_path / "config.py"
    file.write_text("MODEL = 1")
    assert not is_yacs(file)
