"""Screen ideas for a recipe on a fixed split of the 61 balloon training photos: 46 and 15.

    python benchmarks/screening.py FOLDER
    python benchmarks/screening.py FOLDER --ideas ideas.txt --seeds 0 1 --runs RUNS

The first command writes the split to a new FOLDER: train.json, val.json and images/ are a set for
small_accuracy.py, and balloon/ is a `data.root` for the balloon recipes. Near-duplicates, and
photos of one session (of which the file names tell), stay on one side. The 13 validation photos
take no part, so that ideas are not chosen by them.

Each line of `--ideas` is `name: overrides` for the first `--config`, which is run as well. The
numbers are those of the last evaluation.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from recipe_runs import Recipe, add_arguments, compare, recipes_of

from d2ext.data.convert import convert_and_split
from d2ext.data.prepare.balloon import PHOTOS
from d2ext.data.splitting.split import SplitOptions

CONFIG = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
TRAIN = PHOTOS / "train"
VIA = "via_region_data.json"
# Names begin with Flickr's number of the photo: those of one session have the first five digits
# in common.
SPLIT = SplitOptions(15 / 61, seed=0, group_by=r"^\d{5}")


def write_split(folder: Path) -> list[str]:
    """Write the split to a new folder, as COCO and as VIA files, and return lines about it.

    Args:
        folder: Folder to create. File names in its COCO files are relative to the checkout's
            training photos, to which its `images` is a link.
    """
    lines = convert_and_split("via", TRAIN / VIA, TRAIN, folder, ["balloon"], SPLIT)
    os.symlink(TRAIN, folder / "images")
    truth = json.loads((TRAIN / VIA).read_text())
    for side in ("train", "val"):
        content = json.loads((folder / f"{side}.json").read_text())
        names = {image["file_name"] for image in content["images"]}
        photos = folder / "unfinished" / side
        photos.mkdir(parents=True)
        chosen = {key: entry for key, entry in truth.items() if entry["filename"] in names}
        (photos / VIA).write_text(json.dumps(chosen))
        for name in names:
            shutil.copyfile(TRAIN / name, photos / name)
    # An interrupted run leaves no `balloon`, which says that the split is complete.
    os.rename(folder / "unfinished", folder / "balloon")
    return lines


def read_ideas(text: str, base: Recipe) -> list[Recipe]:
    """Return a recipe for each line `name: overrides`; lines that begin with # are comments."""
    ideas = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            name, colon, overrides = line.partition(":")
            if not colon:
                sys.exit(f"error: --ideas: {line!r} has no name; write `name: overrides`")
            options = (*base.overrides, *shlex.split(overrides))
            ideas.append(Recipe(name.strip(), base.config, options))
    return ideas


def main() -> None:
    """Write the split, do the runs, and print Markdown tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the split, made if it is not there")
    add_arguments(parser, CONFIG, [0, 1])
    parser.add_argument("--ideas", type=Path, metavar="FILE", help="lines `name: overrides`")
    args = parser.parse_args()
    folder = args.folder.resolve()
    if not (folder / "balloon").exists():
        print("\n".join(write_split(folder)))
    recipes = recipes_of(args)
    if args.ideas:
        recipes += read_ideas(args.ideas.read_text(), recipes[0])
    elif not args.config:
        return
    compare(args, recipes, {"split": (f"data.root={folder}",)})


if __name__ == "__main__":
    main()
