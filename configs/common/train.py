"""Training options shared by all recipes, which override some of them.

Their names, defaults and meanings are in d2ext/config/options.py;
`d2ext print-config FILE --docs` prints them.
"""

from d2ext.config.options import TrainOptions

train = TrainOptions(
    max_epochs=12,
    # The learning rates of configs/common/optim.py were tuned for these values.
    warmup_iters=500,
    reference_world_size=8,
    reference_batch_size=16,
).as_dict()
