"""Loaders with MMDetection's multi-scale polygon training; a recipe sets the datasets.

`train` draws global batches that do not depend on the number of processes. `val` is for evaluation
during training, and `test` (None: the same as val) for --eval-only. `tta` defines the versions of
each image that --tta evaluates.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from d2ext.data.datasets.mixing import evaluation_set, training_set
from d2ext.data.loading.loader import build_test_loader, build_train_loader
from d2ext.data.loading.mapper import Mapper

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(training_set)(
        names=None,  # one dataset, or several to combine
        filter_empty=True,  # skip images without objects
        repeat=1,  # repeats of each dataset in an epoch; a list sets them for each one
        oversample_threshold=None,  # repeat images with classes that are rarer than this
    ),
    mapper=L(Mapper)(
        is_train=True,  # samples contain the ground truth
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length=[640, 672, 704, 736, 768, 800],
                sample_style="choice",
                max_size=1333,
            ),
            L(T.RandomFlip)(horizontal=True),
        ],  # Detectron2 augmentations, in order
        image_format="${model.input_format}",  # RGB or BGR
        use_instance_mask=True,  # also read masks
    ),
    total_batch_size="${train.reference_batch_size}",
    num_workers=4,
    seed="${train.seed}",
    accumulate="${train.accumulate}",
    bad_images="${train.bad_images}",
    reference_batch_size="${train.reference_batch_size}",
    reference_world_size="${train.reference_world_size}",
)

dataloader.val = L(build_test_loader)(
    dataset=L(evaluation_set)(
        names=None,  # one dataset, or several, which are evaluated separately
    ),
    mapper=L(Mapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
        image_format="${model.input_format}",
    ),
    num_workers=2,
    bad_images="${train.bad_images}",
)
dataloader.test = None
dataloader.tta = dict(min_sizes=[640, 800, 960], max_size=1600, flip=True)
