"""Compute the training losses on test sets, without changing the model or the course of training.

The forward pass is that of training: heads are in training mode, so they assign ground truth,
sample proposals and return losses. BatchNorm normalizes with its running statistics, as in an
evaluation. Each image is computed alone, from the same state of the model and with its own seed, so
that the result depends neither on the order of the images nor on the number of processes.
"""

import contextlib
import copy
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2ext.data.datasets.mixing import training_set
from d2ext.data.loading.loader import Loader, build_loss_loader
from d2ext.errors import UserError, config_errors, format_exception
from d2ext.evaluation.metric_names import VALIDATION_LOSS
from d2ext.evaluation.predictions import interruptibly
from d2ext.seeding import generators_seeded
from d2ext.waiting import waiting_for

logger = logging.getLogger(__name__)

_SEED = 0  # not that of the run, so that losses of runs with different seeds can be compared
# Arguments of `training_set` that also apply to test sets.
_ARGUMENTS = (
    *("filter_empty", "min_keypoints", "min_size"),
    *("tiles", "tile_overlap", "tile_min_share"),
)


class ValidationLoss:
    """Mean training losses on test sets.

    Args:
        loaders: Result of `loss_loader` for each test set, by name.
    """

    def __init__(self, loaders: Mapping[str, Loader]):
        self._loaders = dict(loaders)

    def compute(
        self,
        model: nn.Module,
        losses_of: Callable[[list[dict]], Mapping[str, Tensor]],
        iteration: int,
        before_image: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Return the mean losses over the images of each set; every rank must call it.

        If a set fails, a warning says why, and it is not tried again. If the forward pass fails on
        one rank only, and that of the model communicates (as DETR's does), the other ranks wait for
        the failed one until the time limit of the launcher.

        Args:
            model: Model that `losses_of` calls. Buffers, attributes and training mode are restored.
            losses_of: Function that returns the losses of a batch, with the model in training mode.
            iteration: Iteration of the EventStorage that models may ask for.
            before_image: Function to call before each image.

        Returns:
            Means by `<dataset>/validation_loss/<loss>`, the same on all ranks. `total_loss` is the
            sum of the losses. Means are NaN if the loss of an image is not finite.
        """
        found: dict[str, float] = {}
        for name, loader in list(self._loaders.items()):
            start = time.perf_counter()
            table, failure = _losses_by_image(model, loader, losses_of, iteration, before_image)
            if failure:
                del self._loaders[name]
                logger.warning(
                    "No validation loss on %s in the rest of this run: %s;"
                    " train.validation_loss=False turns it off",
                    name,
                    failure,
                )
                continue
            means = _means(table)
            bad = [i for i, losses in table.items() if not all(map(math.isfinite, losses.values()))]
            if bad:
                logger.warning(
                    "The validation loss on %s is not finite on %d of %d images (such as %s)",
                    name,
                    len(bad),
                    len(table),
                    loader.records[bad[0]]["file_name"],
                )
            seconds = time.perf_counter() - start
            total = means["total_loss"]
            logger.info("%s: validation loss %.4g, %.1f s", name, total, seconds)
            found |= {f"{name}/{VALIDATION_LOSS}/{key}": value for key, value in means.items()}
        return found


def loss_loader(dataloader: Any, name: str) -> Loader:
    """Build the loader of a test set's training samples.

    The samples are those of the training mapper, with the augmentations of the evaluation. Images
    are dropped as in training (`filter_empty`, `min_keypoints`, `min_size`). With `data.tiles`,
    each tile is an image.

    Args:
        dataloader: Section `dataloader` of the config.
        name: Name of the test set.

    Raises:
        UserError: The config has loaders or mappers of other kinds, or no image is left.
    """
    train, val = dataloader.train, dataloader.val
    given = train.get("dataset") or {}
    arguments = {key: given[key] for key in _ARGUMENTS if key in given}
    if proposals := val.dataset.get("proposal_files"):
        arguments["proposal_files"] = list(proposals)
    with config_errors("dataloader.train.mapper"):
        mapper = instantiate(_mapper(train.get("mapper"), val.get("mapper")))
    return build_loss_loader(
        training_set(name, **arguments).records,
        mapper,
        num_workers=val.get("num_workers", 0),
        bad_images=val.get("bad_images", "stop"),
    )


def _mapper(train: Any, val: Any) -> Any:
    """Return the config of the training mapper with the augmentations of the evaluation."""
    if not hasattr(train, "items") or not hasattr(val, "items"):
        raise UserError("dataloader.train and dataloader.val need a mapper")
    mapper = copy.deepcopy(train)  # keeps its parent, which interpolations need
    names = [key for key in mapper if key.startswith("augmentation")]
    if not names or not all(key in val for key in names):
        expected = ", ".join(names) or "augmentations"
        raise UserError(f"dataloader.train.mapper and dataloader.val.mapper need {expected}")
    for key in names:
        mapper[key] = val[key]
    return mapper


def _losses_by_image(
    model: nn.Module,
    loader: Loader,
    losses_of: Callable[[list[dict]], Mapping[str, Tensor]],
    iteration: int,
    before_image: Callable[[], None],
) -> tuple[dict[int, dict[str, float]], str]:
    """Return the losses of the images of all ranks by position, and why a rank failed, or ""."""
    mine, failure = {}, ""
    with contextlib.closing(interruptibly(loader)) as batches:
        for k in range(len(loader)):
            before_image()
            position = comm.get_rank() + k * comm.get_world_size()
            try:
                losses = _losses(model, next(batches), losses_of, iteration, position)
            except Exception as e:  # an error in optional work must not end training
                frame = traceback.extract_tb(e.__traceback__)[-1]
                failure = f"{format_exception(e)} ({frame.filename}:{frame.lineno})"
                break
            if position < loader.images:  # otherwise the image is one of another rank
                mine[position] = losses
    with waiting_for("the validation loss of the other ranks", needed=comm.is_main_process):
        parts = comm.all_gather((mine, failure))
    table = {position: losses for part, _ in parts for position, losses in part.items()}
    return table, next(filter(None, (failure for _, failure in parts)), "")


def _losses(
    model: nn.Module,
    batch: list[dict],
    losses_of: Callable[[list[dict]], Mapping[str, Tensor]],
    iteration: int,
    position: int,
) -> dict[str, float]:
    """Return the losses of the image at `position`; a total of NaN if the forward pass fails."""
    device = next(model.parameters()).device
    with (
        _unchanged(model),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        generators_seeded(_SEED, position),
        torch.no_grad(),
        EventStorage(iteration),
    ):
        _use_training_mode(model)
        try:
            losses = losses_of(batch)
        except FloatingPointError:  # raised by Detectron2's RPN
            return {"total_loss": math.nan}
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


def _means(table: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each loss over the images, and of their sum; NaN if one is not finite."""
    if not all(math.isfinite(value) for losses in table.values() for value in losses.values()):
        return {"total_loss": math.nan}
    names = dict.fromkeys(name for i in sorted(table) for name in table[i])
    # Exactly rounded sums do not depend on the order, and so not on the number of processes.
    means = {
        name: math.fsum(losses.get(name, 0.0) for losses in table.values()) / len(table)
        for name in names
    }
    return {**means, "total_loss": math.fsum(means.values())}


def _use_training_mode(model: nn.Module) -> None:
    """Put a model in training mode, except for norms with running statistics, which they use.

    Detectron2's NaiveSyncBatchNorm would also wait for the other ranks.
    """
    model.train()
    for module in model.modules():
        if torch.is_tensor(getattr(module, "running_mean", None)):
            module.eval()


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restore the buffers, attributes and training mode of all modules at exit.

    A copy of the model would be simpler, but takes the memory of its weights, and copying the hooks
    that are registered on it would copy what they refer to, such as the trainer.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, before in zip(modules, attributes, strict=True):
            vars(module).clear()
            vars(module).update(before)
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer)
                buffer.copy_(before)
