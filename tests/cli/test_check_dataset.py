"""Test the command line of tools/check_dataset.py."""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from d2ext.data.formats.coco import read_coco, to_coco
from d2ext.data.formats.via import read_via
from tests.conftest import Finished

TRIALS = 1000


def coco(root: Path) -> dict:
    """Return a small valid COCO dataset and write its images."""
    images, annotations = [], []
    for i in range(3):
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": 32, "height": 24})
        Image.new("RGB", (32, 24), (60 * i, 0, 0)).save(root / f"{i}.png")
        for x in (2, 12):
            polygon = [x, 3, x + 8, 3, x + 8, 13, x, 13]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": 1 + (x > 2),
                    "bbox": [x, 3, 8, 10],
                    "area": 80,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def tool(run_tool: Callable[..., Finished]) -> Callable[..., tuple[int, str, str]]:
    """Run the tool in this process and return its status, stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        done = run_tool("check_dataset", *args)
        return done.status, done.stdout, done.stderr

    return run


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_exit_statuses_and_the_fixed_file(tool: Callable, tmp_path: Path) -> None:
    content = coco(tmp_path)
    good = write(tmp_path / "good.json", content)
    status, text, _ = tool(good, "--images", tmp_path)
    assert status == 0
    assert "    images    3 with objects; short side 24 pixels (5 to 95 % of them)" in text
    assert "    objects   6, 2.0 per image; size 37 %, 37 % and 37 % of the short side" in text
    assert "    classes   2, each in 3 images" in text
    content["annotations"][1]["id"] = 0
    content["annotations"][2]["area"] = 3
    bad, out, page = write(tmp_path / "bad.json", content), tmp_path / "o.json", tmp_path / "p.html"
    status, text, _ = tool(bad, "--images", tmp_path)
    assert status == 1
    assert "error: annotation_id_zero: 1 annotations with the id 0" in text
    assert "annotations[1] (id 0, image 1 0.png)" in text and "--fix: gets a new id" in text
    status, text, _ = tool(bad, "--images", tmp_path, "--fix", out, "--html", page)
    assert status == 0 and "annotations[1]: id 0 -> 2" in text
    assert tool(out, "--images", tmp_path)[0] == 0
    html = page.read_text()
    assert "annotation_id_zero" in html and "annotations[1]: id 0 -&gt; 2" in html
    assert not re.search('(src|href)="(?!data:)', html)  # no other file is needed
    status, text, error = tool(tmp_path / "absent.json")
    assert status == 2 and error.startswith("error: ") and "absent.json" in error


def test_missing_photos_are_dropped_only_on_request(tool: Callable, tmp_path: Path) -> None:
    content = coco(tmp_path)
    (tmp_path / "1.png").unlink()
    bad, out = write(tmp_path / "bad.json", content), tmp_path / "out.json"
    status, _, error = tool(bad, "--images", tmp_path, "--fix", out)
    assert status == 2 and not out.exists() and len(error.splitlines()) == 1
    assert "1 images without a file: images[1] (1.png)" in error and "--drop-unusable" in error
    status, text, _ = tool(bad, "--images", tmp_path, "--fix", out, "--drop-unusable")
    assert status == 0 and "3 changes, 3 of them removals" in text
    assert len(json.loads(out.read_bytes())["images"]) == 2


def test_text_from_the_file_is_escaped(tool: Callable, tmp_path: Path) -> None:
    content = coco(tmp_path)
    content["images"][0]["file_name"] = "<script>alert(1)</script>\x1b[31m\n.png"
    bad, page = write(tmp_path / "bad.json", content), tmp_path / "p.html"
    status, text, _ = tool(bad, "--images", tmp_path, "--html", page)
    assert status == 1 and "\x1b" not in text and r"\x1b[31m\n.png" in text
    assert "<script" not in page.read_text()


@pytest.mark.parametrize(
    "args",
    [
        ["--images", "nowhere"],
        ["--against", "nowhere.json"],
        ["--against-images", "."],
        ["--anchors", "0"],
        ["--anchors", "32", "nan"],
        ["--anchors", "inf"],
        ["--short-side", "-1"],
        ["--max-detections", "0"],
        ["--drop-unusable"],
    ],
)
def test_invalid_arguments_are_one_line(args: list[str], tool: Callable, tmp_path: Path) -> None:
    status, _, error = tool(write(tmp_path / "a.json", coco(tmp_path)), *args)
    assert status == 2 and error.startswith("error: ") and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "args",
    [
        ["--html", "a.json"],
        ["--fix", "a.json"],
        ["--fix", "sub/../a.json"],
        ["--html", "link.json"],
        ["--fix", "new", "--html", "new"],
        ["--fix", "new", "--html", "sub/../new"],
        ["--against", "b.json", "--fix", "b.json"],
    ],
)
def test_files_in_use_are_not_overwritten(
    args: list[str], tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    texts = [write(tmp_path / f"{x}.json", coco(tmp_path)).read_bytes() for x in "ab"]
    (tmp_path / "link.json").hardlink_to("a.json")
    status, _, error = tool("a.json", *args)
    assert status == 2 and "give another name" in error and len(error.splitlines()) == 1
    assert [(tmp_path / f"{x}.json").read_bytes() for x in "ab"] == texts
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_exit_with_status_0_1_or_2(seed: int, tool: Callable, tmp_path: Path) -> None:
    """Files with random bytes or values (1,000 over all seeds) give a clear status within 5 s."""
    content = coco(tmp_path)
    rng = random.Random(seed)
    path, out = tmp_path / "x.json", tmp_path / "out.json"
    seen, slowest = set(), 0.0
    for _ in range(TRIALS // 4):
        path.write_bytes(_mutated(content, rng))
        out.unlink(missing_ok=True)
        fixing = ["--fix", out] if rng.random() < 0.5 else []
        before, start = path.read_bytes(), time.perf_counter()
        status, text, error = tool(path, "--images", tmp_path, *fixing)
        slowest = max(slowest, time.perf_counter() - start)
        seen.add(status)
        assert path.read_bytes() == before
        assert status in (0, 1, 2), text
        assert (status == 2) == error.startswith("error: ")
        assert len(error.splitlines()) <= 2 and "Traceback" not in text + error
        text.encode("utf-8")
        if fixing:
            assert out.exists() == (status == 0)
            if status == 0:
                assert tool(out, "--images", tmp_path)[0] == 0
        if status == 0:  # a file without errors must be readable
            records, _ = read_coco(out if fixing else path, tmp_path)
            assert all(os.path.isfile(r["file_name"]) for r in records)
    assert seen == {0, 1, 2}
    assert slowest < 5


def _mutated(content: dict, rng: random.Random) -> bytes:
    made = json.loads(json.dumps(content))
    text = json.dumps(made).encode()
    kind = rng.randrange(8)
    if kind == 0:
        return text[: rng.randrange(len(text))]
    if kind == 1:
        damaged = bytearray(text)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    if kind == 2:
        encoding = rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le", "latin-1"])
        made["categories"][0]["name"] = "Käfer"
        return json.dumps(made, ensure_ascii=False).encode(encoding)
    values = [
        *(
            None,
            True,
            -1,
            0,
            1.5,
            10**25,
            1e308,
            float("nan"),
            float("inf"),
            "",
            "7",
            "\ud800",
            [],
            {},
        ),
        *(
            "../../etc/passwd",
            "/etc/passwd",
            "a\0b",
            "..",
            "x" * 5000,
            [[]],
            [[1, 2]],
            [None],
            [{}],
        ),
        {"size": [24, 32], "counts": "zz\x7f"},
        {"size": [24, 32], "counts": [5, -5, 768]},
        {"size": [10**9, 10**9], "counts": [10**18]},
    ]
    for _ in range(rng.randrange(1, 4)):
        part = rng.choice(["images", "annotations", "categories"])
        row = rng.randrange(len(made[part]))
        value = rng.choice(values)
        if kind == 3 and rng.random() < 0.3:
            made[part] = value
            break
        if kind == 4:
            made[part][row] = value
        elif isinstance(made[part][row], dict):
            key = rng.choice([*content[part][0]])
            made[part][row][key] = value
            if kind == 5:
                del made[part][row][key]
            if kind == 6:
                made[part].append(dict(made[part][row]))
    text = json.dumps(made)
    if kind == 7 and rng.random() < 0.3:
        text = text.replace("[[", "[" * 100_000, 1)
    return text.encode()


def test_help_and_work_import_no_torch(repo: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", coco(tmp_path))
    for args in (["--help"], [path, "--images", tmp_path, "--fix", tmp_path / "o.json"]):
        command = [sys.executable, "-Ximporttime", repo / "tools" / "check_dataset.py", *args]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        modules = {x.rsplit("|", 1)[1].strip() for x in run.stderr.splitlines() if "|" in x}
        assert "argparse" in modules
        assert not modules & {"torch", "detectron2", "cv2"}


def test_balloon_photos_are_clean(tool: Callable, real_balloon: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        root = real_balloon / split
        records = read_via(root / "via_region_data.json", root, ["balloon"])
        path = write(tmp_path / f"{split}.json", to_coco(records, ["balloon"], root))
        other = {"train": "val", "val": "train"}[split]
        if (tmp_path / f"{other}.json").exists():
            more = ["--against", tmp_path / f"{other}.json"]
            more += ["--against-images", real_balloon / other]
        else:
            more = []
        status, text, error = tool(path, "--images", root, *more)
        assert status == 0, text + error
