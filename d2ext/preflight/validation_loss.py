"""Find the validation sets on which the training losses can be computed."""

from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog

from d2ext.config.tiles import tile_options
from d2ext.errors import UserError
from d2ext.evaluation.suite import test_sets
from d2ext.evaluation.validation_loss import loss_loader
from d2ext.preflight.model_fields import check_annotations
from d2ext.text import plural


def sets_with_loss(cfg: Any, classes: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the validation sets that have a validation loss, and lines for the plan.

    The lines say why another set has none, and how many images of a set are left out.

    Args:
        cfg: Config with registered datasets.
        classes: Class names.
    """
    names, lines = [], []
    for name in test_sets(cfg.dataloader.val):
        records = DatasetCatalog.get(name)
        try:
            loader = loss_loader(cfg.dataloader, name)
            list(check_annotations(cfg, name, records, classes))  # without the notes that it yields
        except UserError as e:
            lines.append(f"val loss    none on {name}: {e}")
            continue
        names.append(name)
        if tile_options(cfg):
            lines.append(f"val loss    {name}: on {plural(loader.images, 'tile')}")
        elif dropped := len(records) - loader.images:
            lines.append(
                f"val loss    {name}: without {plural(dropped, 'image')} that training would drop"
            )
    return tuple(names), lines
