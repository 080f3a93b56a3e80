"""The report: its content, escaping, and missing or damaged parts."""

import base64
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from d2ext.errors import UserError
from d2ext.report import write_report

TOOL = Path(__file__).resolve().parent.parent.parent / "tools" / "report.py"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Parse a page, check its nesting, and collect its text, attributes, charts and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.data: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.charts = [json.loads(text) for text in self.data]

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag == "script":
            self.kind = self.data if ("type", "application/json") in attrs else self.scripts
            self.kind.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.kind[-1] += data
        elif self.open[-1:] != ["style"]:
            self.text += data


def add_intervals(run_dir: Path) -> None:
    """Give the results of a run intervals of 5 percent on both sides, except those of `voc`."""
    content = json.loads((run_dir / "results.json").read_text())
    for evaluation in content.values():
        evaluation["intervals"] = {
            key: value and [value - 5, value + 5]
            for key, value in evaluation["results"].items()
            if "/voc/" not in key
        }
    (run_dir / "results.json").write_text(json.dumps(content))


def page(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def write_metrics(run_dir: Path, rows: list[dict]) -> None:
    (run_dir / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(run_dir: Path) -> Path:
    """Write a finished run of 100 iterations."""
    dataset = "balloon_val"
    info = {
        "name": "my_recipe",
        "config_file": "configs/my_recipe.py",
        "command": "python tools/train_net.py --config-file configs/my_recipe.py",
        "started": "2026-03-04T10:11:12",
        "versions": {"torch": "2.14.1", "detectron2": "0.6"},
        "machine": "a laptop",
        "device": "cpu",
        "datasets": {dataset: {"images": 13, "instances": 50}},
        "train_seconds": 332.4,
        "max_iter": 100,
        "batch_size": 8,
    }
    results = {
        f"{dataset}/coco/bbox/AP": 47.25,
        f"{dataset}/coco/bbox/APs": None,
        f"{dataset}/coco/segm/AP": 51.66,
        f"{dataset}/coco/segm/AP50": 70.04,
        f"{dataset}/voc/bbox/mAP": 66.6,
    }
    rows = [
        {"iteration": i, "total_loss": 3 - i / 50, "loss_cls": 1, "loss_mask": 2, "lr": 0.01}
        for i in range(0, 100, 5)
    ]
    for row in rows:
        row |= {"time": 0.5, "memory_mb": 2048}
    run_dir.mkdir(exist_ok=True)
    (run_dir / "run.json").write_text(json.dumps(info))
    (run_dir / "config.yaml").write_text("train:\n  max_iter: 100\n")
    write_metrics(run_dir, [*rows, {"iteration": 99, **results}])
    best = {k: v and v + 1 for k, v in results.items()}
    last, best = {"iteration": 100, "results": results}, {"iteration": 50, "results": best}
    (run_dir / "results.json").write_text(json.dumps({"last": last, "best": best}))
    overlays = run_dir / "overlays" / dataset
    overlays.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 32), "red").save(overlays / "photo.jpg")
    return run_dir


