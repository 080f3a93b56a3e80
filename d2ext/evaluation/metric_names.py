"""Names of metrics; this module imports nothing, so that `--help` is quick."""

# Metrics of an offline evaluation: module and class, which takes `per_class`.
METRICS = {
    "coco": ("d2ext.evaluation.coco", "CocoMetric"),
    "voc": ("d2ext.evaluation.voc", "VocMetric"),
    "open_images": ("d2ext.evaluation.open_images", "OpenImagesMetric"),
    "lvis": ("d2ext.evaluation.lvis", "LvisMetric"),
}
VALIDATION_LOSS = "validation_loss"  # names in metrics.json are <dataset>/validation_loss/<loss>


def is_validation_loss(name: str) -> bool:
    """Return whether a name in metrics.json is that of a validation loss."""
    return f"/{VALIDATION_LOSS}/" in name
