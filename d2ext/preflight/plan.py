"""Check everything that can be checked before processes start or files are written.

Preflight turns a config and the command's flags into a `Plan` of plain values, which is sent to
every process; each failed check names the field, the value and the remedy.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from omegaconf import OmegaConf

from d2ext.checkpoint.files import find_newest
from d2ext.checkpoint.weights.initial import local_weights
from d2ext.config.augmentation import augmentation_lines, with_augmentation
from d2ext.config.choices import is_auto, with_choices
from d2ext.config.flatten import flatten
from d2ext.config.load import load_config
from d2ext.config.lr_scaling import ScalingReport, check_batch, scale_config
from d2ext.config.model_kind import returns_keypoints, returns_masks
from d2ext.config.num_classes import check_num_classes
from d2ext.config.options import TrainOptions
from d2ext.config.schedule import Period, Schedule, resolve_schedule
from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.data.datasets.mixing import TrainingSet
from d2ext.data.fitting.fit import Fitted
from d2ext.data.splitting.own_data import Split, kept_split, own_split
from d2ext.errors import UserError, config_errors
from d2ext.evaluation.expect import parse_expectation
from d2ext.evaluation.suite import test_sets
from d2ext.invocation import command, option
from d2ext.launch.device import choose_device
from d2ext.preflight.budget import Measure, Workload, fit_budget
from d2ext.preflight.chosen import choose_values, hardware_of
from d2ext.preflight.datasets import check_datasets
from d2ext.preflight.loader_needs import loader_warnings
from d2ext.preflight.model_fields import check_model_fields
from d2ext.preflight.options import (
    best_metric,
    check_flags,
    check_metrics,
    check_options,
    check_schedule,
    precision_advice,
)
from d2ext.preflight.tiles import check_tiles, tile_lines
from d2ext.preflight.validation_loss import sets_with_loss
from d2ext.run_dir.lock import (
    check_writable,
    refuse_mixing,
    refuse_moving,
    refuse_others,
    wait_until_free,
)
from d2ext.run_dir.names import BEST, CONFIG
from d2ext.run_dir.schema import DatasetInfo, ResultsRecord, read_valid_part
from d2ext.text import plural

logger = logging.getLogger(__name__)

# A run in iterations with more epochs was probably made for more images. COCO, with 118,000 images,
# is trained for up to 400 epochs.
_MOST_EPOCHS, _USUAL_EPOCHS, _LARGE_DATASET = 150, 24, 20_000


@dataclass
class Built:
    """Hold objects that preflight built, for a run in the same process.

    Mapper and metrics are not included, because preflight has used them; a run builds its own.

    Attributes:
        cfg: Config with the chosen values and those of this run's world size; its datasets are
            registered.
        train_dataset: Dataset of `dataloader.train`; None for an evaluation.
    """

    cfg: Any
    train_dataset: Any = None


@dataclass(frozen=True)
class Plan:
    """Hold the decisions of preflight.

    Attributes:
        output_dir: Output directory of the run.
        device: `cpu` or `cuda`.
        classes: Class names; their number is the class count of every head of the model.
        datasets: `DatasetInfo` of each dataset, by name.
        schedule: Epochs and periods in iterations; None for an evaluation.
        weights: Local path of the initial weights, or of those to evaluate.
        resume: Local path of the checkpoint to resume, or None.
        scaling: `ScalingReport` if learning rates were scaled, else None.
        lines: The plan as text.
        best_metric: Key of the result that decides which model is best, or None.
        damaged: Damaged checkpoints, which the run renames.
        eval_only: The run evaluates `weights` and does not train.
        validate: The run evaluates on `dataloader.val` during training.
        validation_loss: Validation sets on which the training losses are computed.
        tta: The evaluation uses test-time augmentation.
        overwrite: The run moves an earlier run in its directory aside.
        shares_directory: The run may continue in the directory of an earlier one.
        expect: Bounds on results, for `parse_expectation`.
        split: Split of `data.json`; None if the config gives a file for each set.
        fitted: Values chosen for the config; None if none are chosen.
        caveats: Sentences about what makes results misleading, for the report.
        built: Objects that preflight built; None if the plan came from another process.
    """

    output_dir: Path
    device: str
    classes: list[str]
    datasets: dict[str, DatasetInfo]
    schedule: Schedule | None
    weights: str
    resume: Path | None
    scaling: ScalingReport | None
    lines: list[str]
    best_metric: str | None = None
    damaged: tuple[Path, ...] = ()
    eval_only: bool = False
    validate: bool = True
    validation_loss: tuple[str, ...] = ()
    tta: bool = False
    overwrite: bool = False
    shares_directory: bool = False
    expect: tuple[str, ...] = ()
    split: Split | None = None
    fitted: Fitted | None = None
    caveats: tuple[str, ...] = ()
    built: Built | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # A config may contain functions that cannot be pickled; each process loads its own.
        return {**self.__dict__, "built": None}


def plan_run(
    cfg: Any,
    name: str,
    *,
    num_gpus: int = 1,
    gpu_each: bool = False,
    world_size: int = 1,
    eval_only: bool = False,
    weights: str | None = None,
    resume: bool = False,
    resume_from: str | None = None,
    overwrite: bool = False,
    validate: bool = True,
    tta: bool = False,
    expect: Sequence[str] = (),
    measure: Measure | None = None,
    since: float | None = None,
) -> Plan:
    """Check a config against the data, the model and the machine, and log the plan.

    Nothing is written except for initial weights downloaded to the cache ($D2EXT_CACHE).

    Args:
        cfg: Config returned by `load_config`.
        name: Name of the run, and of its default output directory.
        num_gpus: Number of processes on this machine.
        gpu_each: Argument of `choose_device`.
        world_size: Number of processes on all machines.
        eval_only: Evaluate `weights`; do not train.
        weights: `best`, `last` or a file, for an evaluation.
        resume: Resume the newest intact checkpoint of the output directory, if there is one.
        resume_from: Resume this checkpoint.
        overwrite: Move an earlier run in the output directory aside.
        validate: Evaluate on `dataloader.val` during training.
        tta: Evaluate with test-time augmentation.
        expect: Bounds on results, for `parse_expectation`.
        measure: Function that times steps, for `train.budget`.
        since: Monotonic time at which the command started; None: now.

    Raises:
        UserError: The user can fix the error.
    """
    lines: list[str] = []
    since = time.monotonic() if since is None else since
    check_flags(eval_only, weights, resume, resume_from, overwrite)
    options = TrainOptions.from_config(cfg.train)
    device, description = choose_device(options.device, num_gpus, gpu_each)
    output_dir = Path(options.output_dir or Path("work_dirs") / name)
    _say(lines, f"output      {output_dir}", f"device      {description}")
    _say(lines, *_origin_lines(cfg, device))
    if options.eval_period == 0 and not cfg.evaluators:
        validate = False  # as in imported configs without validation data
    check_options(cfg, options, device, validate, eval_only, tta, expect)
    if not eval_only:
        _say(lines, *_titled("precision", precision_advice(options.amp, device)))
    checkpoint, damaged = _find_checkpoint(output_dir, eval_only, resume, resume_from, overwrite)

    source = options.init_checkpoint or ""
    if eval_only:
        source = weights_to_evaluate(weights, checkpoint, output_dir, source)
    earlier = _earlier_run(output_dir, checkpoint, resume, source if eval_only else None)
    split, about = own_split(cfg, kept_split(earlier) if earlier else None)
    _say(lines, *_titled("split", about))
    differences = register_run_datasets(cfg, split)
    hardware = hardware_of(device, num_gpus, options.accumulate, world_size)
    trained = eval_only or checkpoint is not None
    chosen, is_new = choose_values(cfg, hardware, earlier, trained)
    auto = is_auto(cfg)
    if chosen and auto:
        _say(lines, *_titled("auto", chosen.lines()))
    original, scaling = cfg, None
    if chosen:
        cfg = with_choices(cfg, chosen.applied)
    if not eval_only:
        given, (cfg, scaling) = cfg, _prepared(cfg, world_size)
        _say(lines, *_titled("augment", augmentation_lines(given, cfg)))
    if scaling:
        _say(lines, *scaling.lines())
    budget, options = options.budget, TrainOptions.from_config(cfg.train)
    # A loader of your own may not say how many images it returns; count one per worker.
    batch_size = cfg.dataloader.train.get("total_batch_size") or world_size
    if not eval_only:
        check_batch(batch_size, world_size, options.accumulate)

    loaders = _loaders(cfg, eval_only, validate)
    check_tiles(cfg, loaders)
    notes = check_model_fields(cfg)
    datasets, classes, table, caveats = check_datasets(cfg, loaders)
    _say(lines, *table, *(f"data        note: {note}" for note in [*differences, *notes]))
    check_num_classes(cfg.model, classes)
    tested = [
        name for key, loader in loaders.items() if key != "train" for name in test_sets(loader)
    ]
    best = best_metric(options, tested) if validate and not eval_only else None
    if best:
        caveats.append(_best_caveat(cfg, best))
    _say(lines, *(f"results     note: {line}" for line in caveats))
    _check_results(cfg, classes, {name: datasets[name] for name in tested}, expect, best)

    schedule = train_dataset = None
    validation_loss: tuple[str, ...] = ()
    loss_notes: list[str] = []
    if eval_only:
        initial = "" if weights or checkpoint else " (train.init_checkpoint)"
        _say(lines, f"weights     {source}{initial}")
        if key := _chosen_by(cfg, Path(source), tested):
            caveats.append(_best_caveat(cfg, key))
            _say(lines, f"results     note: {caveats[-1]}")
        _say(lines, *tile_lines(cfg, tested))
    else:
        if overwrite and checkpoint:
            refuse_moving(output_dir, checkpoint, option("--resume-from"))
        elif overwrite:
            refuse_moving(output_dir, source.partition("?")[0], "train.init_checkpoint")
        train_dataset = _train_dataset(cfg)
        _say(lines, *tile_lines(cfg, tested, train_dataset))
        fraction = cfg.lr_multiplier.get("warmup_length") or 0.0
        num_images = _num_images(train_dataset, options, batch_size)
        schedule = resolve_schedule(options, batch_size, num_images, fraction, validate)
        if validate and options.validation_loss:
            validation_loss, loss_notes = sets_with_loss(cfg, classes)
        if budget and not is_new:
            line = "the length of the run stays; train.max_epochs changes it"
            _say(lines, *_titled("budget", [line]))
        elif budget and chosen:
            work = Workload(
                cfg, device, classes, train_dataset, world_size, num_gpus, validate, validation_loss
            )
            length, why = fit_budget(
                budget, work, schedule, since, chosen.by_hand, auto, scaling, measure
            )
            _say(lines, *_titled("budget", why))
            chosen = chosen.with_length(length, budget)
            cfg, _ = _prepared(with_choices(original, chosen.applied), world_size)
            options = TrainOptions.from_config(cfg.train)
            schedule = resolve_schedule(options, batch_size, num_images, fraction, validate)
        check_schedule(options, schedule)
        run_lines = _schedule_lines(cfg, options, schedule, world_size, train_dataset)
        note = [] if budget else _length_note(schedule)
        _say(lines, run_lines[0], *note, *run_lines[1:])
        _say(lines, _start_line(checkpoint, resume, source))
        _say(lines, *loss_notes)
    _say(lines, *loader_warnings(loaders, options.accumulate, world_size, num_gpus))
    resumes = checkpoint is not None and not eval_only
    weights_field = option("--weights") if weights else "train.init_checkpoint"
    return Plan(
        output_dir=output_dir,
        device=device,
        classes=classes,
        datasets=datasets,
        schedule=schedule,
        weights="" if resumes else local_weights(source, weights_field),
        resume=checkpoint if resumes else None,
        scaling=scaling,
        lines=lines,
        best_metric=best,
        damaged=() if eval_only else tuple(damaged),
        eval_only=eval_only,
        validate=validate,
        validation_loss=validation_loss,
        tta=tta,
        overwrite=overwrite and not eval_only,
        shares_directory=eval_only or resume or checkpoint is not None,
        expect=tuple(expect),
        split=split,
        fitted=chosen,
        caveats=tuple(caveats),
        built=Built(cfg, train_dataset),
    )


def _origin_lines(cfg: Any, device: str) -> list[str]:
    """Return lines about what became of a config that was not written for d2ext."""
    origin = cfg.get("origin") or {"format": "", "changes": (), "ignored": ()}
    lines = [f"from {origin['format']}"] if origin["format"] else []
    lines += origin["changes"]
    if origin["ignored"]:
        lines.append(f"ignored: {', '.join(origin['ignored'])}")
    norms = [value for _, value in flatten(OmegaConf.to_container(cfg.model), "model", lists=True)]
    if device == "cpu" and "SyncBN" in norms:
        lines.append("SyncBN, which needs a GPU, becomes NaiveSyncBatchNorm")
    return _titled("config", lines)


def _titled(title: str, lines: Sequence[str]) -> list[str]:
    """Return lines of the plan, the first of which has a title."""
    return [f"{'' if i else title:<12}{line}" for i, line in enumerate(lines)]


def _prepared(cfg: Any, world_size: int) -> tuple[Any, ScalingReport | None]:
    """Return a config as a training uses it, and a report if it is scaled to `world_size`."""
    cfg = with_augmentation(cfg)
    if not TrainOptions.from_config(cfg.train).auto_scale_lr.enabled:
        return cfg, None
    return scale_config(cfg, world_size)


def _say(lines: list[str], *more: str) -> None:
    """Log more lines of the plan, and add them to `lines`."""
    for line in more:
        logger.info(line)
    lines.extend(more)


def _find_checkpoint(
    output_dir: Path, eval_only: bool, resume: bool, resume_from: str | None, overwrite: bool
) -> tuple[Path | None, list[Path]]:
    """Check the output directory, and find the checkpoint that the flags name.

    Returns:
        The checkpoint, or None, and the damaged checkpoints that are newer.

    Raises:
        UserError: The file does not exist, or the directory cannot be used.
    """
    checkpoint = Path(resume_from) if resume_from else None
    if checkpoint and not checkpoint.is_file():
        raise UserError(
            f"{option('--resume-from')} {resume_from} does not exist; give a checkpoint file"
        )
    # Only a checkpoint of the run in that directory continues that run.
    continues = resume or checkpoint and checkpoint.resolve().parent == output_dir.resolve()
    if not eval_only and not continues and not overwrite:
        refuse_mixing(output_dir)
    check_writable(output_dir)
    if not resume:
        return checkpoint, []
    if eval_only:
        return find_newest(output_dir)
    wait_until_free(output_dir)
    newest, damaged = find_newest(output_dir)
    if not newest:
        refuse_others(output_dir)
    return newest, damaged


def _earlier_run(
    output_dir: Path, checkpoint: Path | None, resume: bool, evaluated: str | None
) -> Path | None:
    """Return the folder of the run that is resumed or whose weights are evaluated, if any."""
    if evaluated:
        folder = Path(evaluated).parent
        return folder if folder.is_dir() else output_dir  # weights of a package or a URL
    if checkpoint:
        return checkpoint.parent
    return output_dir if resume else None


def _loaders(cfg: Any, eval_only: bool, validate: bool) -> dict[str, Any]:
    """Return the configs of the loaders that the run uses, by split (train, val or test)."""
    if eval_only:
        return {"test": cfg.dataloader.get("test") or cfg.dataloader.get("val")}
    loaders = {"train": cfg.dataloader.train}
    if validate:
        loaders["val"] = cfg.dataloader.get("val")
    return loaders


def _check_results(
    cfg: Any,
    classes: Sequence[str],
    tested: Mapping[str, DatasetInfo],
    expect: Sequence[str],
    best: str | None,
) -> None:
    """Check that metrics will return the results that `--expect` and `train.best` refer to."""
    wanted = {f"--expect {text!r}": parse_expectation(text).key for text in expect}
    if best:
        wanted["train.best.metric"] = best
    sets = {name: (classes, _tasks(cfg.model, name, info)) for name, info in tested.items()}
    check_metrics(cfg.evaluators, wanted, sets)


def _chosen_by(cfg: Any, weights: Path, tested: Sequence[str]) -> str | None:
    """Return the metric by which a run chose its best weights, if on a dataset that is tested."""
    config = weights.with_name(CONFIG)
    best = read_valid_part(weights.with_name("results.json"), ResultsRecord).best
    if weights.name != BEST or not best or not config.is_file():
        return None
    run, key = load_config(config), str(best.metric)
    for name in tested:
        nodes = [datasets.get(name) for datasets in (run.datasets, cfg.datasets)]
        mine, theirs = (node and OmegaConf.to_container(node, resolve=True) for node in nodes)
        if key.startswith(f"{name}/") and mine == theirs:
            return key
    return None


def _best_caveat(cfg: Any, key: str) -> str:
    """Say that the best checkpoint is chosen on the images whose results are reported."""
    how = "dataloader.test"
    if "val" in (cfg.get("data") or {}):
        how = f"`{command('evaluate')} RUN data.val.json=FILE data.val.images=FOLDER`"
    return (
        f"the best checkpoint is chosen by {key}, so that its own result is optimistic; for an"
        f" honest one, evaluate images that no choice depends on with {how}"
    )


def _tasks(model: Any, name: str, info: DatasetInfo) -> list[str]:
    """Return the tasks that both the model and a test set support, as in `d2ext.Metric`."""
    keypoints = bool(MetadataCatalog.get(name).get("keypoint_names"))
    supported = {
        "bbox": True,
        "segm": info.masks and returns_masks(model),
        "keypoints": keypoints and returns_keypoints(model),
    }
    return [task for task, supports in supported.items() if supports]


def _train_dataset(cfg: Any) -> Any:
    """Build the training dataset; None for a loader of your own without the key `dataset`."""
    if not (dataset := cfg.dataloader.train.get("dataset")):
        return None
    with config_errors(f"dataloader.train.dataset ({dataset.get('names')})"):
        return instantiate(dataset)


def _num_images(dataset: Any, options: TrainOptions, batch_size: int) -> int:
    """Return the number of images in an epoch; all of the run's, if the dataset has no length."""
    if hasattr(dataset, "__len__"):
        return len(dataset)
    if options.max_iter is None:
        raise UserError(
            "the length of dataloader.train's dataset is unknown, so the run cannot be counted in"
            " epochs; set train.max_iter"
        )
    return options.max_iter * batch_size


