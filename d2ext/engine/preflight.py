"""Everything that can be known to be wrong before a process starts or a byte is written.

Preflight turns a config and the command's flags into a `Plan` of plain values, which travel to
every process; each of its checks names the field, the value and the remedy.
"""

import copy
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2ext.config.schedule import Period, Schedule, resolve_schedule
from d2ext.data.catalog import register_datasets
from d2ext.data.check import check_dataset, format_summary
from d2ext.data.synthetic import is_synthetic
from d2ext.engine.checkpoint import LAST, local_weights, newest_good
from d2ext.errors import UserError
from d2ext.evaluation.suite import test_sets


@dataclass(frozen=True)
class Plan:
    """Preflight's decisions.

    Attributes:
        output_dir: of the run.
        device: `cpu` or `cuda`.
        num_classes: for every head of the model.
        datasets: name to `images`, `instances`, `synthetic`.
        schedule: epochs and periods in iterations; None for an evaluation only.
        weights: local path of the initial weights, or of those to evaluate.
        resume: local path of the checkpoint to go on from, or None.
        lines: the plan in words.
    """

    output_dir: Path
    device: str
    num_classes: int
    datasets: dict[str, dict[str, Any]]
    schedule: Schedule | None
    weights: str
    resume: Path | None
    lines: list[str]


def plan_run(
    cfg: Any,
    name: str,
    *,
    num_gpus: int = 1,
    num_machines: int = 1,
    eval_only: bool = False,
    weights: str | None = None,
    resume: bool = False,
    resume_from: str | None = None,
    overwrite: bool = False,
) -> Plan:
    """Checks a config against the data, the model and the machine; writes nothing.

    Args:
        cfg: of `load_config`.
        name: of the config file; the default output directory is called so.
        num_gpus: processes on this machine.
        num_machines: machines in all.
        eval_only: no training; `weights` are evaluated.
        weights: `best`, `last` or a file, for an evaluation only.
        resume: go on from the newest good checkpoint of the output directory, if there is one.
        resume_from: go on from this checkpoint.
        overwrite: an earlier run in the output directory will be moved aside.

    Raises:
        UserError: for whatever the user can mend.
    """
    if num_gpus < 1 or num_machines < 1:
        raise UserError("--num-gpus and --num-machines count from 1")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device, device_words = choose_device(cfg.train.get("device", "cuda"), num_gpus, gpus)
    if num_gpus * num_machines > 1:
        raise UserError(
            f"--num-gpus {num_gpus} --num-machines {num_machines}: training with several processes"
            " is not built yet; leave both at 1"
        )
    if (seed := cfg.train.get("seed", 0)) < 0:
        raise UserError(f"train.seed={seed}: a seed is 0 or more")
    output_dir = Path(cfg.train.output_dir or Path("work_dirs") / name)
    if not eval_only and not resume and not resume_from and not overwrite:
        _refuse_mixing(output_dir)
    _check_writable(output_dir)

    register_datasets(cfg.datasets)
    splits = {"train": cfg.dataloader.train, "val": cfg.dataloader.val}
    test = cfg.dataloader.get("test") or cfg.dataloader.val
    if eval_only:
        splits = {"test": test}
    datasets, classes, table = _datasets(splits)
    num_classes = _num_classes(cfg.model, classes)

    checkpoint = Path(resume_from) if resume_from else newest_good(output_dir) if resume else None
    if resume_from and not checkpoint.is_file():
        raise UserError(f"--resume-from {resume_from}: no such file")
    lines = [f"output      {output_dir}", f"device      {device_words}", *table]
    if eval_only:
        source = _weights_to_evaluate(weights, checkpoint, output_dir, cfg.train.init_checkpoint)
        schedule = None
        lines.append(f"weights     {source}")
    else:
        source = cfg.train.init_checkpoint
        schedule = _schedule(cfg)
        lines += _schedule_lines(cfg, schedule)
        if checkpoint:
            lines.append(f"start       resumes {checkpoint}")
        else:
            nothing = "nothing to resume; " * resume
            lines.append(f"start       {nothing}iteration 0, weights {source or 'at random'}")
    return Plan(
        output_dir,
        device,
        num_classes,
        datasets,
        schedule,
        "" if checkpoint and not eval_only else local_weights(source),
        None if eval_only else checkpoint,
        lines,
    )


