"""Turn a yacs config of Detectron2 into one with the sections of its LazyConfigs.

`MODEL: ...` files are translated key by key, such that model, data and learning rates are those of
Detectron2's tools/train_net.py.
"""

import functools
import inspect
import json
from ast import literal_eval
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from d2ext.errors import UserError, format_exception
from d2ext.text import did_you_mean

# Top-level keys of Detectron2's defaults, and the one that names another file to start from.
_SECTIONS = {
    *("_BASE_", "VERSION", "MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER", "TEST"),
    *("OUTPUT_DIR", "SEED", "CUDNN_BENCHMARK", "VIS_PERIOD", "GLOBAL"),
}
# Keys that are not part of `model.config`, because other sections of the result have them.
NOT_OF_MODEL = (
    *("VERSION", "SOLVER", "DATALOADER", "OUTPUT_DIR", "SEED", "CUDNN_BENCHMARK"),
    *("MODEL.DEVICE", "MODEL.WEIGHTS", "DATASETS.PROPOSAL_FILES_TRAIN"),
    *("DATASETS.PROPOSAL_FILES_TEST", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN"),
    *("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", "TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS"),
    *("TEST.KEYPOINT_OKS_SIGMAS", "TEST.AUG", "TEST.PRECISE_BN"),
)
# Heads whose class count each meta-architecture of Detectron2 reads.
_HEADS = {
    "GeneralizedRCNN": ("ROI_HEADS",),
    "PanopticFPN": ("ROI_HEADS", "SEM_SEG_HEAD"),
    "ProposalNetwork": (),
    "RetinaNet": ("RETINANET",),
    "SemanticSegmentor": ("SEM_SEG_HEAD",),
}
# Keys that PointRend and DeepLab add; see `_crops_stuff`.
_AUGMENTATION_KEYS = ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", "INPUT.COLOR_AUG_SSD")
_SETUP = "train.yacs_setup"
_MODEL = "d2ext.modeling.yacs_model"


def is_yacs(path: Path) -> bool:
    """Return whether a file is a yacs config; it is parsed, but no object is created."""
    import yaml

    if path.suffix not in (".yaml", ".yml"):
        return False
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError):  # reported when it is loaded
        return False
    if not isinstance(root, yaml.MappingNode):
        return False
    return not _SECTIONS.isdisjoint(key.value for key, _ in root.value if key.id == "scalar")


def load_yacs(path: Path, overrides: Sequence[str]) -> tuple[Any, list[str]]:
    """Load a yacs config and translate it.

    Overrides whose key starts with a section of the file, such as `SOLVER.BASE_LR=0.01`, or
    Detectron2's `SOLVER.BASE_LR 0.01`, are applied before the translation. The functions of
    `train.yacs_setup=[module.function]` are called before the file is read; see `yacs_defaults`.

    Args:
        path: The file.
        overrides: Overrides from the command line, in both forms.

    Returns:
        A DictConfig with the sections of Detectron2's LazyConfigs and `origin`, and the overrides
        that have not been applied yet.

    Raises:
        UserError: The file or an override is not valid, or has no counterpart in d2ext.
    """
    setup, overrides = _take_setup(overrides)
    cfg = yacs_defaults(setup)
    _merge_file(cfg, path)
    in_file = cfg.OUTPUT_DIR
    rest, applied = _apply(cfg, overrides)
    _check_values(cfg)
    made = _translated(cfg, setup)
    if "OUTPUT_DIR" in applied:
        rest.insert(0, f"+train.output_dir={json.dumps(cfg.OUTPUT_DIR)}")
    elif in_file != yacs_defaults().OUTPUT_DIR:
        made.origin.ignored.append(f"OUTPUT_DIR={in_file} (set it on the command line)")
    return made, rest


def yacs_defaults(setup: Sequence[str] = ()) -> Any:
    """Return Detectron2's default CfgNode with the keys of projects.

    Args:
        setup: Full names of functions. Those with a parameter are called with the CfgNode, as
            `add_pointrend_config(cfg)`; others are called once, and may register datasets.

    Raises:
        UserError: A function cannot be imported or fails.
    """
    from detectron2.config import get_cfg

    cfg = get_cfg()
    for name in setup:
        function = _located(name)
        try:
            if inspect.signature(function).parameters:
                function(cfg)
            else:
                _call_once(function)
        except Exception as e:  # raised by the project's code
            raise UserError(f"{_SETUP}: {name} fails: {format_exception(e)}") from e
    return cfg


