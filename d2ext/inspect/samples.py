"""A split of a config, image by image: the dataset dicts, and the very samples that a run takes."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, ListConfig, OmegaConf

from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.data.loading.loader import Loader, build_test_loader
from d2ext.data.prepare.cityscapes import require_cityscapes
from d2ext.errors import UserError, config_errors
from d2ext.text import did_you_mean


@dataclass(frozen=True)
class Split:
    """A split, ready to be read from a place on.

    Attributes:
        names: of the datasets.
        loader: a run's, in this process and for all ranks.
        skip: samples of the loader that lie before the place.
        metadata: `thing_classes`, and `thing_colors` or None.
        image_format: of the samples' images, as Detectron2 names it.
        batch: images per optimizer step; None for an evaluation.
    """

    names: list[str]
    loader: Loader
    skip: int
    metadata: SimpleNamespace
    image_format: str
    batch: int | None

    @property
    def images(self) -> int:
        """The number of images of an epoch."""
        return self.loader.images

    def pairs(self, mapped: bool = True) -> Iterator[tuple[dict, dict | UserError | None]]:
        """Dataset dicts and samples; see `Loader.pairs`."""
        return self.loader.pairs(self.skip, mapped)

    def about(self, place: int) -> str:
        """Describe the sample at a place."""
        if self.batch is None:
            return "model's input, with the ground truth"
        return f"model's input, iteration {place // self.batch}"


def open_split(cfg: Any, split: str, start: int = 0) -> Split:
    """Open what a training, an evaluation or a test of a config reads.

    Args:
        cfg: of `load_config`.
        split: train, val or test. The samples of val and test have the ground truth as well, in
            the pixels of the model's input; the model itself does not get it.
        start: place of the first sample: in the training, whose first batch holds the places from
            0 on, or in the test set.

    Raises:
        UserError: the config or the dataset is wrong.
    """
    register_run_datasets(cfg)
    section = f"dataloader.{split}"
    settings = cfg.dataloader.get(split)
    if split == "test" and not settings:
        settings = cfg.dataloader.get("val")
    if not settings or not settings.get("dataset") or not settings.get("mapper"):
        raise UserError(f"{section} has no dataset and mapper to look at; choose another --split")
    settings = copy.deepcopy(settings)  # keeps its parent, which interpolations need
    names = list(_names(settings.dataset))
    metadata = _metadata(section, names)
    image_format = settings.mapper.get("image_format", "BGR") or "RGB"
    batch, skip = None, start
    with config_errors(section):
        if split == "train":
            if OmegaConf.select(settings, "seed") is None:
                raise UserError(
                    f"{section} is not d2ext's build_train_loader, whose samples depend on their"
                    " place alone; choose another --split, or that loader"
                )
            batch = settings.total_batch_size
            settings.start_iter, skip = divmod(start, batch)
            # One process that does not accumulate takes a global batch in the order of the ranks.
            settings.num_workers, settings.accumulate = 0, 1
            loader = instantiate(settings)
        else:
            records = instantiate(settings.dataset)
            _keep_ground_truth(settings.mapper, records)
            loader = build_test_loader(records, instantiate(settings.mapper), num_workers=0)
    if not isinstance(loader, Loader) or not loader.images:
        raise UserError(f"{section} is no loader of d2ext's, or one without images")
    return Split(names, loader, skip, metadata, image_format, batch)


def _names(dataset: Any) -> Iterator[str]:
    """Yield the names of the datasets anywhere in a `dataset` section."""
    if isinstance(dataset, DictConfig):
        for key, value in dataset.items():
            if key == "names":
                yield from [value] if isinstance(value, str) else value or ()
            else:
                yield from _names(value)
    elif isinstance(dataset, ListConfig):
        for value in dataset:
            yield from _names(value)


def _metadata(section: str, names: list[str]) -> SimpleNamespace:
    """Classes and colours of the datasets, which agree in them."""
    if not names:
        raise UserError(f"{section}.dataset.names is empty: give the name of a data set")
    for name in names:
        if name not in DatasetCatalog.list():
            hint = did_you_mean(str(name), DatasetCatalog.list(), "declare it under `datasets`")
            raise UserError(f"{section}.dataset.names={name}: no such data set; {hint}")
        require_cityscapes(MetadataCatalog.get(name))
    metadata = MetadataCatalog.get(names[0])
    return SimpleNamespace(
        thing_classes=list(metadata.get("thing_classes", [])),
        thing_colors=metadata.get("thing_colors"),
    )


def _keep_ground_truth(mapper: Any, records: list[dict]) -> None:
    """Make an evaluation's mapper keep and transform the annotations."""
    if "is_train" in mapper:
        mapper.is_train = True
        objects = (a for r in records for a in r.get("annotations", ()))
        mapper.use_instance_mask = all("segmentation" in a for a in objects)
        mapper.instance_mask_format = "bitmask"  # takes polygons and RLE
