"""RetinaNet R50-FPN (pytorch style) on Pascal VOC 2007 and 2012, 12 epochs.

    CONFIG=retinanet/retinanet_r50_fpn_1x_voc0712.py
    d2ext prepare voc
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.01, as in MMDetection's configs/pascal_voc file of this name.
That file trains for 4 epochs on the data repeated three times, without warm-up; its authors report
mAP 77.3 on the test set of 2007 with the 11-point metric of VOC 2007, and 79.2 in a later version
(configs/pascal_voc/README.md of MMDetection 2). Not run here. Objects with a side below 32 pixels
are not trained on, as in MMDetection. The model is Detectron2's, with BatchNorm frozen entirely.
"""

from detectron2.config import LazyCall as L

from d2ext.evaluation.voc import VocMetric

from ..common.data.voc import data, dataloader, datasets
from ..common.models.retinanet_fpn_pytorch import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_voc0712 as lr_multiplier
from ..common.train import train

evaluators = dict(voc=L(VocMetric)(mode="11points"))

optimizer.lr = 0.01  # tuned for 8 workers x 2 images, the default of train.reference_*
train.warmup_iters = 0
train.max_epochs = 12
train.eval_period = "3 epochs"
train.checkpointer.period = "3 epochs"
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
