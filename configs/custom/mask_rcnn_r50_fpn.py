"""Mask R-CNN R50-FPN on your own photos with masks, initialized from COCO; needs a GPU.

    CONFIG=custom/mask_rcnn_r50_fpn.py
    DATA=(data.train.json=a.json data.train.images=imgs data.val.json=b.json data.val.images=imgs)
    d2ext train "$CONFIG" "${DATA[@]}"
    d2ext train "$CONFIG" --eval-only --weights best "${DATA[@]}"

Annotations are in COCO, VIA or MMDetection's middle format; the classes come from the files.
`--dry-run` prints what was found, and what `data.auto` chooses for it: image sizes, length and
sampling. The values below are those of data to which it changes nothing.

Reference: 1 worker x 2 images, which need 8 GB of GPU memory; SGD 0.0025, by the linear rule from
0.02 for 8 x 2 images (`--auto-scale-lr` continues that rule). 24 epochs with steps after 16 and 22
are about 1000 steps for a hundred photos, enough for weights trained on COCO; with more photos, set
train.max_epochs=12.

Training starts from Detectron2's Mask R-CNN R50-FPN 3x (COCO box AP 41.0, mask AP 37.2 in its model
zoo). On a machine without network access, set
`train.init_checkpoint=/path/to/model_final_f10217.pkl`.
"""

from ..common.data.custom import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_1x as lr_multiplier
from ..common.train import train

data.auto = True
data.recipe = "custom/mask_rcnn_r50_fpn.py"

train.reference_world_size = 1
train.reference_batch_size = 2
optimizer.lr = 0.02 / 8
train.max_epochs = 24
train.warmup_iters = 100
train.best.metric = "coco/segm/AP"
train.init_checkpoint = (
    "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
)