@functools.cache
def _call_once(function: Any) -> None:
    function()


def _located(name: str) -> Any:
    from detectron2.utils.registry import locate

    try:
        return locate(name)
    except Exception as e:  # importing a module runs its code
        raise UserError(
            f"{_SETUP}: cannot import {name} ({format_exception(e)}); give module.function, and"
            " check that the module is on PYTHONPATH"
        ) from e


def _take_setup(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the functions of `train.yacs_setup` in the overrides, and the other overrides."""
    import yaml

    setup: list[str] = []
    rest = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if key.strip().removeprefix("+") != _SETUP or not equals:
            rest.append(text)
            continue
        try:
            setup = yaml.safe_load(value) or []
        except yaml.YAMLError:
            setup = [""]
        if not isinstance(setup, list) or not all(isinstance(n, str) and n for n in setup):
            raise UserError(f"{_SETUP}={value}: takes a list, [module.function]")
    return setup, rest


def _merge_file(cfg: Any, path: Path) -> None:
    """Merge a file and its bases into a CfgNode."""
    try:
        # As Detectron2 does, this creates the objects that a file names by `!!python/object`.
        cfg.merge_from_file(str(path))
    except KeyError as e:
        problem, _, key = str(e.args[0]).rpartition(": ")
        if not problem.startswith("Non-existent"):
            raise UserError(f"{path}: {e.args[0]}") from e
        hint = did_you_mean(key, dict(_leaves(cfg)), "no known key is similar")
        raise UserError(
            f"{path}: unknown key {key!r}; {hint} (keys of a project need its function:"
            f" {_SETUP}=[module.function])"
        ) from e
    except Exception as e:  # from YAML, a base that does not exist, a value of the wrong type, ...
        raise UserError(f"{path}: {format_exception(e)}") from e


def _apply(cfg: Any, overrides: Sequence[str]) -> tuple[list[str], set[str]]:
    """Apply the overrides in yacs form to a CfgNode; return the others, and the keys applied."""
    rest, applied = [], set()
    words = iter(overrides)
    for text in words:
        written, equals, value = text.partition("=")
        key = written.strip().removeprefix("+")
        section = key.partition(".")[0]
        if text.startswith("-") or not (section.isupper() or section in cfg):
            rest.append(text)
            continue
        if not equals:  # Detectron2's own form, KEY VALUE
            value = next(words, None)
            if value is None:
                raise UserError(f"the override {text!r} has no value; write {key}=VALUE")
        *parents, last = key.split(".")
        node = cfg
        for name in parents:
            node = node.get(name) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            known = dict(_leaves(cfg))
            # The same name in another section is a better guess than a similar path.
            namesakes = [k for k in known if k.rpartition(".")[2] == last]
            hint = did_you_mean(key, namesakes or known, "no known key is similar", cutoff=0.4)
            if written.startswith("+"):
                hint = f"only functions add keys to a yacs config: {_SETUP}=[module.function]"
            raise UserError(f"unknown key {key!r}; {hint}")
        node[last] = coerced(key, _parsed(value), node[last])
        applied.add(key)
    return rest, applied


def _check_values(cfg: Any) -> None:
    """Raise a UserError for values from which no run can be computed."""
    values = dict(_leaves(cfg))
    for key, default in _leaves(yacs_defaults()):
        # Models check their own keys.
        if (
            values.get(key, default) is None
            and default is not None
            and not key.startswith("MODEL.")
        ):
            raise UserError(f"{key}=null: give a value, such as the default, {default!r}")
    if cfg.SOLVER.MAX_ITER < 1:
        raise UserError(f"SOLVER.MAX_ITER={cfg.SOLVER.MAX_ITER}: give at least 1 iteration")
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR" and cfg.SOLVER.BASE_LR <= 0:
        raise UserError(f"SOLVER.BASE_LR={cfg.SOLVER.BASE_LR}: WarmupCosineLR needs more than 0")


def _parsed(text: str) -> Any:
    """Return the value of an override: a Python literal, a YAML list or bool, or text."""
    import yaml

    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if not text.startswith("[") and text not in ("true", "false", "null"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UserError(f"cannot parse the value {text!r}: {str(e).splitlines()[0]}") from e


def coerced(key: str, value: Any, old: Any) -> Any:
    """Return a value of a yacs key in the type of its old value.

    Lists become tuples and vice versa, and integers become floats; None has no type.

    Raises:
        UserError: The value has another type.
    """
    if isinstance(old, dict):
        raise UserError(f"{key} is a section; set its keys, such as {key}.{next(iter(old))}=...")
    if isinstance(old, list | tuple) and isinstance(value, list | tuple):
        return type(old)(value)
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if value is not None and old is not None and type(value) is not type(old):
        names = f"{type(old).__name__}, not {type(value).__name__}"
        raise UserError(f"{key} takes {names} ({value!r})")
    return value


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of a CfgNode that is not a section, dotted, with its value."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _translated(cfg: Any, setup: list[str]) -> Any:
    """Return the LazyConfig for a CfgNode."""
    from detectron2.config import LazyCall as L
    from omegaconf import OmegaConf

    origin: dict[str, Any] = dict(
        format="a yacs config of Detectron2",
        changes=[
            "MODEL -> model.config, which detectron2.modeling.build_model builds",
            "SOLVER -> optimizer, lr_multiplier and train",
            "INPUT, DATASETS and DATALOADER -> dataloader",
        ],
        ignored=_ignored(cfg),
    )
    model = L(f"{_MODEL}.build_yacs_model")(config=_model_config(cfg), yacs_setup=f"${{{_SETUP}}}")
    sections = dict(
        model=model,
        dataloader=_dataloader(cfg, origin),
        optimizer=_optimizer(cfg, origin),
        lr_multiplier=_lr_multiplier(cfg, origin),
        train={**_train(cfg, origin), "yacs_setup": setup},
        origin=origin,
    )
    return OmegaConf.create(sections, flags={"allow_objects": True})


def _model_config(cfg: Any) -> dict[str, Any]:
    """Return the keys that a model may read, as nested dicts."""
    made: dict[str, Any] = {}
    architecture = cfg.MODEL.META_ARCHITECTURE
    own = {"ROI_HEADS", "RETINANET", "SEM_SEG_HEAD"}
    unread = own - set(_HEADS.get(architecture, own))
    for key, value in _leaves(cfg):
        *parents, last = key.split(".")
        if key.startswith(NOT_OF_MODEL):
            continue
        # A class count that the model does not read must not be compared with the data.
        if last == "NUM_CLASSES" and parents[-1] in unread:
            continue
        node = made
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    for split in ("TRAIN", "TEST"):
        if cfg.DATASETS[split]:
            made["DATASETS"][split] = f"${{dataloader.{split.lower()}.dataset.names}}"
    return made


def _train(cfg: Any, origin: dict[str, Any]) -> dict[str, Any]:
    solver = cfg.SOLVER
    made: dict[str, Any] = dict(
        init_checkpoint=cfg.MODEL.WEIGHTS,
        max_iter=solver.MAX_ITER,
        warmup_iters=solver.WARMUP_ITERS,
        eval_period=cfg.TEST.EVAL_PERIOD,
        checkpointer=dict(period=solver.CHECKPOINT_PERIOD),
        amp=dict(enabled=solver.AMP.ENABLED),
        device=cfg.MODEL.DEVICE,
    )
    if cfg.SEED >= 0:
        made["seed"] = cfg.SEED
    else:
        origin["changes"].append(f"SEED={cfg.SEED} (random) -> the default of train.seed")
    if solver.REFERENCE_WORLD_SIZE > 0:
        made["reference_world_size"] = solver.REFERENCE_WORLD_SIZE
        origin["changes"].append(
            f"SOLVER.REFERENCE_WORLD_SIZE={solver.REFERENCE_WORLD_SIZE} ->"
            " train.reference_world_size; train.auto_scale_lr.enabled=True scales the batch"
        )
    clipping = solver.CLIP_GRADIENTS
    if clipping.ENABLED and _clips_all(clipping):
        made["clip_grad_norm"] = clipping.CLIP_VALUE
        origin["changes"].append(
            f"SOLVER.CLIP_GRADIENTS -> train.clip_grad_norm={clipping.CLIP_VALUE:g}"
        )
    return made


def _clips_all(clipping: Any) -> bool:
    """Return whether the gradients' L2 norm over all parameters is clipped."""
    return clipping.CLIP_TYPE == "full_model" and clipping.NORM_TYPE == 2.0


def _optimizer(cfg: Any, origin: dict[str, Any]) -> Any:
    import torch
    from detectron2.config import LazyCall as L
    from detectron2.solver.build import get_default_optimizer_params

    solver, clipping = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    made = L(torch.optim.SGD)(
        params=L(get_default_optimizer_params)(
            base_lr="${..lr}",
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            bias_lr_factor=solver.BIAS_LR_FACTOR,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        ),
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
    )
    if not clipping.ENABLED or _clips_all(clipping):
        return made
    if clipping.CLIP_TYPE not in ("value", "norm"):
        origin["ignored"].append(
            f"SOLVER.CLIP_GRADIENTS of type {clipping.CLIP_TYPE} (gradients are not clipped)"
        )
        return made
    made["_target_"] = f"{_MODEL}.clipped_sgd"
    made.clip_type = clipping.CLIP_TYPE
    made.clip_value = clipping.CLIP_VALUE
    made.norm_type = clipping.NORM_TYPE
    return made


def _lr_multiplier(cfg: Any, origin: dict[str, Any]) -> Any:
    from detectron2.config import LazyCall as L
    from detectron2.solver import WarmupParamScheduler

    solver = cfg.SOLVER
    return L(WarmupParamScheduler)(
        scheduler=_scheduler(solver, origin),
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_length=min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        warmup_method=solver.WARMUP_METHOD,
        rescale_interval=solver.RESCALE_INTERVAL,
    )


def _scheduler(solver: Any, origin: dict[str, Any]) -> Any:
    """Return the schedule after the warm-up, as `detectron2.solver.build_lr_scheduler` does."""
    from detectron2.config import LazyCall as L
    from fvcore.common.param_scheduler import (
        CosineParamScheduler,
        MultiStepParamScheduler,
        StepWithFixedGammaParamScheduler,
    )

    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) < len(solver.STEPS):
            later = [step for step in solver.STEPS if step > solver.MAX_ITER]
            origin["ignored"].append(f"SOLVER.STEPS after SOLVER.MAX_ITER: {later}")
        return L(MultiStepParamScheduler)(
            values=[solver.GAMMA**k for k in range(len(steps) + 1)],
            milestones=steps,
            num_updates=solver.MAX_ITER,
        )
    if name == "WarmupCosineLR":
        return L(CosineParamScheduler)(start_value=1, end_value=solver.BASE_LR_END / solver.BASE_LR)
    if name == "WarmupStepWithFixedGammaLR":
        return L(StepWithFixedGammaParamScheduler)(
            base_value=1.0,
            gamma=solver.GAMMA,
            num_decays=solver.NUM_DECAYS,
            num_updates=solver.MAX_ITER,
        )
    raise UserError(
        f"SOLVER.LR_SCHEDULER_NAME={name} is not one of Detectron2's; set it to WarmupMultiStepLR,"
        " WarmupCosineLR or WarmupStepWithFixedGammaLR"
    )