def test_exported_models_are_listed_with_their_proofs(tmp_path):
    """A link leads to the page in a browser, and a failed verification is reported."""
    passed = {
        **{"file": "export/model.onnx", "precision": "float16", "bytes": 9_900_000, "images": 13},
        **{"objects": 50, "alone": 1, "boxes": 0.0012, "scores": 4e-6, "masks": 0.004},
        **{"within": 0.98, "results": {"balloon_val/coco/bbox/AP": [47.25, 47.36]}},
        "page": "page.html",
    }
    failed = passed | {"file": "/elsewhere/b.onnx.unverified", "failures": ["AP is 3"]}
    del failed["page"]
    special = passed | {"file": "c.onnx", "page": "my page #1?.html"}
    elsewhere = passed | {"file": "d.onnx", "page": "/elsewhere/100%.html"}
    write_run(tmp_path)
    (tmp_path / "export.json").write_text(
        json.dumps({"exports": [passed, failed, special, elsewhere]})
    )
    shown = page(tmp_path)
    for text in (
        *("Exported models", "export/model.onnx", "float16 · 9.9 MB", "47.4"),
        "13 images, 50 objects: the largest difference of boxes is 0.001 pixels of the resized"
        " photo, of scores 4e-06",
        *("98.0% of the objects", "/elsewhere/b.onnx.unverified", "AP is 3"),
    ):
        assert text in shown.text, text
    links = [value for name, value in shown.attributes if name == "href" and ".html" in value]
    assert links == ["page.html", "my%20page%20%231%3F.html", "file:///elsewhere/100%25.html"]
    assert shown.text.count("failed its verification") == 1
    (tmp_path / "export.json").write_text("{")
    damaged = page(tmp_path).text
    assert "export.json is damaged" in damaged and "Exported models" not in damaged


def test_finished_run(tmp_path):
    shown = page(write_run(tmp_path))
    for text in (
        *("my_recipe", "4 March 2026", "5 min 32 s", "a laptop", "cpu", "torch 2.14.1"),
        *("configs/my_recipe.py", "python tools/train_net.py --config-file", "max_iter: 100"),
        *("13 images, 50 instances", "photo"),
        # Best and last results; APs is null, and mAP is only in the full list.
        *("47.2", "48.2", "51.7", "52.7", "70.0", "71.0", "–", "balloon_val/voc/bbox/mAP", "66.6"),
        *("best, iteration 50", "last, iteration 100"),
        *("Total loss", "Learning rate", "AP on balloon_val", "Images per second", "Memory"),
    ):
        assert text in shown.text, text
    drawn = [(c["ylabel"], [line["label"] for line in c["lines"]]) for c in shown.charts]
    assert drawn == [
        ("total loss", ["total loss"]),
        ("loss", ["loss_mask", "loss_cls"]),
        ("learning rate", ["learning rate"]),
        ("AP (percent)", ["coco bbox AP", "coco segm AP", "coco segm AP50"]),
        ("images/s", ["images/s"]),
        ("memory (GiB)", ["memory"]),
    ]
    assert shown.charts[4]["lines"][0]["curve"][1][0] == 16  # 8 images in half a second
    assert shown.charts[5]["lines"][0]["curve"] == [list(range(0, 100, 5)), [2.0] * 20]
    assert shown.tags.count("img") == 1
    assert ("class", "notes") not in shown.attributes
    assert [p.name for p in tmp_path.iterdir() if "report" in p.name] == ["report.html"]


def test_intervals_are_shown(tmp_path):
    run = write_run(tmp_path)
    without = page(run)
    assert "95 % bootstrap" not in without.text and "A result has no interval if" in without.text
    assert not any(line["bars"] for chart in without.charts for line in chart["lines"])
    add_intervals(run)
    shown = page(run)
    assert "51.7 [46.7, 56.7]" in shown.text and "52.7 [47.7, 57.7]" in shown.text
    assert "balloon_val/coco/segm/AP5071.0 [66.0, 76.0]70.0 [65.0, 75.0]" in shown.text
    assert "balloon_val/voc/bbox/mAP67.666.6" in shown.text
    assert "95 % bootstrap" in shown.text and "A result has no interval if" not in shown.text
    lines = {line["label"]: line for line in shown.charts[3]["lines"]}
    assert lines["coco segm AP"]["bars"] == [[49, 47.66, 57.66], [99, 46.66, 56.66]]
    assert "Bars: 95 % intervals" in shown.text
    content = json.loads((run / "results.json").read_text())
    for evaluation in content.values():
        evaluation["caveats"] = ["balloon_val: its AP is too high"]
    (run / "results.json").write_text(json.dumps(content))
    assert page(run).text.count("balloon_val: its AP is too high.") == 1


