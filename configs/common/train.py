"""Training options shared by all recipes; a recipe overrides single fields.

d2ext/config/options.py has their names, defaults and meanings, which
`d2ext print-config FILE --docs` prints.
"""

from d2ext.config.options import TrainOptions

train = TrainOptions(
    max_epochs=12,
    # What the learning rates of configs/common/optim.py were tuned for.
    warmup_iters=500,
    reference_world_size=8,
    reference_batch_size=16,
).as_dict()