def _dataloader(cfg: Any, origin: dict[str, Any]) -> dict[str, Any]:
    from detectron2.config import LazyCall as L
    from detectron2.data import (
        build_detection_test_loader,
        build_detection_train_loader,
        get_detection_dataset_dicts,
    )

    loader, data = cfg.DATALOADER, cfg.DATASETS
    train = L(get_detection_dataset_dicts)(
        names=_one_or_all(data.TRAIN), filter_empty=loader.FILTER_EMPTY_ANNOTATIONS
    )
    test = L(get_detection_dataset_dicts)(names=_one_or_all(data.TEST), filter_empty=False)
    if cfg.MODEL.KEYPOINT_ON:
        train.min_keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    if cfg.MODEL.LOAD_PROPOSALS:
        train.proposal_files = data.PROPOSAL_FILES_TRAIN
        test.proposal_files = data.PROPOSAL_FILES_TEST
    made: dict[str, Any] = dict(
        train=L(build_detection_train_loader)(
            dataset=train,
            mapper=_mapper(cfg, is_train=True),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=loader.ASPECT_RATIO_GROUPING,
            num_workers=loader.NUM_WORKERS,
        ),
        test=None,
        tta=dict(
            min_sizes=cfg.TEST.AUG.MIN_SIZES, max_size=cfg.TEST.AUG.MAX_SIZE, flip=cfg.TEST.AUG.FLIP
        ),
    )
    if sampler := _sampler(loader):
        made["train"].sampler = sampler
    if data.TEST:
        made["test"] = L(build_detection_test_loader)(
            dataset=test, mapper=_mapper(cfg, is_train=False), num_workers=loader.NUM_WORKERS
        )
        made["evaluator"] = _evaluator(cfg, origin)
    return made