def test_validation_losses_are_drawn_with_the_training_losses(tmp_path):
    run = write_run(tmp_path)
    with open(run / "metrics.json", "a") as f:
        for i, loss in ((49, 1.5), (99, 2.5)):
            names = {f"{d}/validation_loss/total_loss": loss + k for k, d in enumerate("ba")}
            names["b/validation_loss/loss_cls"] = loss / 2
            f.write(json.dumps({"iteration": 100 + i, **names}) + "\n")
    shown = page(run)
    total, parts = shown.charts[:2]
    assert [(line["label"], line["dashed"]) for line in total["lines"]] == [
        ("total loss", False),
        ("total_loss on a", True),
        ("total_loss on b", True),
    ]
    assert total["lines"][2]["curve"] == [[149, 199], [1.5, 2.5]]
    assert len({line["color"] for line in total["lines"]}) == 3
    assert [line["label"] for line in parts["lines"]] == ["loss_mask", "loss_cls", "loss_cls on b"]
    assert parts["lines"][1]["color"] == parts["lines"][2]["color"]
    assert "without augmentation" in shown.text
    assert "without augmentation" not in page(write_run(tmp_path / "other")).text


def test_page_loads_nothing_from_elsewhere(tmp_path):
    shown = page(write_run(tmp_path))
    for name, value in shown.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("data:", "#")), value
    html = (tmp_path / "report.html").read_text()
    (script,) = shown.scripts
    assert not re.search(r"https?://|@import|url\((?!#)", html.replace(script, ""))
    # The policy allows only this script, and no requests.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [value for _, value in shown.attributes if value and "default-src" in value]
    assert policy.split("; ") == [
        *("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"),
        f"script-src 'sha256-{digest}'",
    ]


def test_content_of_files_is_escaped(tmp_path):
    evil = "<script>alert(1)</script><!--\"'&"
    write_run(tmp_path)
    info = json.loads((tmp_path / "run.json").read_text())
    for key in ("name", "command", "config_file", "machine", "device", "started"):
        info[key] = evil
    info["versions"] = {evil: evil}
    info["datasets"] = {evil: {"images": evil, "instances": evil}}
    (tmp_path / "run.json").write_text(json.dumps(info))
    (tmp_path / "config.yaml").write_text(evil)
    results = {evil + "/coco/" + evil + "/AP": 1, evil: 2}
    evaluation = {"iteration": 3, "results": results}
    (tmp_path / "results.json").write_text(json.dumps({"last": evaluation}))
    rows = [{"iteration": i, "loss" + evil: 1, "total_loss": 1, **results} for i in (1, 2)]
    write_metrics(tmp_path, rows)
    folder = tmp_path / "overlays" / "<script>x"
    folder.mkdir()
    Image.new("RGB", (64, 32)).save(folder / "<script>'\"&.jpg")

    shown = page(tmp_path)
    assert len(shown.scripts) == 1 and "alert" not in shown.scripts[0]
    assert not [name for name, _ in shown.attributes if name.startswith("on")]
    assert shown.text.count(evil) > 10
    assert "loss" + evil in [line["label"] for c in shown.charts for line in c["lines"]]
    assert "<script>'\"&" in shown.text  # the name of a picture


def test_run_of_an_older_version_is_read(tmp_path):
    """Older versions stored in run.json whether each dataset is synthetic."""
    run = write_run(tmp_path)
    info = json.loads((run / "run.json").read_text())
    info["datasets"]["balloon_val"]["synthetic"] = True
    (run / "run.json").write_text(json.dumps(info))
    shown = page(run)
    assert "balloon_val: 13 images, 50 instances" in shown.text
    assert "damaged" not in shown.text and "ynthetic" not in shown.text


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("run.json", "No package versions in run.json"),
        ("config.yaml", "No config.yaml."),
        ("metrics.json", "No training losses"),
        ("results.json", "No results.json, so no AP"),
        ("overlays", "No pictures"),
    ],
)
def test_missing_part_is_reported(tmp_path, missing, sentence):
    write_run(tmp_path)
    assert sentence not in page(tmp_path).text
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    assert sentence in page(tmp_path).text


