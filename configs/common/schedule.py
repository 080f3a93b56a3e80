"""Learning-rate schedules: multipliers of optimizer.lr over the run.

Milestones are relative to the last one, so the same schedule serves any max_epochs or max_iter.
Warm-up is counted in iterations (`train.warmup_iters`); preflight turns it into Detectron2's
fraction of the run.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler


def _with_warmup(scheduler):
    return L(WarmupParamScheduler)(
        scheduler=scheduler, warmup_length=0.0, warmup_method="linear", warmup_factor=0.001
    )


# The guide's 1x: 12 epochs, a tenth of the rate after epochs 8 and 11.
multistep_1x = _with_warmup(
    L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[8, 11, 12])
)
cosine = _with_warmup(L(CosineParamScheduler)(start_value=1.0, end_value=0.01))
