"""Test the command line of tools/evaluate.py."""

import json
import math
import multiprocessing
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from d2ext.errors import UserError
from d2ext.evaluation.offline import evaluate_files
from tests.evaluation.edge_cases import corners, official, rle

SIZE = {"height": 120, "width": 160}


def _content() -> dict:
    boxes = [[10, 10, 40, 40], [60, 20, 20, 20], [90, 70, 60, 40]]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", **SIZE} for i in (7, 8)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "ox"}],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": 3 + 2 * (i % 2),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": corners(box),
            }
            for i, (image, box) in enumerate(
                [(7, boxes[0]), (7, boxes[1]), (8, boxes[2]), (8, boxes[0])], start=1
            )
        ],
    }


def _results() -> list[dict]:
    """Return three detections: exact, slightly off, and a false positive."""
    rows = [(7, 5, [10, 10, 40, 40], 0.9), (7, 3, [62, 20, 20, 20], 0.8), (8, 3, [5, 5, 9, 9], 0.7)]
    names = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(names, row, strict=True)) for row in rows]


@pytest.fixture
def evaluate(tmp_path, run_tool):
    """Return a function that writes both input files and runs the tool on them."""

    def run(results: object, *args: object, content: object = None):
        ground_truth = tmp_path / "ground_truth.json"
        detections = tmp_path / "detections.json"
        ground_truth.write_text(json.dumps(content or _content()))
        text = results if isinstance(results, str) else json.dumps(results)
        detections.write_text(text)
        return run_tool("evaluate", detections, "--dataset", ground_truth, *args)

    return run


@pytest.mark.parametrize("backend", ["auto", "hotcoco", "pycocotools"])
def test_results_are_written_in_full_precision(tmp_path, evaluate, backend):
    results = [r | {"segmentation": rle(r["bbox"])} for r in _results()]
    out = tmp_path / "out" / "results.json"
    done = evaluate(results, "--out", out, "--backend", backend)
    assert done.status == 0, done.stderr
    assert "2 images, 4 objects of 3 classes, 3 detections" in done.stdout
    assert "COCO bbox" in done.stdout and "Average Precision" in done.stdout
    numbers = json.loads(out.read_text(), parse_constant=pytest.fail)  # JSON does not allow NaN
    for task in ("bbox", "segm"):
        for name, value in official(_content(), results, task).items():
            expected = None if math.isnan(value) else pytest.approx(value, abs=1e-9)
            assert numbers[f"coco/{task}/{name}"] == expected
    assert not any("cat" in key for key in numbers)


def test_per_class_adds_one_ap_per_class(tmp_path, evaluate):
    done = evaluate(_results(), "--per-class", "--out", tmp_path / "out.json")
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["coco/bbox/AP-dog"] == pytest.approx(100 * 51 / 101)
    assert numbers["coco/bbox/AP-ox"] is None
    assert "dog" in done.stdout


def test_several_metrics_are_computed_at_once(tmp_path, evaluate):
    metrics = ["coco", "voc", "open_images", "lvis"]
    done = evaluate(_results(), "--metrics", *metrics, "--out", tmp_path / "out.json")
    assert done.status == 0, done.stderr
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert {key.split("/")[0] for key in numbers} == {*metrics, "intervals"}


def test_analyses_are_written_next_to_the_results(tmp_path, evaluate):
    results = [r | {"segmentation": rle(r["bbox"])} for r in _results()]
    flags = ("--confusion-matrix", "--pr-curves", "--errors")
    done = evaluate(results, *flags, "--out", tmp_path / "out.json")
    assert done.status == 0, done.stderr
    content = json.loads((tmp_path / "out_analysis.json").read_text(), parse_constant=pytest.fail)
    assert content.keys() == {"bbox", "segm"}
    names = {"best_score", "confusion_matrix", "pr_curves", "errors", "images"}
    assert content["bbox"].keys() == names
    assert content["bbox"]["confusion_matrix"]["matrix"][0][0] == 1
    for text in ("background", "highest F1", "TIDE", "lowest F1"):
        assert text in done.stdout