def test_interrupted_run(tmp_path):
    write_run(tmp_path)
    info = json.loads((tmp_path / "run.json").read_text())
    assert "not finished" not in page(tmp_path).text
    del info["train_seconds"]
    (tmp_path / "run.json").write_text(json.dumps(info))
    assert "not finished: the last loss is from iteration 95" in page(tmp_path).text
    info |= {"train_seconds": 12.5, "stopped_by": "SIGTERM"}
    (tmp_path / "run.json").write_text(json.dumps(info))
    assert "not finished (stopped by SIGTERM): the last loss" in page(tmp_path).text


def test_summary_of_data_and_weights(tmp_path):
    run = write_run(tmp_path)
    info = json.loads((run / "run.json").read_text())
    assert "weights" not in page(run).text and "classes" not in page(run).text
    info |= {"classes": ["ball<on>"], "weights": "zoo/<r50>.pkl", "resumed_from": "a/b.pth"}
    info["datasets"] = {"balloon_train": {"images": 61, "instances": 255}, **info["datasets"]}
    (run / "run.json").write_text(json.dumps(info))
    text = page(run).text
    sizes = "balloon_train: 61 images, 255 objects · balloon_val: 13 images, 50 objects · 1 class"
    assert sizes in text
    assert "initial weights zoo/<r50>.pkl · resumed from a/b.pth" in text
    info |= {"max_iter": None, "resumed_from": None, "classes": ["a", "b"]}  # an evaluation
    (run / "run.json").write_text(json.dumps(info))
    write_metrics(run, [])
    text = page(run).text
    assert "evaluated weights zoo/<r50>.pkl\n" in text and " · 2 classes" in text


def test_error_of_a_failed_run_is_shown(tmp_path):
    run = write_run(tmp_path)
    info = json.loads((run / "run.json").read_text())
    del info["train_seconds"]
    assert "The run failed" not in page(run).text
    info["ended_by"] = "the loss is <NaN>"
    (run / "run.json").write_text(json.dumps(info))
    text = page(run).text
    assert "The run failed: the loss is <NaN>" in text and "Training is in progress" not in text
    assert "error: the loss is <NaN>" in text.split("Warnings")[1]


def test_damaged_parts(tmp_path):
    write_run(tmp_path)
    with open(tmp_path / "metrics.json", "a") as f:
        f.write('{"iteration": 104, "total_l')  # killed while writing
    (tmp_path / "results.json").write_text('{"last": {"iter')
    (tmp_path / "overlays/balloon_val/cut.jpg").write_bytes(b"\xff\xd8\xff")
    shown = page(tmp_path)
    assert "metrics.json: 1 unreadable line" in shown.text
    assert "results.json is damaged" in shown.text
    assert "1 of the 2 pictures" in shown.text
    assert len(shown.charts) == 6


def test_iterations_lost_before_a_resume_are_not_shown(tmp_path):
    write_run(tmp_path)
    clean = page(tmp_path).charts
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    # Killed at 95 and resumed from 50; the lost part includes an evaluation and outliers.
    lost = [{**row, "total_loss": 1e4, "lr": 7} for row in rows if row["iteration"] >= 50]
    lost.insert(3, {"iteration": 61, "total_loss": 1e5, "balloon_val/coco/segm/AP": 99})
    write_metrics(tmp_path, [*rows[:10], *lost, *rows[10:]])
    assert page(tmp_path).charts == clean
    write_metrics(tmp_path, [*rows[:10], *lost, *rows[10:12]])  # killed again at 60
    (loss, *_) = page(tmp_path).charts
    assert loss["lines"][0]["raw"][0] == list(range(0, 60, 5))


