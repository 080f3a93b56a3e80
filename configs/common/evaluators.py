"""Metrics by name, for any dataset; results are named <dataset>/<metric>/<task>/<name>.

A recipe may add metrics for all its test sets, or set those of one test set, which replace all
others for that set:

    evaluators.voc = L(VocMetric)(iou_thresholds=[0.5])
    evaluators.my_val = dict(open_images=L(OpenImagesMetric)())

The command line can do the same:

    "+evaluators.voc={_target_: d2ext.evaluation.voc.VocMetric, iou_thresholds: [0.5]}"
"""

from detectron2.config import LazyCall as L

from d2ext.evaluation.coco import CocoMetric

evaluators = dict(coco=L(CocoMetric)())
