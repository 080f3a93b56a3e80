"""scaling.json of a run directory: what `--auto-scale-lr` changed."""

from pathlib import Path
from typing import Any

import msgspec


class Change(msgspec.Struct):
    """A field of the config, before and after."""

    field: str
    before: Any
    after: Any


class Scaling(msgspec.Struct):
    """The file; see d2ext/config/lr_scaling.py for what its numbers mean."""

    reference_world_size: int
    reference_batch_size: int
    world_size: int
    batch_size: int
    rule: str
    scale: float
    lr_factor: float
    changes: list[Change]
    warnings: list[str]

    def sentences(self) -> list[str]:
        """What was done and why."""
        now = _layout(self.world_size, self.batch_size)
        tuned = _layout(self.reference_world_size, self.reference_batch_size)
        said = [f"{now}; the recipe was tuned for {tuned}."]
        if self.scale == 1:
            said.append("That is the same batch, so nothing changed.")
        elif not self.changes:
            said.append("The config had been scaled for that before.")
        else:
            said.append(
                f"Learning rates are multiplied by {self.lr_factor:.4g} (rule: {self.rule}), and"
                f" iterations divided by {self.scale:.4g}."
            )
        return said + [f"Warning: {warning}." for warning in self.warnings]

    def rows(self) -> list[tuple[str, str, str]]:
        """Field, before and after."""
        return [(c.field, _text(c.before), _text(c.after)) for c in self.changes]


def read_scaling(file: Path, damaged: list[str]) -> Scaling | None:
    """None where learning rates were not scaled; a sentence of a damaged file goes to `damaged`."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Scaling)
    except OSError:
        return None
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        damaged.append(f"{file.name} is damaged and was left out.")
        return None


def _layout(workers: int, images: int) -> str:
    return f"{workers} worker{'s' * (workers != 1)} with {images} images a step"


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