def test_results_may_have_only_masks_or_be_empty(tmp_path, evaluate):
    masks = [{**r, "segmentation": rle(r["bbox"])} for r in _results()]
    for mask in masks:
        del mask["bbox"]
    out = tmp_path / "out.json"
    assert evaluate(masks, "--out", out).status == 0
    assert json.loads(out.read_text())["coco/bbox/AP50"] > 0
    assert evaluate([], "--out", out).status == 0
    assert json.loads(out.read_text())["coco/segm/AP"] == 0


def _large(content: dict) -> dict:
    """Return a file's content with enough text for a second process to read the file."""
    return {**content, "info": {"description": "d" * 6_000_000}}


@pytest.fixture
def masked() -> tuple[dict, list[dict]]:
    """Return annotations with polygons, two polygons, a crowd and no mask, and results for them."""
    content = _content()
    two, crowd, bare = content["annotations"][1:]
    two["segmentation"] = corners([60, 20, 8, 20]) + corners([70.5, 25.3, 9.1, 12.7])
    crowd |= {"iscrowd": 1, "segmentation": rle(crowd["bbox"])}
    del bare["segmentation"]
    return content, [r | {"segmentation": rle(r["bbox"])} for r in _results()]


def test_large_files_give_the_same_results_on_any_number_of_cores(tmp_path, evaluate, masked):
    content, results = masked
    cores, found = os.sched_getaffinity(0), []
    for used in (cores, {min(cores)}):
        os.sched_setaffinity(0, used)
        try:
            done = evaluate(results, "--out", tmp_path / "out.json", content=_large(content))
        finally:
            os.sched_setaffinity(0, cores)
        assert done.status == 0, done.stderr
        found.append(json.loads((tmp_path / "out.json").read_text()))
    assert found[0] == found[1]
    content["annotations"][3]["segmentation"] = corners(content["annotations"][3]["bbox"])
    for name, value in official(content, results, "segm").items():
        expected = None if math.isnan(value) else pytest.approx(value, abs=1e-9)
        assert found[0][f"coco/segm/{name}"] == expected


def test_errors_of_large_files_are_one_line(evaluate, masked):
    content, results = masked
    content["annotations"][1]["image_id"] = 99
    done = evaluate(results, content=_large(content))
    assert done.status == 2 and done.stderr.count("\n") == 1
    assert "annotations[1] refers to an unknown image, 99" in done.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="needs a second core")
@pytest.mark.parametrize("first", ["masks", "no masks", "long masks and keypoints"])
def test_objects_without_area_are_logged_once(repo, tmp_path, masked, first):
    """Whichever process reads the large file."""
    content, results = masked
    content["annotations"].append({**content["annotations"][0], "id": 99, "bbox": [1, 1, 0, 5]})
    if first == "no masks":  # but the text looks as if there were
        results = [{"segmentation": None, **r} for r in _results()]
    if first == "long masks and keypoints":  # beyond the beginning of the file
        runs = [2, 1] * 6_000
        results[0]["segmentation"] = {"size": [120, 160], "counts": [*runs, 1_200]}
        for entry in (*results, *content["annotations"]):
            entry["keypoints"] = [5, 5, 2] * 17
    annotations, found = tmp_path / "a.json", tmp_path / "b.json"
    annotations.write_text(json.dumps(_large(content)))
    found.write_text(json.dumps(results))
    # As a process, because the output of the reader counts, too.
    command = [sys.executable, str(repo / "tools" / "evaluate.py"), str(found), "--resamples", "0"]
    command += ["--dataset", str(annotations)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("1 objects have a box without an area") == 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="needs a second core")
def test_errors_of_results_do_not_wait_for_the_reader(tmp_path, masked):
    content, results = masked
    content["annotations"] *= 60_000  # takes much longer to read than the results
    annotations, found = tmp_path / "a.json", tmp_path / "b.json"
    annotations.write_text(json.dumps(content))
    found.write_text(json.dumps([*results, {"image_id": 1, "segmentation": None}]))
    start = time.monotonic()
    with pytest.raises(UserError, match="category_id"):
        evaluate_files([found], annotations, ["coco"])
    seconds = time.monotonic() - start
    assert not multiprocessing.active_children()
    start = time.monotonic()
    json.loads(annotations.read_bytes())
    assert seconds < time.monotonic() - start


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="needs a second core")
def test_a_reader_that_is_killed_is_an_error(evaluate, masked):
    content, results = masked
    content["annotations"] *= 10_000  # takes longer to read than the results

    def kill() -> None:
        while not (readers := multiprocessing.active_children()):
            time.sleep(0.001)
        readers[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    done = evaluate(results, content=content)
    killer.join()
    assert done.status == 2 and done.stderr.count("\n") == 1
    assert "ground_truth.json was killed, most likely because memory ran out" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="needs a second core")