def make_output_dir(output_dir: Path, overwrite: bool) -> Path | None:
    """Creates the output directory; with `overwrite` an earlier run there is moved aside.

    Returns:
        Where the earlier run went, or None.
    """
    aside = None
    try:
        if overwrite and _traces(output_dir):
            aside = output_dir.with_name(f"{output_dir.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            number = 1
            while aside.exists():
                aside = aside.with_name(f"{aside.name}-{number}")
            os.rename(output_dir, aside)
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(
            f"cannot write to {output_dir}: {e.strerror}; choose another --work-dir"
        ) from e
    return aside


def check_free_space(output_dir: Path, checkpoint_bytes: int) -> None:
    """Raises UserError unless two checkpoints fit: the new one is written before the old goes."""
    free = shutil.disk_usage(output_dir).free
    if free < 2 * checkpoint_bytes:
        raise UserError(
            f"{output_dir} has {free / 1e6:.0f} MB free, and a checkpoint takes"
            f" {checkpoint_bytes / 1e6:.0f} MB; free space or choose another --work-dir"
        )


def choose_device(requested: str, num_gpus: int, visible: int) -> tuple[str, str]:
    """The device to train on, and what to say of it.

    Args:
        requested: `train.device`, `cuda` or `cpu`; without a GPU the CPU takes its place.
        num_gpus: `--num-gpus`.
        visible: number of GPUs that torch sees.

    Raises:
        UserError: more GPUs are asked for than there are, or an unknown device.
    """
    cpu = f"CPU, {torch.get_num_threads()} threads"
    if requested == "cpu":
        return "cpu", cpu
    if requested != "cuda":
        raise UserError(f"train.device={requested!r}: give cuda or cpu")
    if not visible:
        return "cpu", f"{cpu} (no GPU is visible)"
    if num_gpus > visible:
        raise UserError(
            f"--num-gpus {num_gpus}: this machine has {visible}; give at most that many"
        )
    return "cuda", f"GPU, {num_gpus} of {visible}"


def _traces(output_dir: Path) -> list[str]:
    return [f for f in ("run.json", "metrics.json", LAST) if (output_dir / f).exists()]


def _refuse_mixing(output_dir: Path) -> None:
    if _traces(output_dir):
        raise UserError(
            f"the output directory {output_dir} holds another run; --resume goes on with it,"
            " --overwrite moves it aside, --work-dir chooses another place"
        )


def _check_writable(output_dir: Path) -> None:
    existing = next(p for p in (output_dir, *output_dir.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UserError(f"the output directory {output_dir}: {existing} is no directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"the output directory {output_dir} is not writable; choose another --work-dir"
        )


def _datasets(splits: Mapping[str, Any]) -> tuple[dict, list[str], list[str]]:
    """Reads and checks every data set; their classes must agree by name and order."""
    summaries, datasets, classes, first = [], {}, None, None
    for split, loader in splits.items():
        for name in test_sets(loader):
            if name not in DatasetCatalog.list():
                known = ", ".join(DatasetCatalog.list()[-6:])
                raise UserError(
                    f"dataloader.{split}.dataset.names={name}: no such data set; declare it under"
                    f" `datasets` (known: {known})"
                )
            metadata = MetadataCatalog.get(name)
            records = DatasetCatalog.get(name)
            mine = list(metadata.get("thing_classes", []))
            if classes is not None and mine != classes:
                raise UserError(
                    f"the data sets {first} and {name} differ in their classes: {classes} and"
                    f" {mine}; give both the same `classes`"
                )
            classes, first = mine, first or name
            if name in datasets:
                continue
            summary = check_dataset(name, records, mine)
            summaries.append(summary)
            datasets[name] = {
                "images": summary.images,
                "instances": summary.instances,
                "synthetic": _synthetic(metadata),
            }
    table = [f"data        {line}" for line in format_summary(summaries).splitlines()]
    fake = [name for name, d in datasets.items() if d["synthetic"]]
    if fake:
        table.append(f"data        {', '.join(fake)}: synthetic, drawn by prepare_data.py")
    return datasets, classes or [], table


def _synthetic(metadata: Any) -> bool:
    root = metadata.get("image_root")
    return root is not None and is_synthetic(Path(root).parent)


def _num_classes(model: Any, classes: list[str]) -> int:
    """The data's class count, checked against each head that states one.

    Raises:
        UserError: a head has another number.
    """
    for field, value in _class_fields(model, "model"):
        if value is not None and value != len(classes):
            raise UserError(
                f"{field}={value}, but the data has {len(classes)} classes"
                f" ({', '.join(classes[:8])}{', ...' * (len(classes) > 8)}); set {field}="
                f"{len(classes)}, or null to take it from the data"
            )
    return len(classes)


def with_num_classes(model: Any, num_classes: int) -> Any:
    """A copy of a model's config; heads that leave their class count to the data have it there."""
    model = copy.deepcopy(model)  # keeps its parent, which interpolations need
    for field, value in list(_class_fields(model, "")):
        if value is None:
            *parents, last = field.removeprefix(".").split(".")
            node = model
            for part in parents:
                node = node[part]
            node[last] = num_classes
    return model


def _class_fields(node: Any, prefix: str) -> Iterator[tuple[str, int | None]]:
    from omegaconf import DictConfig

    for key, child in node.items():
        if key == "num_classes":
            yield f"{prefix}.{key}", child
        # Semantic heads count stuff, not the data set's things.
        elif isinstance(child, DictConfig) and key != "sem_seg_head":
            yield from _class_fields(child, f"{prefix}.{key}")


def _schedule(cfg: Any) -> Schedule:
    names = cfg.dataloader.train.dataset.names
    images = len(instantiate(cfg.dataloader.train.dataset))
    if not images:
        raise UserError(f"no image of {names} has an object to learn from")
    batch_size = cfg.dataloader.train.total_batch_size
    if batch_size < 1:
        raise UserError(f"dataloader.train.total_batch_size={batch_size}: give 1 or more")
    return resolve_schedule(cfg.train, batch_size, images)


def _schedule_lines(cfg: Any, s: Schedule) -> list[str]:
    workers, batch = cfg.train.get("reference_world_size"), cfg.train.get("reference_batch_size")
    tuned = f" (tuned for {workers} x {batch // workers} images)" if workers and batch else ""
    return [
        f"run         {s.num_images} images, {s.batch_size} a step on 1 worker: {s.epochs:.4g}"
        f" epochs = {s.max_iter} iterations",
        f"rate        lr {cfg.optimizer.lr:g}{tuned} after {s.warmup_iters or 0} iterations of"
        " warm-up",
        f"periods     evaluation {_words(s.eval_period)}, checkpoint {_words(s.checkpoint_period)}",
    ]


def _words(period: Period) -> str:
    number, unit = (period.epochs, "epoch") if period.epochs else (period.iterations, "iteration")
    if not number:
        return "at the end only"
    return f"every {unit}" if number == 1 else f"every {number} {unit}s"


def _weights_to_evaluate(
    weights: str | None, checkpoint: Path | None, output_dir: Path, init_checkpoint: str
) -> str:
    if weights == "last":
        found = newest_good(output_dir)
        if not found:
            raise UserError(
                f"--weights last: {output_dir} has no checkpoint; train first, or name a file"
            )
        return str(found)
    if weights == "best":
        best = output_dir / "model_best.pth"
        if not best.is_file():
            raise UserError(f"--weights best: {best} does not exist; use --weights last or a file")
        return str(best)
    if weights:
        return weights
    if checkpoint:
        return str(checkpoint)
    if not init_checkpoint:
        raise UserError("nothing to evaluate: give --weights best, last or a file")
    return init_checkpoint