def _schedule_lines(
    cfg: Any, options: TrainOptions, s: Schedule, world_size: int, dataset: Any
) -> list[str]:
    images = str(dataset) if isinstance(dataset, TrainingSet) else plural(s.num_images, "image")
    epochs = "1 epoch" if s.epochs == 1 else f"{s.epochs:.4g} epochs"
    length = f"{epochs} = {plural(s.max_iter, 'iteration')}"
    if not hasattr(dataset, "__len__"):
        images, length = "an unknown number of images", plural(s.max_iter, "iteration")
    reference, batch = options.reference_world_size, options.reference_batch_size
    tuned = ""
    if reference and batch and not options.auto_scale_lr.enabled:
        tuned = f" (tuned for {reference} x {batch // reference} images"
        tuned += "; train.auto_scale_lr.enabled=True adapts it)" if reference != world_size else ")"
    micro = f" in {options.accumulate} micro-batches" if options.accumulate > 1 else ""
    share = f"{s.batch_size // world_size} on each of {world_size} workers"
    workers = "on 1 worker" if world_size == 1 else share
    return [
        f"run         {images}, {s.batch_size} per step, {workers}{micro}: {length}",
        f"rate        lr {cfg.optimizer.lr:g}{tuned} after {s.warmup_iters or 0} iterations of"
        " warm-up",
        f"periods     evaluation {_words(s.eval_period)}, checkpoint {_words(s.checkpoint_period)}",
    ]