def test_the_reader_does_not_outlive_the_command(repo: Path, tmp_path, masked):
    content, results = masked
    content["annotations"] *= 30_000  # takes longer to read than the process to be killed
    annotations, found = tmp_path / "a.json", tmp_path / "b.json"
    annotations.write_text(json.dumps(content))
    found.write_text(json.dumps(results))
    command = [repo / "tools" / "evaluate.py", found, "--dataset", annotations]
    with subprocess.Popen([sys.executable, *map(str, command)]) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (readers := children.read_text().split()):
            time.sleep(0.001)
        time.sleep(0.1)
        process.kill()
    status, deadline = Path(f"/proc/{readers[0]}/stat"), time.monotonic() + 20
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the reader still runs"
        time.sleep(0.01)


@pytest.mark.parametrize("left", [8, 5])
def test_missing_runs_at_the_end_of_a_mask_are_background(tmp_path, evaluate, left):
    """By itself, pycocotools would hang. An even or odd number of runs is left."""
    runs = [10 * 120 + 10] + [40, 80] * 20
    truncated = [r | {"segmentation": _rle(runs[:left])} for r in _results()]
    numbers = []
    for backend in ("hotcoco", "pycocotools"):
        done = evaluate(truncated, "--backend", backend, "--out", tmp_path / "out.json")
        assert done.status == 0, done.stderr
        numbers.append(json.loads((tmp_path / "out.json").read_text()))
    ends = [of.pop("intervals") for of in numbers]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-9) and ends[0].keys() == ends[1].keys()


@pytest.mark.parametrize("counts", ["", "zz0", "o", "é1"])
def test_both_backends_refuse_damaged_masks(evaluate, counts):
    results = [r | {"segmentation": {**MASK, "counts": counts}} for r in _results()]
    messages = []
    for backend in ("hotcoco", "pycocotools"):
        done = evaluate(results, "--backend", backend)
        assert done.status == 2 and "entry 0: its counts are damaged" in done.stderr
        messages.append(done.stderr)
    assert messages[0] == messages[1]


def test_detections_without_a_valid_score_are_dropped(evaluate):
    wrong = [{**_results()[0], "score": value, "bbox": [1, 2, 3, 4]} for value in (math.nan, None)]
    done = evaluate(_results() + wrong)
    assert done.status == 0 and "2 of 5 detections dropped" in done.stdout


def _changed(**values: object) -> list[dict]:
    return [*_results()[:-1], {**_results()[-1], **values}]


def _without(name: str) -> list[dict]:
    return [{k: v for k, v in r.items() if k != name} for r in _results()]


def _xyxy() -> list[dict]:
    results = _results() + _changed(bbox=[92, 70, 60, 40])[2:]
    for result in results:
        x, y, w, h = result["bbox"]
        result["bbox"] = [x, y, x + w, y + h]
    return results


MASK = rle([10, 10, 40, 40])


def _masked(*boxes: list) -> list[dict]:
    """Return entries that differ only in their masks."""
    return [_results()[0] | {"segmentation": rle(box)} for box in boxes]


