"""Optimizers from Detectron2's configs/common/optim.py, and Adam with the same parameters."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from torch import optim

_optim = model_zoo.get_config("common/optim.py")

SGD = _optim.SGD
AdamW = _optim.AdamW
Adam = L(optim.Adam)(params=SGD.params, lr=1e-3)
