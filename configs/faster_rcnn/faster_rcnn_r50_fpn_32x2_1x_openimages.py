"""Faster R-CNN R50-FPN (pytorch style) on Open Images V6, 12 epochs.

    CONFIG=faster_rcnn/faster_rcnn_r50_fpn_32x2_1x_openimages.py
    d2ext prepare open_images
    NODES=(--num-machines 4 --machine-rank 0 --dist-url tcp://HOST:29500)
    d2ext train "$CONFIG" --num-gpus 8 "${NODES[@]}"
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

These NODES are for the first of 4 machines; the others have --machine-rank 1 to 3.

Reference: 32 workers x 2 images, SGD 0.08, as in MMDetection's configs/openimages file of this
name (faster-rcnn_r50_fpn_32xb2-1x_openimages in 3.x): 26,000 iterations of warm-up from 1/64 of the
rate, gradients of norm 35 at most. Its authors report AP50 51.6 (metafile.yml). Not run here.

MMDetection trains on group boxes, too, and its metric ignores detections of classes that were not
verified in a photo, according to image-level labels. Here, groups are not trained on, and such
detections are false positives. The model is Detectron2's, with L1 box losses, ROIAlignV2 and
BatchNorm frozen entirely.
"""

from detectron2.config import LazyCall as L

from d2ext.evaluation.open_images import OpenImagesMetric

from ..common.data.open_images import data, dataloader, datasets
from ..common.models.faster_rcnn_fpn_pytorch import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_1x as lr_multiplier
from ..common.train import train

evaluators = dict(
    open_images=L(OpenImagesMetric)(
        hierarchy_file="${data.root}/OpenImages/annotations/bbox_labels_600_hierarchy.json"
    )
)

train.reference_world_size = 32
train.reference_batch_size = 64
train.warmup_iters = 26000
lr_multiplier.warmup_factor = 1 / 64
optimizer.lr = 0.08
train.clip_grad_norm = 35.0
train.max_epochs = 12
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