def _places() -> list[dict]:
    """Return results with category indices (0 and 1) instead of category ids (3 and 5)."""
    return [r | {"category_id": r["category_id"] // 5} for r in _results()]


@pytest.mark.parametrize(
    "results, message",
    [
        (json.dumps(_results())[:-30], "truncated"),
        ("", "truncated"),
        ("no json", "not JSON"),
        (json.dumps(_content()), "not a list of COCO results"),
        (_without("score"), "required field score"),
        (_without("bbox"), "entry 0 has neither bbox, segmentation nor keypoints"),
        ([*_results(), *_without("bbox")], "entry 3 has no bbox, but others do"),
        (_changed(image_id=99), "image_id 99 of entry 2 (1 of 3 entries"),
        (_changed(image_id="7"), "image_id '7' of entry 2"),
        (
            _changed(image_id="7"),
            "ids are strings here and numbers there; write them as the dataset",
        ),
        (_changed(image_id=10**30), "of entry 2"),
        (_changed(category_id=4), "category_id 4 of entry 2"),
        (_changed(category_id=2), "give the predictions for this dataset"),
        (
            _places(),
            "indices, from 0, into the dataset's 3 ids, which have gaps; write the ids (0 is",
        ),
        (_places(), "(0 is 3, 2 is 9)"),
        (_changed(bbox=[1, 2, 3]), "[2].bbox"),
        (_changed(bbox=[1, 2, -3, 4]), "negative width"),
        (_changed(score="high"), "[2].score"),
        (_changed(segmentation=MASK), "entry 0 has no segmentation, but others do"),
        ([*_results(), _results()[1]], "the entries 1 and 3 are the same"),
        (_masked([9, 9, 40, 40], [5, 5, 9, 9], [9, 9, 40, 40]), "the entries 0 and 2 are the same"),
        (_xyxy(), "boxes seem to be [x0, y0, x1, y1]"),
        ([r | {"segmentation": rle([1, 1, 9, 9], 50, 50)} for r in _results()], "[50, 50]"),
        ([r | {"segmentation": {**MASK, "counts": "A"}} for r in _results()], "entry 0"),
        ([r | {"segmentation": {**MASK, "counts": "T_f0"}} for r in _results()], "entry 0"),
        ([r | {"segmentation": corners([1, 1, 9, 9])} for r in _results()], "[0].segmentation"),
    ],
)
def test_invalid_predictions_are_a_one_line_error(evaluate, results, message):
    done = evaluate(results)
    assert done.status == 2
    assert done.stderr.count("\n") == 1 and "detections.json" in done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ({**MASK, "counts": "A"}, "the RLE of entry 4999: its counts are damaged"),
        ({**MASK, "counts": [1, -2, 3]}, "the RLE of entry 4999 is malformed"),
        ({"size": [50, 50], "counts": MASK["counts"]}, "entry 4999"),
        (None, "entry 4999 has no segmentation, but others do"),
    ],
)
def test_errors_name_entries_of_long_files(evaluate, segmentation, message):
    results = [_results()[0] | {"score": 1 / (i + 1), "segmentation": MASK} for i in range(5000)]
    results[-1]["segmentation"] = segmentation
    done = evaluate(results)
    assert done.status == 2 and message in done.stderr


def _photos(count: int) -> tuple[dict, list[dict]]:
    """Return photos with one object each, which is found ever less precisely."""
    images = [{"id": i, "file_name": f"{i}.jpg", **SIZE} for i in range(count)]
    objects, found = [], []
    for i in range(count):
        objects.append({"id": i + 1, "image_id": i, "category_id": 3, "bbox": [10, 10, 40, 40]})
        box = [10 + i % 20, 10, 40, 40]
        found.append({"image_id": i, "category_id": 3, "bbox": box, "score": 1 - i / 2 / count})
    return {**_content(), "images": images, "annotations": objects}, found


def test_intervals_of_all_results(tmp_path, evaluate):
    content, found = _photos(30)
    out = tmp_path / "out.json"
    done = evaluate(found, "--per-class", "--out", out, content=content)
    assert done.status == 0, done.stderr
    numbers = json.loads(out.read_text(), parse_constant=pytest.fail)
    ends = numbers.pop("intervals")
    assert ends.keys() == numbers.keys()
    for key, value in numbers.items():
        if value is None:
            assert ends[key] is None
        else:
            assert 0 <= ends[key][0] <= value <= ends[key][1] <= 100
    low, high = ends["coco/bbox/AP"]
    assert 5 < high - low < 50
    shown = f"coco/bbox/AP {numbers['coco/bbox/AP']:.1f} [{low:.1f}, {high:.1f}]"
    assert shown in " ".join(done.stdout.split()) and "from 1000 draws" in done.stdout
    evaluate(found, "--per-class", "--out", out, content=content)
    assert json.loads(out.read_text())["intervals"] == ends  # the same draws each time


