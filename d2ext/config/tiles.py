"""Read `data.tiles`, and pass it to the datasets of a config's loaders."""

from dataclasses import dataclass
from typing import Any

from d2ext.config.check import target_name

OVERLAP, MIN_SHARE = 0.2, 0.1  # defaults of `data.tile_overlap` and `data.tile_min_share`, as SAHI
_KEYS: dict[str, Any] = {"tiles": None, "tile_overlap": OVERLAP, "tile_min_share": MIN_SHARE}
_MIXING = "d2ext.data.datasets.mixing."
_CUTTING = (f"{_MIXING}training_set", f"{_MIXING}evaluation_set")  # these take the keys
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TileOptions:
    """How photos are cut into tiles.

    Attributes:
        side: Side of a tile in pixels of the photo.
        overlap: Share of the side that neighboring tiles have in common, above 0 and below 1.
        min_share: Smallest share of an object's area inside of a tile with which the tile keeps it.
    """

    side: int
    overlap: float = OVERLAP
    min_share: float = MIN_SHARE

    @property
    def shared(self) -> int:
        """Return the width in pixels that neighboring tiles have in common, at least."""
        return min(max(round(self.side * self.overlap), 1), self.side - 1)


def tile_options(cfg: Any) -> TileOptions | None:
    """Return the tiles of a config; None if photos are not cut."""
    data = cfg.get("data") or {}
    side, overlap, min_share = (data.get(key, default) for key, default in _KEYS.items())
    return TileOptions(side, overlap, min_share) if side else None


def use_tiles(cfg: Any) -> None:
    """Make the datasets of a config's loaders cut tiles if `data.tiles` is set, in place.

    The arguments refer to `data`, so that a later value applies as well. Datasets that cannot cut
    tiles stay as they are; preflight reports them.

    Args:
        cfg: Config with d2ext's sections.
    """
    if not tile_options(cfg):
        return
    for key, default in _KEYS.items():
        cfg.data.setdefault(key, default)
    for split in _SPLITS:
        loader = cfg.dataloader.get(split)
        if cuts_tiles(loader):
            loader.dataset.update({key: f"${{data.{key}}}" for key in _KEYS})


def cuts_tiles(loader: Any) -> bool:
    """Return whether the dataset of a loader's config can cut photos into tiles."""
    dataset: Any = loader.get("dataset") if hasattr(loader, "get") else None
    return hasattr(dataset, "get") and target_name(dataset.get("_target_")) in _CUTTING
