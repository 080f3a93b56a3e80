"""Run one of several ranks that share a prediction."""

import logging
from collections.abc import Callable

from detectron2.utils import comm

from d2ext.predict.predictor import Predictor
from d2ext.run_dir.logging import setup_logging


def predict_rank(load: Callable[[], Predictor], predict: Callable[[Predictor], int]) -> int:
    """Load the model and predict this rank's share; return the exit status.

    Args:
        load: Loads the model.
        predict: Calls `predict_files` with its other arguments.
    """
    setup_logging(quiet=not comm.is_main_process())
    if not comm.is_main_process():
        logging.disable(logging.WARNING)  # rank 0 prints the same warnings about the model
    predictor = load()
    logging.disable(logging.NOTSET)
    return predict(predictor)