def test_resamples(tmp_path, evaluate):
    content, found = _photos(30)
    out = tmp_path / "out.json"
    assert "from 100 draws" in evaluate(found, "--resamples", 100, content=content).stdout
    done = evaluate(found, "--resamples", 0, "--out", out, content=content)
    assert done.status == 0 and "interval" not in done.stdout
    assert "intervals" not in json.loads(out.read_text())
    for flags in (["--intervals"], ["--against", tmp_path / "detections.json"]):
        done = evaluate(found, "--resamples", 0, *flags, content=content)
        assert done.status == 2 and f"{flags[0]} needs draws" in done.stderr
    for few in ("-1", "1", "99"):
        done = evaluate(found, "--resamples", few, content=content)
        assert done.status == 2
        assert f"'{few}' is neither 0 nor an integer of at least 100" in done.stderr


def test_more_than_1000_images_have_intervals_on_request(tmp_path, evaluate):
    out = tmp_path / "out.json"
    for count, flags in ((1000, []), (1001, []), (1001, ["--intervals"])):
        content, found = _photos(count)
        done = evaluate(found, "--resamples", 100, "--out", out, *flags, content=content)
        assert done.status == 0, done.stderr
        wanted = count == 1000 or bool(flags)
        assert ("intervals" in json.loads(out.read_text())) is wanted
        assert ("more than 1000 images; --intervals computes them" in done.stdout) is not wanted


def test_intervals_of_one_image_or_no_detections(tmp_path, evaluate):
    content, found = _photos(1)
    out, others = tmp_path / "out.json", tmp_path / "others.json"
    others.write_text("[]")
    for results in ([], found):
        done = evaluate(results, "--out", out, "--against", others, content=content)
        assert done.status == 0, done.stderr
        numbers = json.loads(out.read_text(), parse_constant=pytest.fail)
        low, high = numbers["intervals"]["coco/bbox/AP"]
        assert low <= numbers["coco/bbox/AP"] <= high
        words = f" by {numbers['coco/bbox/AP']:.1f} AP [-100.0, 100.0]: a single photo says nothing"
        assert words in done.stdout


def test_no_images_have_no_intervals(tmp_path, evaluate):
    content, _ = _photos(0)
    out, others = tmp_path / "out.json", tmp_path / "others.json"
    others.write_text("[]")
    done = evaluate([], "--out", out, "--intervals", "--against", others, content=content)
    assert done.status == 0 and f"has no images, so {others} is not compared" in done.stdout
    assert set(json.loads(out.read_text()).values()) == {None}


def test_against_worse_predictions(tmp_path, evaluate):
    """Two thirds of the scores are halved, as if another model had sorted them badly."""
    content, found = _photos(30)
    halved = [r | {"score": r["score"] / 2} if r["image_id"] % 3 else r for r in found]
    wrong = [r | {"bbox": [80, 60, 40, 40], "score": r["score"] * 0.9} for r in found]
    others, out = tmp_path / "others.json", tmp_path / "out.json"
    others.write_text(json.dumps(halved + wrong))
    flags = ["--against", others, "--out", out]
    done = evaluate(found, *flags, content=content)
    assert done.status == 0, done.stderr
    row = json.loads(out.read_text())["against"]["coco/bbox/AP"]
    low, high = row["interval"]
    assert 0 < low <= row["difference"] <= high
    ends = f"{row['difference']:.1f} AP [{low:.1f}, {high:.1f}] on these 30 photos"
    name = tmp_path / "detections.json"
    assert f"coco/bbox/AP: {name} is better than {others} by {ends}" in done.stdout
    assert "The choice of photos does not explain the difference" in done.stdout
    assert "| marks no difference" in done.stdout
    evaluate(halved + wrong, "--out", others, content=content)
    assert row["difference"] == pytest.approx(
        json.loads(out.read_text())["coco/bbox/AP"] - json.loads(others.read_text())["coco/bbox/AP"]
    )
    others.write_text(json.dumps(found))
    done = evaluate(halved + wrong, *flags, content=content)
    assert f"is worse than {others} by {ends}" in done.stdout


def test_against_the_same_predictions(tmp_path, evaluate):
    content, found = _photos(30)
    flags = ["--against", tmp_path / "detections.json", "--out", tmp_path / "out.json"]
    done = evaluate(found, *flags, content=content)
    assert done.status == 0, done.stderr
    assert "do not differ: 0.0 AP [0.0, 0.0] on these 30 photos" in done.stdout
    rows = json.loads((tmp_path / "out.json").read_text())["against"]
    assert rows["coco/bbox/AP"] == {"difference": 0.0, "interval": [0.0, 0.0]}


