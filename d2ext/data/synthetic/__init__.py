"""Draws a stand-in for the balloon photos, for machines that cannot download them.

The pictures hold what makes the real task a task: balloons of all sizes that overlap, leave the
frame and hide behind posts and leaves, over textured backgrounds, among round and colourful things
that are no balloons.
"""

import json
from pathlib import Path

MARKER = "SYNTHETIC"
_MARKER_TEXT = """\
The pictures in this folder are drawn by d2ext: they are synthetic, not the photos of the balloon
dataset. Numbers measured on them say nothing about the real ones. For the photos delete this folder
and run `python tools/prepare_data.py balloon` with a network.
"""


def draw_balloons(
    root: str | Path, num_train: int = 60, num_val: int = 15, long_side: int = 640, seed: int = 0
) -> None:
    """Writes JPEGs and `via_region_data.json` (VIA 1.x) to root/{train,val}, and root/SYNTHETIC.

    The same arguments give the same bytes (with the same numpy and OpenCV).

    Args:
        root: the folder to fill; created if need be. Existing files of the same names are replaced.
        num_train: number of training images.
        num_val: number of validation images.
        long_side: about the longer side of the images, in pixels (they vary by a tenth).
        seed: another seed draws other pictures.

    Raises:
        OSError: a file cannot be written.
    """
    import cv2
    import numpy as np

    from d2ext.data.synthetic.scene import draw_scene

    root = Path(root)
    for split, (name, count) in enumerate((("train", num_train), ("val", num_val))):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        via = {}
        for index in range(count):
            rng = np.random.default_rng([seed, split, index])
            pixels, outlines = draw_scene(rng, long_side)
            # Not cv2.imwrite, which reports a full disk by its return value only.
            jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
            file_name = f"{name}_{index:03d}.jpg"
            (folder / file_name).write_bytes(jpeg)
            via[f"{file_name}{len(jpeg)}"] = _via_entry(file_name, len(jpeg), outlines)
        (folder / "via_region_data.json").write_text(json.dumps(via))
    (root / MARKER).write_text(_MARKER_TEXT)


def is_synthetic(folder: str | Path) -> bool:
    """Whether `folder` (the one that holds train and val) was filled by `draw_balloons`."""
    return (Path(folder) / MARKER).exists()


def _via_entry(file_name: str, size: int, outlines: list[list[list[int]]]) -> dict:
    regions = {}
    for i, outline in enumerate(outlines):
        xs, ys = zip(*outline, outline[0], strict=True)  # closed, as VIA 1 does
        shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
        regions[str(i)] = {"shape_attributes": shape, "region_attributes": {}}
    return {
        "fileref": "",
        "size": size,
        "filename": file_name,
        "base64_img_data": "",
        "file_attributes": {},
        "regions": regions,
    }
