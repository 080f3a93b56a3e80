"""Loaders with the guide's multi-scale polygons; a recipe names the data sets.

`train` draws global batches that do not depend on the number of processes; `val` serves the
evaluation during training, `test` (None: the same as val) serves --eval-only; `tta` says which
versions of an image --tta looks at.
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
        names=None,  # one data set, or several to join
        filter_empty=True,  # leave out images without objects
        repeat=1,  # epochs of each data set that one epoch holds; a list for several
        oversample_threshold=None,  # images with classes rarer than this come up more often
    ),
    mapper=L(Mapper)(
        is_train=True,  # samples hold the objects to learn from
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length=[640, 672, 704, 736, 768, 800],
                sample_style="choice",
                max_size=1333,
            ),
            L(T.RandomFlip)(horizontal=True),
        ],  # of Detectron2, in this order
        image_format="${model.input_format}",  # RGB or BGR
        use_instance_mask=True,  # masks are read, too
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
        names=None,  # one data set, or several, each of which has results of its own
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
