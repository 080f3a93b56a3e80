"""The part of against_mmdetection.py that runs in MMDetection's Python, and a hook for its runs.

python mmdet_side.py predict CONFIG CHECKPOINT PHOTO ...
python mmdet_side.py convert VIA FOLDER COCO
"""

import os
import sys
import time
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)  # also imported by the config of `predict`
class FirstStep(Hook):
    """Write the moment at which the first step begins, like `first_call.noting`."""

    def before_train_iter(self, runner: object, batch_idx: int, data_batch: object = None) -> None:
        if batch_idx == 0:
            Path(os.environ["D2EXT_FIRST_CALL"]).write_text(str(time.monotonic()))


def predict(config: str, checkpoint: str, *photos: str) -> None:
    """Print the seconds per photo, after a first photo that warms up."""
    from mmdet.apis import inference_detector, init_detector

    model = init_detector(config, checkpoint, device="cpu")
    inference_detector(model, photos[0])
    start = time.perf_counter()
    for photo in photos:
        inference_detector(model, photo)
    print(f"seconds per photo: {(time.perf_counter() - start) / len(photos)}", flush=True)


def convert(via: str, folder: str, coco: str) -> None:
    """Convert like `convert_balloon_to_coco` in MMDetection's guide."""
    import mmcv
    import mmengine

    annotations, images = [], []
    data_infos = mmengine.load(via)
    # The guide passes the values as they are, which mmengine 0.10 refuses.
    for idx, v in enumerate(mmengine.track_iter_progress(list(data_infos.values()))):
        height, width = mmcv.imread(os.path.join(folder, v["filename"])).shape[:2]
        images.append(dict(id=idx, file_name=v["filename"], height=height, width=width))
        for obj in v["regions"].values():
            obj = obj["shape_attributes"]
            px, py = obj["all_points_x"], obj["all_points_y"]
            poly = [p for x, y in zip(px, py) for p in (x + 0.5, y + 0.5)]  # noqa: B905
            x_min, y_min, x_max, y_max = min(px), min(py), max(px), max(py)
            annotations.append(
                dict(
                    image_id=idx,
                    id=len(annotations),
                    category_id=0,
                    bbox=[x_min, y_min, x_max - x_min, y_max - y_min],
                    area=(x_max - x_min) * (y_max - y_min),
                    segmentation=[poly],
                    iscrowd=0,
                )
            )
    categories = [{"id": 0, "name": "balloon"}]
    mmengine.dump(dict(images=images, annotations=annotations, categories=categories), coco)


if __name__ == "__main__":
    {"predict": predict, "convert": convert}[sys.argv[1]](*sys.argv[2:])
