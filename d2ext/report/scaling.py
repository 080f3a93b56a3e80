"""Describe what `--auto-scale-lr` did, for the page."""

from typing import Any

from d2ext.config.lr_scaling import ScalingReport
from d2ext.text import plural


def scaling_sentences(scaling: ScalingReport) -> list[str]:
    """Return sentences about what was scaled, and why."""
    now = _layout(scaling.world_size, scaling.batch_size)
    tuned = _layout(scaling.reference_world_size, scaling.reference_batch_size)
    sentences = [f"{now}; the recipe was tuned for {tuned}."]
    if scaling.scale == 1:
        sentences.append("The batch size is the same, so nothing was changed.")
    elif not scaling.changes:
        sentences.append("The config was already scaled for this batch size.")
    else:
        sentences.append(
            f"Learning rates were multiplied by {scaling.lr_factor:.4g} (rule: {scaling.rule}), and"
            f" iterations divided by {scaling.scale:.4g}."
        )
    return sentences + [f"Warning: {warning}." for warning in scaling.warnings]


def scaling_rows(scaling: ScalingReport) -> list[tuple[str, str, str]]:
    """Return the field, the old value and the new value of each change."""
    return [(c.field, _text(c.before), _text(c.after)) for c in scaling.changes]


def _layout(workers: int, images: int) -> str:
    return f"{plural(workers, 'worker')} with {images} images per step"


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
