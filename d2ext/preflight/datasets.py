"""Check the datasets that a run reads before anything is built."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf

from d2ext.config.tiles import tile_options
from d2ext.data.datasets.register import counts_of
from d2ext.data.formats.annotation_kinds import NO_MASK
from d2ext.data.loading.sample_errors import ReportFailures, RleAsBitmaps
from d2ext.data.loading.tiles import mapper_of_tiles
from d2ext.data.prepare.cityscapes import require_cityscapes
from d2ext.data.records.cache import cached_value
from d2ext.data.records.records import columns_of
from d2ext.data.tiles.records import tile_with_objects
from d2ext.data.validation.between_sets import compare_sets
from d2ext.data.validation.coco.checks.all_checks import fast_findings
from d2ext.data.validation.coco.finding import ERROR
from d2ext.data.validation.dataset_dicts import (
    DatasetSummary,
    check_dataset_dicts,
    check_trainable,
    checker_command,
    format_summary,
)
from d2ext.errors import UserError, config_errors
from d2ext.evaluation.suite import test_sets
from d2ext.invocation import option
from d2ext.preflight.model_fields import (
    check_annotations,
    check_proposals,
    detection_notes,
    size_note,
)
from d2ext.run_dir.schema import DatasetInfo
from d2ext.seeding import generators_seeded
from d2ext.text import did_you_mean


def check_datasets(
    cfg: Any, loaders: Mapping[str, Any]
) -> tuple[dict, list[str], list[str], list[str]]:
    """Read and check every dataset; all must have the same class names in the same order.

    Args:
        cfg: Config returned by `load_config`.
        loaders: Configs of the loaders by split, train, val or test.

    Returns:
        `Plan.datasets`, the class names, the lines to print, and what makes results of the test
        sets misleading.

    Raises:
        UserError: A dataset is missing or damaged, has other classes, or lacks annotations that the
            model needs.
    """
    datasets, classes, first, notes = {}, None, None, []
    tiles = tile_options(cfg)
    summaries: dict[str, DatasetSummary] = {}
    read: dict[str, Sequence[dict]] = {}
    for split, loader in loaders.items():
        field = f"dataloader.{split}"
        if not loader:
            raise UserError(f"{field} is null; set it, or train with {option('--no-validate')}")
        names = test_sets(loader)
        if split == "train" and OmegaConf.select(loader, "dataset.names", default="") == "":
            notes.append(f"{field} has no dataset.names, so its data is not checked")
            continue
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"{field}.dataset.names={names}: give the name of one or more datasets")
        for name in names:
            if name not in DatasetCatalog.list():
                hint = did_you_mean(name, DatasetCatalog.list(), "declare it under `datasets`")
                if cfg.get("origin"):  # config.yaml does not run the code of the original file
                    hint += "; if a config file registers it, use that file"
                raise UserError(f"{field}.dataset.names={name} is not a dataset; {hint}")
            metadata = MetadataCatalog.get(name)
            require_cityscapes(metadata)
            if file := metadata.get("json_file") or metadata.get("part_of"):
                _check_file(file, metadata.get("image_root"))
            with config_errors(f"datasets.{name}"):
                records = DatasetCatalog.get(name)
            mine = list(metadata.get("thing_classes", []))
            if classes is not None and mine != classes:
                raise UserError(
                    f"the datasets {first} and {name} have different classes: {classes} and"
                    f" {mine}; give both the same `classes`"
                )
            classes, first = mine, first or name
            if name in datasets:
                continue
            use = "trained on" if split == "train" else "evaluated"
            known = metadata.as_dict() | counts_of(name)
            summary = check_dataset_dicts(name, records, mine, known, use)
            if split == "train":
                notes += check_annotations(cfg, name, records, mine)
            check_proposals(cfg, split, name, records)
            columns = columns_of(records)
            chosen = int(np.argmax(columns.objects > 0))  # with objects, if there is one
            record = records[chosen]
            if tiles:
                record = tile_with_objects(record, tiles)
            sample = _map(f"{field}.mapper", loader, record)
            if isinstance(sample, dict) and (note := size_note(cfg.model, sample)):
                notes.append(f"{name}: {note}")
            summaries[name], read[name] = summary, records
            masks = bool(np.any(columns.masks != NO_MASK))
            datasets[name] = DatasetInfo(summary.images, summary.instances, masks)
        if split == "train":
            check_trainable(list(summaries.values()))
    tested = [
        name for split, loader in loaders.items() if split != "train" for name in test_sets(loader)
    ]
    notes += detection_notes(cfg, summaries, tested)
    trained = test_sets(loaders["train"]) if "train" in loaders else []
    caveats = [f"{name} is trained on and evaluated" for name in tested if name in trained]
    for name, other in itertools.product(trained, tested):
        if name in read and other not in trained:
            names = (name, other)
            caveats += compare_sets(read[name], read[other], classes or [], names)
    table = [
        f"data        {line}" for line in format_summary(list(summaries.values())).splitlines()
    ]
    table += [f"data        note: {note}" for note in notes]
    return datasets, classes or [], table, caveats


def _map(field: str, loader: Any, record: dict) -> Any:
    """Map an image, because some augmentations check their arguments only when applied."""
    if not (settings := loader.get("mapper")):
        return None
    with config_errors(field), generators_seeded(0):
        # An unreadable image is not an error here; the run handles it.
        mapper = mapper_of_tiles(instantiate(settings), [record])
        return ReportFailures(RleAsBitmaps(mapper))(record)


def _check_file(json_file: str, image_root: str | None) -> None:
    """Raise a UserError for errors that `d2ext check` finds in a COCO file without its images."""
    command = checker_command(json_file, image_root)

    def errors() -> list[str]:
        found = fast_findings(json_file, images=image_root)
        return [f"{f.count} {f.what} (such as {f.example})" for f in found if f.severity == ERROR]

    if found := cached_value(json_file, f"errors {image_root}", errors):
        more = f", and {len(found) - 1} more kinds of error" if len(found) > 1 else ""
        raise UserError(
            f"{json_file} has {found[0]}{more}; list all with {command}, and fix them with --fix"
            " OUT.json"
        )
