"""The metrics of an offline evaluation, by name; imports nothing, so that `--help` is quick."""

METRICS = {  # module and class, which takes `per_class`
    "coco": ("d2ext.evaluation.coco", "CocoMetric"),
    "voc": ("d2ext.evaluation.voc", "VocMetric"),
    "open_images": ("d2ext.evaluation.open_images", "OpenImagesMetric"),
    "lvis": ("d2ext.evaluation.lvis", "LvisMetric"),
}