def test_against_predictions_for_other_images(tmp_path, evaluate):
    content, found = _photos(3)
    others, out = tmp_path / "others.json", tmp_path / "out.json"
    others.write_text(json.dumps([r | {"image_id": r["image_id"] + 1} for r in found]))
    done = evaluate(found, "--against", others, "--out", out, content=content)
    assert done.status == 2 and f"error: {others}" in done.stderr and "3" in done.stderr
    assert done.stderr.count("\n") == 1 and not out.exists()
    assert "coco" not in done.stdout  # nothing has been evaluated yet
    done = evaluate(found, "--against", others, "--out", others, content=content)
    assert done.status == 2 and "--out would replace the input" in done.stderr


def _annotation(**values: object) -> dict:
    """Return the annotations with the second one changed."""
    annotations = _content()["annotations"]
    annotations[1] |= values
    return {"annotations": annotations}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"images": None}, "images"),
        ({"annotations": [{"image_id": 7}]}, "annotations"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "categories"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "categories"),
        ({"categories": [{"id": 3, "name": "cat"}]}, "unknown category, 5"),
        ({"images": [{"id": 7, "file_name": "", **SIZE}]}, "unknown image, 8"),
        ({"images": [{"id": 7, "file_name": "", **SIZE}] * 2}, "twice"),
        (
            {"images": [{"id": i, "height": 0, "width": 9} for i in (7, 8)]},
            "height 0 of the image 7 is not a positive integer",
        ),
        (_annotation(bbox=[1, 2, math.nan, 4]), "annotations[1] has the bbox [1.0, 2.0, nan, 4.0]"),
        (_annotation(bbox=[1, 2, 3, -4]), "annotations[1]"),
        (_annotation(bbox=[1, 2, 1e308, 1e308]), "annotations[1]"),
        (_annotation(area=math.inf), "annotations[1] has the bbox"),
        (_annotation(area=-1), "no negative width, height or area"),
        (
            _annotation(image_id="7"),
            "unknown image, '7': `images` lacks this id (a string does not match a number)",
        ),
        (_annotation(iscrowd=2), "annotations[1].iscrowd"),
    ],
)
def test_invalid_annotations_are_a_one_line_error(evaluate, wrong, message):
    done = evaluate(_results(), content=_content() | wrong)
    assert done.status == 2
    assert (
        done.stderr.count("\n") == 1
        and "ground_truth.json" in done.stderr
        and message in done.stderr
    )


def test_category_ids_that_start_at_0_are_an_error(evaluate):
    content = _content()
    for c in content["categories"]:
        c["id"] = {3: 1, 5: 2, 9: 3}[c["id"]]
    for a in content["annotations"]:
        a["category_id"] = {3: 1, 5: 2}[a["category_id"]]
    done = evaluate(_places(), content=content)
    assert done.status == 2 and "start at 0, those of the dataset at 1; add 1" in done.stderr


def test_xyxy_boxes_are_recognized_even_if_some_exceed_the_image(evaluate):
    """The boxes are off by up to 4 pixels, also across image borders, as those of a detector."""
    boxes = [[x, y, w, h] for x in (0, 50, 110) for y in (0, 60) for w, h in ((50, 60), (40, 50))]
    content = _content()
    template = content["annotations"][0]
    content["annotations"] = [template | {"id": i, "bbox": box} for i, box in enumerate(boxes)]
    moves = [-4, 3, -2, 4, 1]
    results = [
        _results()[0] | {"bbox": [x + move, y - move, x + w + move, y + h - move], "category_id": 3}
        for (x, y, w, h), move in zip(boxes, moves * 3, strict=False)
    ]
    outside = [min(r["bbox"]) < -1 or r["bbox"][2] > 161 for r in results]
    assert sum(outside) > 0.2 * len(results)
    done = evaluate(results, content=content)
    assert done.status == 2 and "boxes seem to be [x0, y0, x1, y1]" in done.stderr