def _one_or_all(names: Sequence[str]) -> Any:
    return names[0] if len(names) == 1 else list(names)


def _mapper(cfg: Any, is_train: bool) -> Any:
    """Return the lazy call of the mapper that `DatasetMapper(cfg, is_train)` builds."""
    from detectron2.config import LazyCall as L
    from detectron2.data import DatasetMapper

    crops = is_train and cfg.INPUT.CROP.ENABLED
    made = L(DatasetMapper)(
        is_train=is_train,
        augmentations=_augmentations(cfg, is_train),
        image_format="${model.config.INPUT.FORMAT}",
        use_instance_mask=cfg.MODEL.MASK_ON,
        instance_mask_format=cfg.INPUT.MASK_FORMAT,
        use_keypoint=cfg.MODEL.KEYPOINT_ON,
        recompute_boxes=crops and cfg.MODEL.MASK_ON,
    )
    if cfg.MODEL.KEYPOINT_ON:
        made.keypoint_hflip_indices = _flip_indices(cfg.DATASETS.TRAIN)
    if cfg.MODEL.LOAD_PROPOSALS:
        split = "TRAIN" if is_train else "TEST"
        made.precomputed_proposal_topk = cfg.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{split}"]
    return made


def _augmentations(cfg: Any, is_train: bool) -> list[Any]:
    import detectron2.data.transforms as T
    from detectron2.config import LazyCall as L

    given, crop = cfg.INPUT, cfg.INPUT.CROP
    if not is_train:
        return [
            L(T.ResizeShortestEdge)(
                short_edge_length=given.MIN_SIZE_TEST,
                max_size=given.MAX_SIZE_TEST,
                sample_style="choice",
            )
        ]
    made = [
        L(T.ResizeShortestEdge)(
            short_edge_length=given.MIN_SIZE_TRAIN,
            max_size=given.MAX_SIZE_TRAIN,
            sample_style=given.MIN_SIZE_TRAIN_SAMPLING,
        )
    ]
    if _crops_stuff(cfg):
        if crop.ENABLED:
            made.append(
                L(T.RandomCrop_CategoryAreaConstraint)(
                    crop_type=crop.TYPE,
                    crop_size=crop.SIZE,
                    single_category_max_area=crop.SINGLE_CATEGORY_MAX_AREA,
                    ignored_category=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
                )
            )
        if given.get("COLOR_AUG_SSD"):
            color = "detectron2.projects.point_rend.ColorAugSSDTransform"
            made.append(L(color)(img_format="${model.config.INPUT.FORMAT}"))
    elif crop.ENABLED:
        made.insert(0, L(T.RandomCrop)(crop_type=crop.TYPE, crop_size=crop.SIZE))
    if given.RANDOM_FLIP == "horizontal":
        made.append(L(T.RandomFlip)(horizontal=True))
    elif given.RANDOM_FLIP == "vertical":
        made.append(L(T.RandomFlip)(horizontal=False, vertical=True))
    elif given.RANDOM_FLIP != "none":
        raise UserError(f"INPUT.RANDOM_FLIP={given.RANDOM_FLIP}: give horizontal, vertical or none")
    return made