def test_best_equal_to_last_is_one_row(tmp_path):
    write_run(tmp_path)
    evaluation = {"iteration": 100, "results": {"balloon_val/coco/segm/AP": 51.66}}
    (tmp_path / "results.json").write_text(json.dumps(dict.fromkeys(["last", "best"], evaluation)))
    assert "(best and last, iteration 100)" in page(tmp_path).text


def test_many_big_pictures_are_reduced(tmp_path):
    write_run(tmp_path)
    noise = Image.frombytes("RGB", (1400, 700), random.Random(0).randbytes(1400 * 700 * 3))
    folder = tmp_path / "overlays/balloon_val"
    noise.save(folder / "photo.jpg", quality=90)
    for i in range(29):
        (folder / f"{i}.jpg").hardlink_to(folder / "photo.jpg")
    shown = page(tmp_path)
    assert shown.tags.count("img") == 24
    assert "24 of the 30 pictures" in shown.text
    assert (tmp_path / "report.html").stat().st_size < 8e6


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(["total_loss", "loss_a", "lr", "d/coco/segm/AP", "d/coco/bbox/AP50"])
rows = st.dictionaries(names | st.text(max_size=8), st.floats() | json_values, max_size=4)
good_rows = st.builds(lambda row, i: {**row, "iteration": i}, rows, st.integers())
lines = st.one_of(
    st.text(), (rows | good_rows | json_values).map(json.dumps), st.just("[" * 100_000)
)


# A diverged loss, an integer too large for a float, and a name that is not valid Unicode.
EXTREME = [
    {"iteration": i, "total_loss": 1.7e308, "lr": 10**400, "loss$\\foo$\ud800": 1} for i in (1, 2)
]
info = st.dictionaries(st.sampled_from(["name", "started", "datasets", "versions"]), json_values)
results = st.fixed_dictionaries({"last": json_values, "best": st.builds(dict, results=rows)})


@settings(max_examples=40, deadline=None)
@example(lines=[json.dumps(row) for row in EXTREME], info={}, results={})
@given(lines=st.lists(lines, max_size=8), info=json_values | info, results=json_values | results)
def test_any_content_of_files_gives_a_page(tmp_path_factory, lines, info, results):
    run_dir = tmp_path_factory.mktemp("junk")
    (run_dir / "metrics.json").write_text("\n".join(lines), encoding="utf-8")
    (run_dir / "run.json").write_text(json.dumps(info))
    (run_dir / "results.json").write_text(json.dumps(results))
    page(run_dir)


