"""The scripts that make small datasets and compare recipes on them."""

import argparse
import itertools
import json
import os
import re
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


def _script(name: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / f"{name}.py"), *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
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
        (2, ["--threads", 1], "with --threads 2"),
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
