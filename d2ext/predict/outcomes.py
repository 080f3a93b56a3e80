"""Predict the images of each rank, and bring what all ranks found into the order of the inputs."""

import contextlib
import functools
import heapq
import itertools
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from detectron2.utils import comm

from d2ext.errors import UserError
from d2ext.files import atomic_write
from d2ext.launch.collectives import wait_for_ranks
from d2ext.predict.predictor import Prediction, Predictor, batches
from d2ext.predict.sources import ImageSource, Item, is_video, readable, sources_of
from d2ext.terminal import progress


class Outcome(NamedTuple):
    """The result of an image or a frame, without its pixels.

    Attributes:
        item: The image, without the pixels of a frame.
        size: Its height and width in pixels.
        objects: `Prediction.objects`.
        all_scores: `Prediction.all_scores`.
        problem: Why it cannot be read; "" if it has been read.
    """

    item: Item
    size: tuple[int, int] = (0, 0)
    objects: Sequence[dict[str, Any]] = ()
    all_scores: np.ndarray | None = None
    problem: str = ""


class PictureWriter(Protocol):
    """Writer of files that belong to a single image or video, so that each rank writes its own."""

    def write(self, item: Item, prediction: Prediction, rate: float) -> None:
        """Write the picture of an image, or add a frame; `rate` is 0 for images."""

    def end_video(self) -> None:
        """Finish the video of the frames so far, if there are any."""


def outcomes_of(
    predictor: Predictor,
    files: Sequence[Item],
    batch_size: int,
    pictures: Sequence[PictureWriter],
    folder: Path | None,
    needs_objects: bool,
) -> Iterator[Outcome]:
    """Predict files and write their pictures; yield the outcomes on rank 0, in order.

    Of N ranks, each takes every N-th batch of photos and every N-th video. It writes its outcomes
    to a file, and finally rank 0 reads all these files side by side: no rank waits for another one
    until it has predicted its last image, and memory does not grow.

    Args:
        predictor: Predictor of the model.
        files: All files, photos first.
        batch_size: Number of images, or of an image's tiles, that the model processes together.
        pictures: Writers of pictures.
        folder: Folder for the files of the ranks, if there are several. Each also writes its
            process id to it, by which the launcher finds the temporary files of killed ranks.
        needs_objects: Refuse a model that returns only a segmentation, at its first image.

    Raises:
        UserError: A file cannot be written, or the model returns no objects but should.
    """
    places = {item.name: place for place, item in enumerate(files)}
    ranks = comm.get_world_size()
    outcomes = _outcomes(predictor, files, places, batch_size, pictures, needs_objects)
    if ranks == 1:
        yield from outcomes
        return
    assert folder is not None
    with atomic_write(folder / f"{comm.get_rank()}.pid", durable=False) as file:
        file.write(str(os.getpid()))
    with atomic_write(folder / f"{comm.get_rank()}.pickle", "wb", durable=False) as file:
        for outcome in outcomes:
            pickle.dump(outcome, file)
        pickle.dump(None, file)
    wait_for_ranks("the predictions of the other ranks")
    if comm.is_main_process():
        read = [_read(folder / f"{rank}.pickle") for rank in range(ranks)]
        yield from heapq.merge(*read, key=lambda outcome: places[outcome.item.name])


def _outcomes(
    predictor: Predictor,
    files: Sequence[Item],
    places: Mapping[str, int],
    batch_size: int,
    pictures: Sequence[PictureWriter],
    needs_objects: bool,
) -> Iterator[Outcome]:
    """Predict this rank's files, and yield the outcomes in the order of their places."""
    images = 1 if predictor.tiled else batch_size
    for source in sources_of(_share(files, images)):
        with _progress(source) as advance:
            for batch in batches(readable(source.items, advance), images):
                outcomes = _predicted(
                    predictor, batch, batch_size, pictures, source.rate, needs_objects
                )
                yield from sorted(outcomes, key=lambda outcome: places[outcome.item.name])
            for writer in pictures:
                writer.end_video()


def _share(files: Sequence[Item], batch_size: int) -> list[Item]:
    """Return the files of this rank.

    Photos are shared in the batches of a single process, because photos are padded to the largest
    one of their batch, which changes the last digits of the predictions.
    """
    photos = list(itertools.takewhile(lambda item: not is_video(item), files))
    units = [*batches(photos, batch_size), *([video] for video in files[len(photos) :])]
    return list(itertools.chain(*units[comm.get_rank() :: comm.get_world_size()]))


def _read(file: Path) -> Iterator[Outcome]:
    """Yield the outcomes of a rank, up to the None at the end."""
    with open(file, "rb") as f:
        while (outcome := pickle.load(f)) is not None:
            yield outcome


def _progress(source: ImageSource) -> contextlib.AbstractContextManager[Callable[[int], Any]]:
    """Show the progress of rank 0, which is about that of the others."""
    if not comm.is_main_process():
        return contextlib.nullcontext(lambda number: None)
    of = " of rank 0" if comm.get_world_size() > 1 else ""
    return progress(f"{source.name}{of}", source.total)


def _predicted(
    predictor: Predictor,
    batch: Sequence[tuple[Item, np.ndarray | str]],
    batch_size: int,
    pictures: Sequence[PictureWriter],
    rate: float,
    needs_objects: bool,
) -> list[Outcome]:
    """Return the outcomes of a batch, those of images without a prediction first."""
    outcomes = [Outcome(_bare(i), problem=image) for i, image in batch if isinstance(image, str)]
    kept: list[Item] = []
    skip = functools.partial(_skip_last, kept, outcomes)
    for prediction in predictor.predict(_pixels(batch, kept), batch_size, skip):
        item = kept.pop(0)
        if needs_objects and prediction.all_scores is None:
            raise UserError(
                "the model returns only a segmentation, but --annotations and --rank need objects;"
                " use a model that detects objects, or omit both"
            )
        for writer in pictures:
            writer.write(item, prediction, rate)
        size = prediction.image.shape[:2]
        outcomes.append(Outcome(_bare(item), size, prediction.objects, prediction.all_scores))
    return outcomes


def _pixels(
    batch: Sequence[tuple[Item, np.ndarray | str]], kept: list[Item]
) -> Iterator[np.ndarray]:
    """Yield the pixels of the images that can be read, and add their items to `kept`."""
    for item, image in batch:
        if not isinstance(image, str):
            kept.append(item)
            yield image


def _skip_last(kept: list[Item], outcomes: list[Outcome], error: UserError) -> None:
    """Move the item that was read last to those without a prediction."""
    problem = f"cannot be read and is skipped: {error}"
    outcomes.append(Outcome(_bare(kept.pop()), problem=problem))


def _bare(item: Item) -> Item:
    return replace(item, frame=None)
