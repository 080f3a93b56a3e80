"""The scripts that make small datasets and compare recipes on them."""

import argparse
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest

from d2ext.cli import check
from tests.conftest import REPO

SCRIPTS = REPO / "benchmarks"
DRAWN = ("seeds", "leaves", "signs", "chess", "worms")
RESULTS = {"bbox/AP": 30.0, "bbox/AP50": 50.0, "segm/AP50": 50.0}


def _script(name: str, *args: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / f"{name}.py"), *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(REPO), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def _files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """Return a folder of all sets that are drawn, with 3 and 2 photos."""
    folder = tmp_path_factory.mktemp("sets")
    made = _script("small_sets", folder, "--photos", 3, 2)
    assert made.returncode == 0, made.stderr
    return folder


def test_a_set_that_exists_is_kept(sets):
    made = _script("small_sets", sets, "--photos", 3, 2)
    assert made.returncode == 1 and len(made.stderr.splitlines()) == 1
    assert made.stderr.endswith(" exists; remove it, or give another folder\n")


def test_small_sets_depend_on_their_seed_only(sets, tmp_path):
    chosen = ("--sets", "leaves", "--photos", 3, 2)
    assert _script("small_sets", tmp_path / "again", *chosen).returncode == 0
    assert _files(tmp_path / "again/leaves") == _files(sets / "leaves")
    assert _script("small_sets", tmp_path / "other", *chosen, "--seed", 1).returncode == 0
    assert _files(tmp_path / "other/leaves") != _files(sets / "leaves")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", DRAWN)
def test_small_sets_pass_the_check(sets, name, split, capsys):
    folder = sets / name
    args = [str(folder / f"{split}.json"), "--images", str(folder / "images")]
    check.run(check.parse(args))
    assert "0 kinds of error" in capsys.readouterr().out


def test_a_shape_is_cut_where_others_cover_it(sets):
    objects = 0
    for name in DRAWN:
        content = json.loads((sets / name / "train.json").read_text())
        for image in content["images"]:
            size = image["height"], image["width"]
            polygons = [
                a["segmentation"] for a in content["annotations"] if a["image_id"] == image["id"]
            ]
            rles = [mask_util.merge(mask_util.frPyObjects(p, *size)) for p in polygons]
            masks = [mask_util.decode(rle).astype(bool) for rle in rles]
            objects += len(masks)
            inner = [mask & np.roll(mask, 2, 0) & np.roll(mask, 2, 1) for mask in masks]
            common = [(a & b).sum() for a, b in itertools.combinations(inner, 2)]
            assert max(common, default=0) <= 4, (name, image["file_name"])
    assert objects > 50


def test_a_set_of_your_own_coco_files_is_split(sets, tmp_path):
    files = [sets / "chess" / f"{split}.json" for split in ("train", "val")]
    flags = ["--coco", *files, "--images", sets / "chess/images", "--classes", "pawn"]
    found = _script("small_sets", tmp_path, "--sets", "coco", *flags)
    assert found.returncode == 0, found.stderr

    def pawns(*paths):
        chosen = {}
        for path in paths:
            content = json.loads(path.read_text())
            names = {c["id"]: c["name"] for c in content["categories"]}
            files = {image["id"]: image["file_name"] for image in content["images"]}
            for a in content["annotations"]:
                if names[a["category_id"]] == "pawn":
                    chosen.setdefault(files[a["image_id"]], []).append(a["segmentation"])
        return chosen

    sides = [pawns(tmp_path / f"coco/{split}.json") for split in ("train", "val")]
    assert sides[0] | sides[1] == pawns(*files) and not sides[0].keys() & sides[1].keys()
    assert len(sides[1]) == len(pawns(*files)) // 3
    copied = {path.name for path in (tmp_path / "coco/images").iterdir()}
    assert copied == sides[0].keys() | sides[1].keys()


def test_a_set_without_its_package_is_one_line(tmp_path):
    found = _script("small_sets", tmp_path / "sets", "--sets", "coins")
    if found.returncode:  # the tests' environment has no scikit-image
        assert found.stderr == (
            "error: coins needs scikit-image==0.26.0, which is not installed; run"
            " `pip install --no-deps scikit-image==0.26.0`, or choose other --sets\n"
        )
        assert not (tmp_path / "sets").exists()


