"""Learning rate schedules: multipliers of optimizer.lr over the run.

Milestones are relative to the last one, so the same schedule works for any max_epochs or max_iter.
Warm-up is set in iterations (`train.warmup_iters`) and converted to Detectron2's fraction of the
run.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler


def _with_warmup(scheduler):
    return L(WarmupParamScheduler)(
        scheduler=scheduler,
        warmup_length=0.0,  # set from train.warmup_iters
        warmup_method="linear",
        warmup_factor=0.001,
    )


def _multistep(*steps):
    """Return a schedule that divides the rate by 10 at each step but the last, which is the end."""
    values = [1.0, 0.1, 0.01][: len(steps)]
    return _with_warmup(L(MultiStepParamScheduler)(values=values, milestones=list(steps)))


# In epochs: MMDetection's schedule_1x.py, its schedule_20e.py, the 3x of its configs/common (12
# epochs on the data repeated three times, with steps after 9 and 11), and CornerNet's.
multistep_1x = _multistep(8, 11, 12)
multistep_20e = _multistep(16, 19, 20)
multistep_3x = _multistep(27, 33, 36)
multistep_210e = _multistep(180, 210)
# In iterations: Detectron2's 1x, MMDetection's 90k.
multistep_90k = _multistep(60000, 80000, 90000)
# Detectron2's 100 epochs with 64 images per step.
multistep_100ep = _multistep(163889, 177546, 184375)
# MMDetection's schedule for Cityscapes: 8 epochs on the data repeated eight times, a step after 7.
multistep_cityscapes = _multistep(56, 64)
# MMDetection's schedule for VOC: 4 epochs on the data repeated three times, a step after 3.
multistep_voc0712 = _multistep(9, 12)
cosine = _with_warmup(L(CosineParamScheduler)(start_value=1.0, end_value=0.01))