def _length_note(s: Schedule) -> list[str]:
    """Return a line if a length in iterations was made for a larger dataset."""
    if s.in_epochs or s.num_images > _LARGE_DATASET or s.epochs <= _MOST_EPOCHS:
        return []
    return [
        f"run         note: {s.epochs:.4g} epochs were probably meant for a larger dataset;"
        f" train.max_epochs={_USUAL_EPOCHS} is a usual length (milestones and warm-up keep"
        " their shares of the run)"
    ]


def _start_line(checkpoint: Path | None, resume: bool, source: str) -> str:
    if checkpoint:
        return f"start       resumes {checkpoint}"
    nothing = "nothing to resume; " if resume else ""
    return f"start       {nothing}iteration 0, weights {source or 'random'}"


def _words(period: Period) -> str:
    number, unit = (period.epochs, "epoch") if period.epochs else (period.iterations, "iteration")
    if not number:
        return "at the end only"
    return f"every {unit}" if number == 1 else f"every {plural(number, unit)}"


def weights_to_evaluate(
    weights: str | None, checkpoint: Path | None, output_dir: Path, init_checkpoint: str | None
) -> str:
    """Return the weights that `--weights` selects; by default, a checkpoint or the initial weights.

    Raises:
        UserError: The weights do not exist.
    """
    if weights == "last":
        found, _ = find_newest(output_dir)
        if not found:
            raise UserError(
                f"{option('--weights')} last: {output_dir} has no checkpoint; train first, or name"
                " a file"
            )
        return str(found)
    if weights == "best":
        best = output_dir / "model_best.pth"
        if not best.is_file():
            flag = option("--weights")
            raise UserError(f"{flag} best: {best} does not exist; use {flag} last or a file")
        return str(best)
    if weights:
        return weights
    if checkpoint:
        return str(checkpoint)
    if not init_checkpoint:
        raise UserError(f"no weights to evaluate; give {option('--weights')} best, last or a file")
    return init_checkpoint