def test_command(tmp_path):
    write_run(tmp_path)
    code = (
        f"import runpy, sys; sys.argv[0] = {str(TOOL)!r}\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print([m for m in sys.modules if m in ('torch', 'detectron2')])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(tmp_path / "report.html"), "[]"]


def test_page_outside_the_run_directory(tmp_path):
    run = write_run(tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in [run, *run.rglob("*")]}
    file = tmp_path / "new" / "mine.html"
    command = [sys.executable, TOOL, str(run), "--output", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}\n", "")
    assert "my_recipe" in Page(file.read_text(encoding="utf-8")).text
    assert {file: file.stat().st_mtime_ns for file in [run, *run.rglob("*")]} == before


def test_not_a_run_directory(tmp_path):
    command = [sys.executable, TOOL, str(tmp_path / "absent")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*absent: no such folder.*\n", done.stderr)
    with pytest.raises(UserError, match=r"no run\.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_page(tmp_path):
    write_run(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.html"):
        write_report(tmp_path)
    assert not list(tmp_path.glob(".report*"))


def write_analysis(run_dir: Path, classes: list[str], picture: str) -> dict:
    """Write an analysis of balloon_val."""
    best = {"score": 0.4, "f1": 0.66, "precision": 0.7, "recall": 0.6}
    row = {"objects": 9, "AP50": 51.2, "best": best, "curve": {"precision": [1.0] * 50 + [0] * 51}}
    n = len(classes) + 1
    image = {"image_id": 3, "f1": 0.25, "hits": 1, "false_alarms": 2, "missed": 4}
    task = {
        "best_score": best,
        "confusion_matrix": {
            "classes": classes,
            "min_score": 0.4,
            "matrix": [[100 * i + j for j in range(n)] for i in range(n)],
        },
        "pr_curves": [{"class": name, **row} for name in classes],
        "errors": {
            "AP50": 51.2,
            "causes": {"Bkg": {"meaning": "nothing there", "count": 17, "delta_AP": 2.5}},
        },
        "images": {"min_score": 0.4, "best": [], "worst": [image]},
    }
    content = {"tasks": {"bbox": task, "segm": task}, "pictures": {"3": picture}}
    (run_dir / "analysis").mkdir(exist_ok=True)
    (run_dir / "analysis" / "balloon_val.json").write_text(json.dumps(content))
    return content


def test_error_analysis_is_shown(tmp_path):
    run = write_run(tmp_path)
    Image.new("RGB", (64, 32)).save(run / "overlays" / "balloon_val" / "awful.jpg")
    write_analysis(run, ["ball<on>", "kite"], "overlays/balloon_val/photo.jpg")
    shown = page(run)
    for text in ("score threshold of 0.40", "nothing there", "17", "+2.5", "ball<on>", "201"):
        assert text in shown.text, text
    worst = "photo (worst 1: F1 0.25, 1 found, 2 false alarms, 4 missed)"
    assert shown.text.index(worst) < shown.text.index("awful")


def write_ranked(run: Path, dataset: str, count: int) -> None:
    """Write overlays and an analysis whose image k has the k-th lowest F1, like `analyze`."""
    write_analysis(run, ["a"], "")
    content = json.loads((run / "analysis" / "balloon_val.json").read_text())
    folder = run / "overlays" / dataset
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = [
        {"image_id": k, "f1": k / 100, "hits": k, "false_alarms": 2, "missed": 4}
        for k in range(1, count + 1)
    ]
    images = {"min_score": 0.4, "worst": rows[:20], "best": rows[::-1][:20]}
    content["tasks"]["segm"]["images"] = images
    content["pictures"] = {}
    for k in range(1, count + 1):
        Image.new("RGB", (8, 4)).save(folder / f"i{k:02d}.jpg")
        content["pictures"][str(k)] = f"overlays/{dataset}/i{k:02d}.jpg"
    (run / "analysis" / f"{dataset}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("count", "worst", "best"),
    [
        (13, [1, 2, 3, 4, 5, 6, 7], [13, 12, 11, 10, 9, 8]),
        (1, [1], []),
        (2, [1], [2]),
        (100, list(range(1, 13)), list(range(100, 88, -1))),
    ],
)
def test_worst_and_best_images_share_the_pictures(tmp_path, count, worst, best):
    run = write_run(tmp_path)
    write_ranked(run, "balloon_val", count)
    found = re.findall(r"i(\d+) \((worst|best) (\d+): F1", page(run).text)
    expected = [(f"{k:02d}", "worst", str(i)) for i, k in enumerate(worst, start=1)]
    expected += [(f"{k:02d}", "best", str(i)) for i, k in enumerate(best, start=1)]
    assert found == expected


def test_two_datasets_share_the_pictures(tmp_path):
    run = write_run(tmp_path)
    write_ranked(run, "other_val", 30)
    write_ranked(run, "balloon_val", 30)
    shown = page(run)
    assert shown.tags.count("img") == 24
    assert [shown.text.count(f"({kind} 6: F1") for kind in ("worst", "best")] == [2, 2]
    assert "(worst 7: F1" not in shown.text and "(best 7: F1" not in shown.text


def test_most_frequent_confusions_of_many_classes(tmp_path):
    run = write_run(tmp_path)
    write_analysis(run, [f"class {i}" for i in range(30)], "")
    assert "Most frequent confusions" in page(run).text


def test_ap_per_class(tmp_path):
    run = write_run(tmp_path)
    write_analysis(run, ["ball<on>", "a/b", "kite"], "")
    assert "coco AP" not in page(run).text
    results = json.loads((run / "results.json").read_text())
    results["last"]["results"] |= {
        "other/coco/segm/AP-kite": 11.1,
        "balloon_val/coco/bbox/AP-kite": 22.2,
        "balloon_val/coco/segm/AP-ball<on>": 33.3,
        "balloon_val/coco/segm/AP-a/b": None,
        "balloon_val/voc/segm/AP-kite": 44.4,
    }
    (run / "results.json").write_text(json.dumps(results))
    masks, boxes = page(run).text.split("objectscoco APAP50")[1:]
    assert "ball<on>933.351.2" in masks and "a/b9–51.2" in masks and "kite9–51.2" in masks
    assert "kite922.251.2" in boxes and "ball<on>9–51.2" in boxes


@pytest.mark.parametrize("key", ["tasks", "pictures"])
def test_damaged_analysis_is_reported(tmp_path, key):
    run = write_run(tmp_path)
    content = write_analysis(run, ["a"], "")
    file = run / "analysis" / "balloon_val.json"
    for text in ("", "[", json.dumps({**content, key: 5})):
        file.write_text(text)
        assert "analysis/balloon_val.json is damaged" in page(run).text


def write_overview(run_dir: Path, dataset: str = "balloon_train") -> dict:
    """Write the overview of a dataset."""
    content = {
        "images": 4000,
        "objects": 9000,
        "classes": [["ball<on>", 8990, 3999], ["kite", 10, 2]],
        "width": [320, 640, 800],
        "height": None,
        "object_sizes": {"small": 31, "medium": 41, "large": 59},
        "measured": 1000,
    }
    (run_dir / "overview").mkdir()
    (run_dir / "overview" / f"{dataset}.json").write_text(json.dumps(content))
    Image.new("RGB", (1792, 920), "blue").save(run_dir / "overview" / f"{dataset}.jpg")
    return content


def write_scaling(run_dir: Path) -> dict:
    """Write scaling.json like d2ext/config/lr_scaling.py."""
    content = {
        "reference_world_size": 8,
        "reference_batch_size": 16,
        "world_size": 1,
        "batch_size": 2,
        "rule": "linear",
        "scale": 0.125,
        "lr_factor": 0.125,
        "changes": [{"field": "optimizer.lr", "before": 0.02, "after": 0.02 / 8}],
        "warnings": ["sqrt suits <it> better"],
    }
    (run_dir / "scaling.json").write_text(json.dumps(content))
    return content


def test_data_and_scaling(tmp_path):
    run = write_run(tmp_path)
    assert not {"Data", "Scaling", "Warnings"} & set(page(run).text.splitlines())
    overview, scaling = write_overview(run), write_scaling(run)
    shown = page(run)
    for text in (
        *("balloon_train", "4000", "9000, 2.2 per image", "320 to 800 pixels, median 640"),
        *("31 small, 41 medium, 59 large (of 1000 images)", "ball<on>", "3999", "2 classes"),
        *("1 worker with 2 images per step; the recipe was tuned for 8 workers with 16", "0.0025"),
        *("multiplied by 0.125 (rule: linear), and iterations divided by 0.125", "suits <it>"),
    ):
        assert text in shown.text, text
    assert shown.tags.count("img") == 2
    (run / "overview" / "balloon_train.jpg").write_bytes(b"\xff\xd8\xff")
    assert page(run).tags.count("img") == 1
    for file, content in (("overview/balloon_train.json", overview), ("scaling.json", scaling)):
        for text in ("", "[", json.dumps({**content, list(content)[-1]: {"a": None}})):
            (run / file).write_text(text)
            assert f"{file} is damaged" in page(run).text


def test_unscaled_batch_size(tmp_path):
    run = write_run(tmp_path)
    content = {**write_scaling(run), "scale": 1, "changes": [], "warnings": []}
    (run / "scaling.json").write_text(json.dumps(content))
    assert "The batch size is the same, so nothing was changed" in page(run).text
    (run / "scaling.json").write_text(json.dumps({**content, "scale": 2}))
    assert "already scaled for this batch size" in page(run).text


def test_warnings_in_the_log_are_shown(tmp_path):
    run = write_run(tmp_path)
    warning = "2026-03-04 10:00:{0:02d} W d2ext.a: odd <thing> {0}\nits second line"
    lines = [warning.format(i) for i in range(60)]
    lines += ["2026-03-04 10:01:00 I d2ext.a: no harm"]
    lines += ["2026-03-04 10:01:01 W d2ext.a: odd <thing> 20"] * 3
    lines += ["2026-03-04 10:01:02 E d2ext.b: broken"]
    (run / "log.txt").write_bytes("\n".join(lines).encode() + b"\n\xff")
    text = page(run).text
    assert "50 in log.txt" in text and "error: broken" in text
    assert "no harm" not in text and "second line" not in text
    assert "odd <thing> 11" in text and "odd <thing> 10 " not in text
    assert "odd <thing> 20 (4 times, last 2026-03-04 10:01:01)" in text


def test_page_of_a_running_training_reloads_itself(tmp_path):
    run = write_run(tmp_path)
    refresh = ("http-equiv", "refresh")
    assert refresh not in page(run).attributes
    info = json.loads((run / "run.json").read_text())
    del info["train_seconds"]
    (run / "run.json").write_text(json.dumps(info))
    shown = page(run)
    assert refresh in shown.attributes and "Training is in progress; this page" in shown.text
    for file in run.iterdir():  # killed yesterday
        os.utime(file, (0, time.time() - 86400))
    assert refresh not in page(run).attributes
    (run / "run.json").write_text(json.dumps({**info, "max_iter": None}))  # an evaluation
    assert refresh not in page(run).attributes


@pytest.mark.parametrize(("seconds", "patience"), [(0.5, 600), (10, 5 * 60 * 10)])
def test_time_until_a_training_may_have_ended(tmp_path, seconds, patience):
    run = write_run(tmp_path)
    info = json.loads((run / "run.json").read_text())
    del info["train_seconds"]
    (run / "run.json").write_text(json.dumps(info))
    rows = [{"iteration": i, "total_loss": 1, "time": seconds} for i in range(9, 100, 10)]
    for i in (1, 7, 9):  # evaluations after 20, 80 and 100 iterations
        rows[i]["balloon_val/coco/segm/AP"] = 50.0
    write_metrics(run, rows)
    shown = page(run)
    assert ("data-patience", str(patience)) in shown.attributes
    (since,) = [value for name, value in shown.attributes if name == "data-since"]
    assert f"written {since}" in shown.text
    (written,) = [value for name, value in shown.attributes if name == "data-written"]
    assert abs(time.time() - int(written)) < 60


def test_command_to_repeat_a_training(tmp_path):
    run = write_run(tmp_path)
    assert "To repeat this run" not in page(run).text
    info = json.loads((run / "run.json").read_text())
    info["reproduce"] = "torchrun tools/train_net.py <all>"
    (run / "run.json").write_text(json.dumps(info))
    assert "torchrun tools/train_net.py <all>" in page(run).text


def test_evaluation_shows_only_its_command(tmp_path):
    run = write_run(tmp_path)
    info = json.loads((run / "run.json").read_text())
    info |= {"max_iter": None, "reproduce": "other", "command": "python x --eval-only"}
    (run / "run.json").write_text(json.dumps(info))
    write_metrics(run, [])
    shown = page(run)
    assert shown.attributes.count(("class", "command")) == 1
    assert "python x --eval-only" in shown.text
