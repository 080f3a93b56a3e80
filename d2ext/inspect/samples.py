"""Read a split of a config image by image: dataset dicts, and exactly the samples of a run."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, ListConfig, OmegaConf

from d2ext.config.augmentation import with_augmentation
from d2ext.config.choices import is_auto, with_choices
from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.data.loading.loader import Loader, build_test_loader
from d2ext.data.loading.mapper import Mapper
from d2ext.data.prepare.cityscapes import require_cityscapes
from d2ext.data.splitting.own_data import kept_split
from d2ext.errors import UserError, config_errors
from d2ext.launch.device import choose_device
from d2ext.preflight.chosen import choose_values, hardware_of
from d2ext.text import did_you_mean


@dataclass(frozen=True)
class Split:
    """A split that is read from a given position.

    Attributes:
        names: Names of the datasets.
        loader: Loader as in a run, but in this process and for all ranks.
        skip: Number of samples of the loader before the position.
        metadata: `thing_classes`, and `thing_colors` or None.
        image_format: Detectron2's name of the samples' image format.
        batch: Images per optimizer step; None for an evaluation.
    """

    names: list[str]
    loader: Loader
    skip: int
    metadata: SimpleNamespace
    image_format: str
    batch: int | None

    @property
    def images(self) -> int:
        """Return the number of images of an epoch."""
        return self.loader.images

    def pairs(self, mapped: bool = True) -> Iterator[tuple[dict, dict | UserError | None]]:
        """Return pairs of dataset dicts and samples; see `Loader.pairs`."""
        return self.loader.pairs(self.skip, mapped)

    def about(self, place: int) -> str:
        """Return a title for the sample at a position."""
        if self.batch is None:
            return "model's input, with the ground truth"
        return f"model's input, iteration {place // self.batch}"


def planned_config(cfg: Any) -> Any:
    """Register a config's datasets; return the config with the values that a run chooses for it.

    If the config's output directory holds a run, its split and its values are used.
    """
    folder = cfg.train.get("output_dir")
    earlier = Path(folder) if folder else None
    register_run_datasets(cfg, kept_split(earlier) if earlier else None)
    if is_auto(cfg):
        device, _ = choose_device(cfg.train.get("device", "cuda"), 1)
        hardware = hardware_of(device, 1, cfg.train.get("accumulate") or 1, 1)
        chosen, _ = choose_values(cfg, hardware, earlier)
        cfg = with_choices(cfg, chosen.applied) if chosen else cfg
    return cfg


def open_split(cfg: Any, split: str, start: int = 0) -> Split:
    """Open a split of a config.

    Args:
        cfg: Config returned by `load_config`.
        split: train, val or test. The samples of val and test include the ground truth in pixels of
            the model's input, although the model does not get it.
        start: Position of the first sample, counted from 0, in the order of training or in the test
            set.

    Raises:
        UserError: The config or the dataset is invalid.
    """
    cfg = planned_config(cfg)
    cfg = with_augmentation(cfg) if split == "train" else cfg
    section = f"dataloader.{split}"
    settings = cfg.dataloader.get(split)
    if split == "test" and not settings:
        settings = cfg.dataloader.get("val")
    if not settings or not settings.get("dataset") or not settings.get("mapper"):
        raise UserError(f"{section} has no dataset and mapper to show; choose another --split")
    settings = copy.deepcopy(settings)  # keeps its parent, which interpolations need
    names = list(_names(settings.dataset))
    metadata = _metadata(section, names)
    image_format = settings.mapper.get("image_format", "BGR") or "RGB"
    batch, skip = None, start
    with config_errors(section):
        if split == "train":
            if OmegaConf.select(settings, "seed") is None:
                raise UserError(
                    f"{section} is not d2ext's build_train_loader, whose samples depend only on"
                    " their position; choose another --split, or use that loader"
                )
            batch = settings.total_batch_size
            settings.start_iter, skip = divmod(start, batch)
            # A single process without accumulation gets global batches in the order of the ranks.
            settings.num_workers, settings.accumulate = 0, 1
            loader = instantiate(settings)
        else:
            records = instantiate(settings.dataset)
            _keep_ground_truth(settings.mapper, records)
            mapper = instantiate(settings.mapper)
            if isinstance(mapper, Mapper):
                mapper.resizes_by_torch = False
            loader = build_test_loader(records, mapper, num_workers=0)
    if not isinstance(loader, Loader) or not loader.images:
        raise UserError(f"{section} is not a loader of d2ext, or it has no images")
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
    """Return the classes and colors of the datasets, which are the same for all of them."""
    if not names:
        raise UserError(f"{section}.dataset.names is empty; give the name of a dataset")
    for name in names:
        if name not in DatasetCatalog.list():
            hint = did_you_mean(str(name), DatasetCatalog.list(), "declare it under `datasets`")
            raise UserError(f"{section}.dataset.names={name} is not a dataset; {hint}")
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