def test_the_screening_split_has_all_training_photos_once(tmp_path, real_balloon):
    made = _script("screening", tmp_path / "split")
    assert made.returncode == 0, made.stderr
    sides = {}
    for side in ("train", "val"):
        content = json.loads((tmp_path / "split" / f"{side}.json").read_text())
        sides[side] = {image["file_name"] for image in content["images"]}
        assert all((tmp_path / "split/images" / name).exists() for name in sides[side])
        via = tmp_path / "split/balloon" / side / "via_region_data.json"
        entries = json.loads(via.read_text()).values()
        assert {entry["filename"] for entry in entries} == sides[side]
        assert sum(len(e["regions"]) for e in entries) == len(content["annotations"])
    assert (len(sides["train"]), len(sides["val"])) == (46, 15)
    photos = {path.name for path in (real_balloon / "train").glob("*.jpg")}
    assert sides["train"] | sides["val"] == photos
    assert not {path.name for path in (real_balloon / "val").glob("*.jpg")} & photos
    sessions = [{name[:5] for name in names} for names in sides.values()]
    assert not sessions[0] & sessions[1]


def _finished(runs: Path, name: str, folder: Path, ap: float, minutes: float, **more) -> None:
    """Write the results of a run as if it had been measured."""
    dataset, recipe, seed = name.split("_")
    overrides = [
        f"data.{split}.{key}={folder.resolve() / file}"
        for split in ("train", "val")
        for key, file in (("json", f"{split}.json"), ("images", "images"))
    ]
    content = {
        "dataset": dataset,
        "recipe": recipe,
        "config": "a.py",
        "overrides": overrides,
        "seed": int(seed[1:]),
        "minutes": 2 * minutes,
        "cpu_minutes": minutes,
        "threads": None,
        "parallel": 1,
        "machine": "a machine",
        "results": RESULTS | {"segm/AP": ap},
        "curve": [
            {"iteration": i, "cpu_seconds": 6.0 * i, "segm/AP": ap * i / 10} for i in range(1, 11)
        ],
    }
    (runs / name).mkdir(parents=True)
    (runs / name / "benchmark.json").write_text(json.dumps(content | more))


FIGURE = {"ours": 2.0, "theirs": 1.0, "unit": "images/s", "pairs": 5, "photos": "reduced"}
# Scripts of parts: one that fails after a figure, one with a figure and a limit of its own, and one
# whose target is reached.
PART = """
import json, pathlib, sys
file = pathlib.Path("benchmarks/results.json")
results = json.loads(file.read_text())
results |= {FIGURES}
file.write_text(json.dumps(results))
print("all limits: {END}")
{END}
"""