def test_floats_for_integers_and_missing_sizes_are_accepted(tmp_path, evaluate):
    """Other programs write 7.0 for 7, and boxes can be evaluated without image sizes."""
    expected, numbers = tmp_path / "expected.json", tmp_path / "numbers.json"
    assert evaluate(_results(), "--out", expected).status == 0
    content = _content()
    for image in content["images"]:
        image |= {"id": float(image["id"]), "height": 120.0, "width": 160.0}
    for annotation in content["annotations"]:
        annotation |= {"image_id": float(annotation["image_id"])}
    results = [
        r | {"image_id": float(r["image_id"]), "category_id": float(r["category_id"])}
        for r in _results()
    ]
    done = evaluate(results, "--out", numbers, content=content)
    assert done.status == 0, done.stderr
    assert numbers.read_text() == expected.read_text()
    for image in content["images"]:
        del image["height"], image["width"]
    for backend in ("hotcoco", "pycocotools"):
        numbers.unlink()
        done = evaluate(results, "--out", numbers, "--backend", backend, content=content)
        assert done.status == 0, done.stderr
        found, wanted = (json.loads(file.read_text()) for file in (numbers, expected))
        assert found.pop("intervals").keys() == wanted.pop("intervals").keys()
        assert found == pytest.approx(wanted, abs=1e-9)
    done = evaluate([r | {"segmentation": MASK} for r in results], content=content)
    assert done.status == 2 and "the image 7.0 has no height and width" in done.stderr


@pytest.mark.filterwarnings("error")
def test_a_box_that_overflows_is_dropped(evaluate):
    wrong = [_results()[0] | {"bbox": box} for box in ([1, 1, 1e308, 1e308], [1e308] * 4)]
    done = evaluate(_results() + wrong)
    assert done.status == 0 and "2 of 5 detections dropped" in done.stdout


def test_objects_without_an_area_are_counted(evaluate):
    done = evaluate(_results(), content=_content() | _annotation(bbox=[1, 2, 0, 4]))
    assert done.status == 0
    assert "1 objects have a box without an area and always count as missed" in done.stdout


def test_out_is_checked_first_and_never_replaces_an_input(tmp_path, evaluate):
    (tmp_path / "link.json").symlink_to(tmp_path / "detections.json")
    (tmp_path / "made" / "o_analysis.json").mkdir(parents=True)
    (tmp_path / "made" / "o.json").write_text("old")
    for out, flags, message in (
        ("ground_truth.json", (), "--out would replace"),
        ("detections.json", (), "--out would replace"),
        ("link.json", (), "--out would replace"),
        ("made", (), "is a folder"),
        ("made/o.json", ("--errors",), "o_analysis.json is a folder"),
        ("detections.json/o.json", (), "cannot write"),
    ):
        done = evaluate(_results(), "--out", tmp_path / out, *flags)
        assert done.status == 2 and message in done.stderr and done.stdout == "", out
        assert json.loads((tmp_path / "ground_truth.json").read_text()) == _content()
        assert json.loads((tmp_path / "detections.json").read_text()) == _results()
    assert (tmp_path / "made" / "o.json").read_text() == "old"


def test_pr_curves_require_out(evaluate):
    done = evaluate(_results(), "--pr-curves")
    assert done.status == 2 and "--pr-curves needs --out FILE" in done.stderr


