"""Metrics by name: any metric on any data set, results keyed <dataset>/<metric>/<task>/<name>."""

from detectron2.config import LazyCall as L

from d2ext.evaluation.coco import CocoMetric

evaluators = dict(coco=L(CocoMetric)())
