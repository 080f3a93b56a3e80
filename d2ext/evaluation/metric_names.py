"""The metrics of evaluate.py, by name; this module imports nothing, so that `--help` is quick."""

METRICS = {  # module and class, which takes `per_class`
    "coco": ("d2ext.evaluation.coco", "CocoMetric"),
    "voc": ("d2ext.evaluation.voc", "VocMetric"),
    "open_images": ("d2ext.evaluation.open_images", "OpenImagesMetric"),
    "lvis": ("d2ext.evaluation.lvis", "LvisMetric"),
}