def _crops_stuff(cfg: Any) -> bool:
    """Return whether the augmentations are those of the projects PointRend and DeepLab."""
    semantic = "SemanticSegmentor" in cfg.MODEL.META_ARCHITECTURE
    return semantic and "SINGLE_CATEGORY_MAX_AREA" in cfg.INPUT.CROP


def _flip_indices(names: Sequence[str]) -> list[int]:
    from detectron2.data.detection_utils import create_keypoint_hflip_indices

    try:
        return create_keypoint_hflip_indices(list(names))
    except (AttributeError, IndexError, ValueError) as e:
        raise UserError(
            f"DATASETS.TRAIN={names}: MODEL.KEYPOINT_ON needs the metadata keypoint_names and"
            f" keypoint_flip_map; a function of {_SETUP} can register the datasets"
        ) from e


def _sampler(loader: Any) -> Any:
    """Return the lazy call of the training sampler, or None for Detectron2's default."""
    from detectron2.config import LazyCall as L
    from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler

    name = loader.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return None
    if name == "RepeatFactorTrainingSampler":
        return L(RepeatFactorTrainingSampler)(
            repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
                dataset_dicts="${dataloader.train.dataset}",
                repeat_thresh=loader.REPEAT_THRESHOLD,
                sqrt=loader.REPEAT_SQRT,
            )
        )
    if name == "RandomSubsetTrainingSampler" and "RANDOM_SUBSET_RATIO" in loader:
        return L(RandomSubsetTrainingSampler)(subset_ratio=loader.RANDOM_SUBSET_RATIO)
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN={name} has no counterpart in d2ext; set it to TrainingSampler or"
        " RepeatFactorTrainingSampler, or to RandomSubsetTrainingSampler with RANDOM_SUBSET_RATIO"
    )


