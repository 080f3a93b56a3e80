"""Metrics by name: any metric on any data set, results keyed <dataset>/<metric>/<task>/<name>.

A recipe may add others, for all its test sets or for one of them, which then has these alone:

    evaluators.voc = L(VocMetric)(iou_thresholds=[0.5])
    evaluators.my_val = dict(open_images=L(OpenImagesMetric)())

and so may the command line:

    "+evaluators.voc={_target_: d2ext.evaluation.voc.VocMetric, iou_thresholds: [0.5]}"
"""

from detectron2.config import LazyCall as L

from d2ext.evaluation.coco import CocoMetric

evaluators = dict(coco=L(CocoMetric)())