@pytest.fixture
def bench(tmp_path) -> Path:
    """Return a checkout whose benchmarks are run_all.py and three parts."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("run_all.py", "common.py"):
        (folder / name).write_text((SCRIPTS / name).read_text())
    old = FIGURE | {"machine": "an old machine"}
    before = {"mapper_cached": old | {"ratio": 9.0}, "step_r50": old | {"ratio": 1.1}}
    before["step_r50"]["photos"] = "original"
    (folder / "results.json").write_text(json.dumps(before))
    rows = [
        {"measured": name, "ratio": ratio} for name, ratio in (("first step", 0.8), ("step", 1.5))
    ]
    tables = {"mmdetection": {"machine": "an old machine", "rows": rows}}
    (folder / "tables.json").write_text(json.dumps(tables))
    new = FIGURE | {"machine": "a new machine"}
    parts = {
        "mapper": (
            {"mapper_exact": new | {"ratio": 2.4}, "mapper_scaled": new | {"ratio": 2.0}},
            "raise OSError('no space left')",
        ),
        "evaluation": ({"eval_bbox": new | {"ratio": 31.0}}, "sys.exit(3)"),
        "via_to_coco": ({"via_convert": new | {"ratio": 101.0}}, ""),
    }
    for name, (figures, end) in parts.items():
        text = PART.replace("{FIGURES}", repr(figures)).replace("{END}", end)
        (folder / f"{name}.py").write_text(text)
    return tmp_path


def _run_all(bench: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/run_all.py", "--only", *parts]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "DETECTRON2_DATASETS": str(REPO / "examples"),
    }
    return subprocess.run(command, cwd=bench, env=environment, capture_output=True, text=True)


def test_the_benchmarks_end_with_missed_targets_and_parts_that_could_not_run(bench):
    done = _run_all(bench, "mapper", "evaluation", "via_to_coco", "overlays")
    assert done.returncode == 1
    output = done.stdout
    assert f"measured with the reduced photos in {bench / 'examples'}" in output
    missing = f"can't open file '{bench / 'benchmarks/overlays.py'}'"
    assert output.partition(f"{bench / 'benchmarks/RESULTS.md'}\n")[2].splitlines() == [
        "below its target: mapper_scaled 2.00 (target 3, reduced photos)",
        "could not run: mapper (status 1, without mapper_cached): OSError: no space left",
        "above a limit of its own: evaluation: all limits: sys.exit(3)",
        "could not run: overlays (status 2, without overlays, overlays_video):"
        f" {sys.executable}: {missing}: [Errno 2] No such file or directory",
    ]
    page = (bench / "benchmarks/RESULTS.md").read_text()
    missed = "mapper_scaled 2.00 (target 3, reduced photos), step_r50 1.10 (target 1.6)"
    missed += ", first step against MMDetection 0.800 (target above 1)"
    assert f"Below their target: {missed}. Not measured: `roi_align`," in " ".join(page.split())
    assert "| 2.40 | 2.3 | 5 | reduced |" in page
    assert "- an old machine: `mapper_cached`, `step_r50`\n" in page
    times = page.partition("## Time of the parts")[2]
    assert re.findall(r"^\| (\w+) \| 0\.\d \|", times, re.M) == ["via_to_coco", "evaluation"]


def test_parts_before_an_interruption_are_on_the_page(bench):
    killing = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    (bench / "benchmarks/overlays.py").write_text(killing)
    assert _run_all(bench, "via_to_coco", "overlays").returncode == -signal.SIGKILL
    page = (bench / "benchmarks/RESULTS.md").read_text()
    assert "| `via_convert` |" in page and "| via_to_coco | 0." in page


def test_the_benchmarks_say_that_all_targets_are_reached(bench):
    done = _run_all(bench, "via_to_coco")
    assert done.returncode == 0 and done.stdout.endswith("\nall targets are reached\n")


@pytest.mark.parametrize(
    ("python", "error"),
    [
        ("", "MMDET_PYTHON is not set; give the path of a Python with mmdet 3.3"),
        (
            sys.executable,
            f"MMDET_PYTHON={sys.executable} cannot import mmdet and mmcv.ops (ModuleNotFoundError:"
            " No module named 'mmdet'); install mmdet 3.3 and mmcv 2.1 there",
        ),
    ],
)
def test_a_comparison_without_mmdetection_is_one_line(python, error):
    done = _script("against_mmdetection", MMDET_PYTHON=python)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {error}\n")


def test_finished_runs_are_compared_without_repeating_them(tmp_path):
    runs = tmp_path / "runs"
    sets = [tmp_path / name for name in ("one", "two")]
    for folder, gain in zip(sets, (4.0, -1.0), strict=True):
        folder.mkdir()
        (folder / "train.json").touch()
        for seed in (0, 1):
            _finished(runs, f"{folder.name}_old_s{seed}", folder, 20.0 + seed, 3.0)
            _finished(runs, f"{folder.name}_new_s{seed}", folder, 20.0 + seed + gain, 4.5)
    flags = ["--config", "old=a.py", "--config", "new=a.py", "--seeds", 0, 1, "--runs", runs]
    written = ["--json", tmp_path / "runs.json", "--svg", tmp_path / "curves.svg"]
    found = _script("small_accuracy", *sets, *flags, *written)
    assert found.returncode == 0, found.stderr
    assert "| one | new | 2 | 30.0 | 50.0 | 24.5 | 50.0 | 9.0 | 4.5 | +4.0 | 1.50 | 1.50 |" in (
        found.stdout
    )
    assert "new on 2 sets: +1.5 segm/AP on average, -1.0 at worst" in found.stdout
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 8
    svg = (tmp_path / "curves.svg").read_text()
    assert ">one<" in svg and ">two<" in svg and ">new<" in svg
    again = _script("small_accuracy", *sets, *flags, "--svg", tmp_path / "again.svg")
    assert again.returncode == 0 and (tmp_path / "again.svg").read_text() == svg
    flags[1] = "old=b.py"
    other = _script("small_accuracy", *sets, *flags)
    assert other.returncode == 1 and other.stderr.startswith(
        f"error: {runs / 'one_old_s0'} was measured with a.py"
    )


def test_runs_that_shared_the_machine_are_compared_by_cpu_time(tmp_path):
    folder, runs = tmp_path / "one", tmp_path / "runs"
    folder.mkdir()
    (folder / "train.json").touch()
    _finished(runs, "one_a_s0", folder, 20.0, 3.0, parallel=2)
    found = _script("small_accuracy", folder, "--config", "a.py", "--runs", runs)
    assert found.returncode == 0, found.stderr
    header = next(line for line in found.stdout.splitlines() if line.startswith("| data"))
    assert "CPU minutes" in header and "| minutes" not in header


@pytest.mark.parametrize(
    ("threads", "flags", "words"),
    [
        (1, [], "with --threads 1"),
        pytest.param(2, ["--threads", 1], "with --threads 2", marks=pytest.mark.nightly),
        (None, ["--threads", 1], "with no --threads"),
    ],
)
def test_runs_with_another_number_of_threads_are_not_reused(tmp_path, threads, flags, words):
    folder, runs = tmp_path / "one", tmp_path / "runs"
    folder.mkdir()
    (folder / "train.json").touch()
    _finished(runs, "one_a_s0", folder, 20.0, 3.0, threads=threads)
    command = ["small_accuracy", folder, "--config", "a.py", "--runs", runs]
    found = _script(*command, *flags)
    assert found.returncode == 1
    assert f"{runs / 'one_a_s0'} was measured {words}; give the same, or" in found.stderr
    same = _script(*command, *(["--threads", threads] if threads else []))
    assert same.returncode == 0, same.stderr


def test_ideas_are_recipes_with_overrides(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from recipe_runs import Recipe
    from screening import read_ideas

    base = Recipe("base", "a.py", ("train.max_iter=2",))
    text = "# comments\nlr: optimizer.lr=1e-3\n\nboth: optimizer.lr=1e-3 'a.b=[1, 2]'\n"
    assert [(r.name, r.config, r.overrides) for r in read_ideas(text, base)] == [
        ("lr", "a.py", ("train.max_iter=2", "optimizer.lr=1e-3")),
        ("both", "a.py", ("train.max_iter=2", "optimizer.lr=1e-3", "a.b=[1, 2]")),
    ]
    with pytest.raises(SystemExit, match="has no name"):
        read_ideas("optimizer.lr=1e-3", base)


def test_recipes_have_names(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from recipe_runs import add_arguments, recipes_of

    parser = argparse.ArgumentParser()
    add_arguments(parser, "configs/x.py", [0])
    assert [(r.name, r.config) for r in recipes_of(parser.parse_args([]))] == [
        ("x", "configs/x.py")
    ]
    flags = "--config old=a.py k=1 --config b.py --options c=2".split()
    assert [(r.name, r.config, r.overrides) for r in recipes_of(parser.parse_args(flags))] == [
        ("old", "a.py", ("c=2", "k=1")),
        ("b", "b.py", ("c=2",)),
    ]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_recipe_is_trained_and_measured_once(sets, tmp_path):
    short = ["train.max_epochs=None", "train.max_iter=2", "train.eval_period=1"]
    short += ["train.checkpointer.period=2"]
    config = ["--config", "short=custom/mask_rcnn_lite0_fpn.py", *short]
    broken = ["--config", "broken=custom/mask_rcnn_lite0_fpn.py", "train.max_itr=2"]
    runs = tmp_path / "runs"
    found = _script("small_accuracy", sets / "signs", *config, *broken, "--runs", runs)
    assert found.returncode == 1 and "error: 1 of 2 runs failed" in found.stderr
    assert "signs_broken_s0 failed with status 2: error: unknown key 'train.max_itr'" in (
        found.stderr
    )
    assert re.search(r"\| signs \| short \| 0 \| [\d.]+ \|", found.stdout)
    written = runs / "signs_short_s0" / "benchmark.json"
    measured = json.loads(written.read_text())
    results = json.loads((runs / "signs_short_s0/results.json").read_text())["last"]["results"]
    assert measured["results"]["segm/AP"] == results["custom_val/coco/segm/AP"]
    curve = [point for point in measured["curve"] if "segm/AP" in point]
    assert len(curve) == 2 and all("validation_loss" in point for point in curve)
    cpu = [point["cpu_seconds"] for point in curve]
    assert 0 < cpu[0] <= cpu[1] <= 60 * measured["cpu_minutes"] + 0.1
    before = written.stat().st_mtime_ns
    assert _script("small_accuracy", sets / "signs", *config, "--runs", runs).returncode == 0
    assert written.stat().st_mtime_ns == before