def test_output_that_cannot_be_printed_ends_cleanly(repo: Path, tmp_path):
    """Try a closed pipe, a full disk, and an encoding that lacks letters of a class name."""
    files = _files(tmp_path)
    content = _content()
    content["categories"][0]["name"] = "человек"
    (tmp_path / "ground_truth.json").write_text(json.dumps(content))
    command = shlex.join(map(str, [sys.executable, repo / "tools" / "evaluate.py", *files]))

    def shell(line: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, env=os.environ | variables
        )

    many = f"{command} --per-class --metrics coco voc open_images"
    closed = shell(f"{many} | true; exit ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED="1")
    assert closed.returncode == 141 and closed.stderr == ""
    full = shell(f"{many} > /dev/full")
    assert full.returncode == 2
    (line,) = full.stderr.splitlines()
    assert line.startswith("error: cannot write a file: No space left on device; free space")
    latin = shell(many, PYTHONIOENCODING="latin-1")
    assert latin.returncode == 0 and latin.stderr == "" and r"\u0447\u0435" in latin.stdout


def test_missing_files_are_errors(tmp_path, run_tool, evaluate):
    done = run_tool("evaluate", tmp_path / "none.json", "--dataset", tmp_path / "none.json")
    assert done.status == 2 and "none.json" in done.stderr
    done = evaluate(_results(), "--out", tmp_path / "detections.json" / "out.json")
    assert done.status == 2 and "cannot write" in done.stderr


def test_area_and_box_are_computed_if_missing(tmp_path, evaluate):
    content = _content()
    for annotation in content["annotations"]:
        del annotation["area"], annotation["bbox"], annotation["iscrowd"]
    expected, numbers = tmp_path / "expected.json", tmp_path / "numbers.json"
    assert evaluate(_results(), "--out", expected).status == 0
    assert evaluate(_results(), "--out", numbers, content=content).status == 0
    assert json.loads(numbers.read_text()) == json.loads(expected.read_text())


def _rle(runs: list[int]) -> dict:
    """Return an RLE with compressed counts, as pycocotools writes it."""
    text = ""
    for i, run in enumerate(runs):
        value = run - (runs[i - 2] if i > 2 else 0)
        while True:
            digit, value = value & 0x1F, value >> 5
            more = value != (-1 if digit & 0x10 else 0)
            text += chr(48 + digit + 0x20 * more)
            if not more:
                break
    return {"size": [120, 160], "counts": text}


def _files(folder: Path) -> list:
    """Write both files and return the first arguments of the command."""
    (folder / "ground_truth.json").write_text(json.dumps(_content()))
    (folder / "detections.json").write_text(json.dumps(_results()))
    return [folder / "detections.json", "--dataset", folder / "ground_truth.json"]


def test_without_hotcoco_pycocotools_is_used(repo: Path, tmp_path):
    code = (
        "import importlib.machinery, runpy, sys; sys.argv = sys.argv[1:]\n"
        "class Finder(importlib.machinery.PathFinder):\n"
        "    def find_spec(name, *args):\n"
        "        if name != 'hotcoco':\n"
        "            return importlib.machinery.PathFinder.find_spec(name, *args)\n"
        "sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    files = _files(tmp_path)

    def run(*flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, repo / "tools" / "evaluate.py", *files, *flags]
        return subprocess.run(command, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "hotcoco is not installed" in done.stderr and "COCO bbox (pycocotools)" in done.stdout
    for flags in (("--metrics", "lvis"), ("--errors",), ("--backend", "hotcoco")):
        done = run(*flags)
        assert done.returncode == 2 and done.stdout == ""
        assert "pip install hotcoco" in done.stderr and done.stderr.count("\n") == 1


def test_it_runs_without_torch(repo: Path, tmp_path):
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as e:\n    assert not e.code, e.code\n"
        "assert not {'torch', 'detectron2', 'cv2'} & set(sys.modules)"
    )
    files = _files(tmp_path)
    flags = ["--errors", "--pr-curves", "--confusion-matrix", "--out", tmp_path / "out.json"]
    flags += ["--metrics", "coco", "voc", "open_images", "lvis"]
    tool = repo / "tools" / "evaluate.py"
    done = subprocess.run(
        [sys.executable, "-c", code, tool, *files, *flags], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_more_objects_than_max_detections_are_a_warning(tmp_path, evaluate):
    """The warning names the image and the flag; with the flag, all detections count."""
    content = _content()
    template = content["annotations"][0]
    boxes = [[x, y, 8, 8] for x in range(0, 150, 10) for y in range(0, 110, 10)]
    content["annotations"] = [template | {"id": i, "bbox": b} for i, b in enumerate(boxes, 1)]
    category, image = template["category_id"], template["image_id"]
    results = [
        {"image_id": image, "category_id": category, "bbox": box, "score": 1 - i / 1000}
        for i, box in enumerate(boxes)
    ]
    done = evaluate(results, "--out", tmp_path / "few.json", content=content)
    assert done.status == 0
    assert f"image {image} has 165 of" in done.stdout and "--max-detections 165" in done.stdout
    few = json.loads((tmp_path / "few.json").read_text())
    assert few["coco/bbox/AR100"] == pytest.approx(100 * 100 / 165)
    done = evaluate(
        results, "--max-detections", "165", "--out", tmp_path / "all.json", content=content
    )
    assert done.status == 0 and "--max-detections" not in done.stdout
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["coco/bbox/AR165"] == found["coco/bbox/AP"] == 100
    done = evaluate(results, "--max-detections", "0", content=content)
    assert done.status == 2 and "--max-detections" in done.stderr