def _evaluator(cfg: Any, origin: dict[str, Any]) -> Any:
    """Return the evaluators that Detectron2's tools/train_net.py chooses for the test sets."""
    from detectron2.config import LazyCall as L
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import (
        CityscapesInstanceEvaluator,
        CityscapesSemSegEvaluator,
        COCOEvaluator,
        COCOPanopticEvaluator,
        LVISEvaluator,
        PascalVOCDetectionEvaluator,
        SemSegEvaluator,
    )

    classes = {
        "sem_seg": [SemSegEvaluator],
        "coco": [COCOEvaluator],
        "coco_panoptic_seg": [SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator],
        "cityscapes_instance": [CityscapesInstanceEvaluator],
        "cityscapes_sem_seg": [CityscapesSemSegEvaluator],
        "pascal_voc": [PascalVOCDetectionEvaluator],
        "lvis": [LVISEvaluator],
    }
    first, *others = cfg.DATASETS.TEST
    kinds = {name: MetadataCatalog.get(name).get("evaluator_type") for name in (first, *others)}
    kind = kinds[first]
    if kind not in classes:
        origin["changes"].append(
            f"the evaluator of {first} is COCO's, because its evaluator_type is {kind}"
        )
        kind = "coco"
    for name in others:
        if kinds[name] != kinds[first]:
            origin["ignored"].append(
                f"the evaluator of {name} ({kinds[name]}): all test sets have that of {first}"
                f" ({kind})"
            )
    chosen = classes[kind]
    several = "." if len(chosen) > 1 else ""  # in a list, one level deeper
    made = [L(c)(dataset_name=f"${{..{several}test.dataset.names}}") for c in chosen]
    for node in made:
        if node["_target_"] is COCOEvaluator and cfg.TEST.KEYPOINT_OKS_SIGMAS:
            node.kpt_oks_sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    return made if several else made[0]


def _ignored(cfg: Any) -> list[str]:
    """Return the keys that have no effect in d2ext, with their values."""
    lines = []
    if cfg.TEST.PRECISE_BN.ENABLED:
        lines.append("TEST.PRECISE_BN (normalization statistics are those of the training)")
    if cfg.TEST.EXPECTED_RESULTS:
        lines.append("TEST.EXPECTED_RESULTS (--expect checks results)")
    if cfg.TEST.AUG.ENABLED:
        lines.append("TEST.AUG.ENABLED (--tta evaluates with dataloader.tta)")
    if cfg.CUDNN_BENCHMARK:
        lines.append("CUDNN_BENCHMARK")
    # A project's own script reads these keys. Models read theirs, and False turns something off.
    known = dict(_leaves(yacs_defaults()))
    read = _AUGMENTATION_KEYS if _crops_stuff(cfg) else ()
    for key, value in _leaves(cfg):
        added = key not in known and key.partition(".")[0] in _SECTIONS - {"MODEL"}
        if added and key not in read and value is not False:
            note = " (the optimizer is SGD)" if key == "SOLVER.OPTIMIZER" else ""
            lines.append(f"{key}={value}{note}")
    return lines
