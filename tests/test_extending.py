"""docs/extending.md: each section runs as it stands, from an empty folder.

The listings are saved under the names in their first lines, and the commands run in a shell, where
`d2ext` and `pip` are those of this environment: training ends after two steps on tiny photos, and
packages go to a folder of the test.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO, SHEBANG

PAGE = (REPO / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {
    text.partition("\n")[0]: re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for text in PAGE.split("\n## ")[1:]
}

# What every training of the page receives at its end.
TINY = [
    "train.max_iter=2",
    "train.log_period=1",
    "train.reference_batch_size=2",
    "train.init_checkpoint=null",
    "train.device=cpu",
    "dataloader.train.num_workers=0",
    "dataloader.val.num_workers=0",
    "dataloader.train.mapper.augmentations[0].short_edge_length=96",
    "dataloader.val.mapper.augmentations[0].short_edge_length=96",
]
D2EXT = f"""{SHEBANG}import sys

from d2ext.__main__ import main

if __name__ == "__main__":
    if sys.argv[1] == "train":
        sys.argv += {TINY!r}
    main()
"""
PIP = f"""#!/bin/sh -e
command=$1; shift
exec {shlex.quote(sys.executable)} -m pip $command --no-deps --no-build-isolation --no-index \\
    --quiet --target "$SITE" "$@"
"""


@pytest.fixture
def reader(tmp_path: Path, tiny_root: Path) -> Iterator[dict[str, str]]:
    """Return the environment of a reader, whose folder has photos and annotations."""
    from d2ext.data.convert import convert_to_coco

    balloon = tiny_root / "balloon"
    Path("photos").mkdir()
    for split, name in (("train", "a"), ("val", "b")):
        for photo in (balloon / split).glob("*.jpg"):
            shutil.copy(photo, "photos")
        via = balloon / split / "via_region_data.json"
        convert_to_coco("via", via, balloon / split, f"{name}.json", ["balloon"])
    _for_the_dataset_function()
    _for_the_format()
    shims = tmp_path / "bin"
    shims.mkdir()
    for name, text in (("d2ext", D2EXT), ("pip", PIP)):
        (shims / name).write_text(text)
        (shims / name).chmod(0o755)
    site = tmp_path / "site"
    yield {
        **os.environ,
        "PATH": os.pathsep.join([str(shims), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(REPO), str(site)]),
        "SITE": str(site),
        "OMP_NUM_THREADS": "1",
    }


def _for_the_dataset_function() -> None:
    for split, name in (("train", "a"), ("val", "b")):
        coco = json.loads(Path(f"{name}.json").read_text())
        records = []
        for image in coco["images"]:
            mine = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
            annotations = [
                {
                    "bbox": [x, y, x + w, y + h],
                    "category_id": a["id"] % 2,
                    "segmentation": a["segmentation"],
                }
                for a in mine
                for x, y, w, h in [a["bbox"]]
            ]
            size = {key: image[key] for key in ("file_name", "height", "width")}
            records.append({**size, "annotations": annotations})
        Path(f"my_{split}.json").write_text(json.dumps(records))


def _for_the_format() -> None:
    coco = json.loads(Path("a.json").read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    lines = ["# boxes"]
    for a in coco["annotations"]:
        x, y, w, h = a["bbox"]
        lines.append(f"{names[a['image_id']]} balloon {x} {y} {x + w} {y + h}")
    Path("boxes.txt").write_text("\n".join(lines) + "\n")


def _results(run: str) -> dict[str, float]:
    return json.loads(Path("work_dirs", run, "results.json").read_text())["last"]["results"]


def _metrics() -> list[dict[str, float]]:
    lines = Path("work_dirs/mine/metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _metric() -> None:
    assert _results("mine")["custom_val/count/bbox/count_error"] >= 0
    assert "custom_val/count/bbox/count_error" in _metrics()[-1]


def _hook() -> None:
    first, second = _metrics()
    assert 0 < first["gradient_norm"] <= second["largest_gradient_norm"]


def _writer() -> None:
    rows = Path("work_dirs/mine/metrics.csv").read_text()
    assert re.search(r"^1,total_loss,[\d.]+$", rows, re.MULTILINE), rows


def _model() -> None:
    import torch

    weights = torch.load("work_dirs/cascade/model_final.pth", weights_only=True)["model"]
    scores = [weights[f"roi_heads.box_predictor.{k}.cls_score.weight"] for k in range(3)]
    assert [len(score) for score in scores] == [2, 2, 2]  # the balloon and the background
    assert Path("work_dirs/predict/predictions.json").is_file()


def _dataset_function() -> None:
    assert {"mine_val/coco/segm/AP-cat", "mine_val/coco/segm/AP-dog"} <= _results("mine").keys()


def _format() -> None:
    converted, given = (json.loads(Path(f).read_text()) for f in ("coco.json", "a.json"))
    assert len(converted["annotations"]) == len(given["annotations"])
    assert "custom_val/coco/bbox/AP-balloon" in _results("faster_rcnn_lite0_fpn")


EXPECTED = {
    "A metric": _metric,
    "A hook": _hook,
    "A writer": _writer,
    "A model": _model,
    "A dataset function": _dataset_function,
    "A format": _format,
}


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_runs_from_an_empty_folder(reader: dict[str, str], section: str) -> None:
    for language, text in SECTIONS[section]:
        if language == "bash":
            _run(text, reader)
        else:
            file = Path(re.match(r"# (\S+\.\w+)\n", text)[1])
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
    EXPECTED[section]()


def _run(script: str, env: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-e", "-c", script], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def test_each_section_is_tested() -> None:
    assert list(SECTIONS) == list(EXPECTED)
