"""CornerNet with Hourglass-104 on COCO, 210 epochs on 8 workers x 6 images.

    CONFIG=cornernet/cornernet_hourglass104_mstest_8x6_210e_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last --tta

Reference: 8 workers x 6 images, Adam 0.0005, as in MMDetection's config of this name
(cornernet_hourglass104_8xb6-210e-mstest_coco in 3.x); its authors report box AP 41.2 with mirrored
images at one scale (metafile.yml), which evaluations here do, too. `--tta` adds the paper's scales,
0.5 to 1.5. Method: CornerNet: Detecting Objects as Paired Keypoints,
https://arxiv.org/abs/1808.01244. Not run here. If 1000 random crops hold no object, the next one
is centered on an object; the color outside of a photo is rounded to integers; detections are
clipped to the photo.

MMDetection's authors report 15.9 GB of GPU memory for 6 images. With
`model.activation_checkpointing=True` it is less: docs/configs.md has measurements.
"""

from .cornernet_hourglass104_mstest_32x3_210e_coco import (
    data,
    dataloader,
    datasets,
    evaluators,
    lr_multiplier,
    model,
    optimizer,
    train,
)

# The learning rate stays the same.
train.reference_world_size = 8
train.reference_batch_size = 48
