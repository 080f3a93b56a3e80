"""CornerNet with Hourglass-104 on COCO, 210 epochs on 32 workers x 3 images.

    CONFIG=cornernet/cornernet_hourglass104_mstest_32x3_210e_coco.py
    d2ext prepare coco
    NODES=(--num-machines 4 --machine-rank 0 --dist-url tcp://HOST:29500)
    d2ext train "$CONFIG" --num-gpus 8 "${NODES[@]}"
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last --tta

These NODES are for the first of 4 machines; the others have --machine-rank 1 to 3.

Reference: 32 workers x 3 images, Adam 0.0005, as in MMDetection's config of this name
(cornernet_hourglass104_32xb3-210e-mstest_coco in 3.x); its authors report box AP 40.4 with mirrored
images at one scale (metafile.yml), which evaluations here do, too. `--tta` adds the paper's scales,
0.5 to 1.5. Method: CornerNet: Detecting Objects as Paired Keypoints,
https://arxiv.org/abs/1808.01244. Not run here. If 1000 random crops hold no object, the next one
is centered on an object; the color outside of a photo is rounded to integers; detections are
clipped to the photo.

MMDetection's authors report 9.5 GB of GPU memory for 3 images. With
`model.activation_checkpointing=True` it is less: docs/configs.md has measurements.
"""

from ..common.data.coco_corners import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.cornernet import model
from ..common.optim import Adam as optimizer
from ..common.schedule import multistep_210e as lr_multiplier
from ..common.train import train

evaluators.coco.tasks = ["bbox"]  # also if the model detects nothing

optimizer.lr = 0.0005
train.reference_world_size = 32
train.reference_batch_size = 96
train.max_epochs = 210
train.clip_grad_norm = 35.0
lr_multiplier.warmup_factor = 1 / 3
