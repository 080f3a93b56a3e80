"""Train on one annotation file: data.json=a.json data.images=imgs, split by the run."""

import json
import re
import shutil

import pytest
from PIL import Image

from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.via import read_via
from tests.balloons import ANNOTATIONS, write_balloons

CONFIG = "configs/custom/mask_rcnn_lite0_fpn.py"
QUICK = ["train.reference_batch_size=2", "train.init_checkpoint=", "train.warmup_iters=0"]
QUICK += ["dataloader.train.num_workers=0", "dataloader.val.num_workers=0"]
QUICK += [
    f"dataloader.{split}.mapper.augmentations[0].short_edge_length=64" for split in ("train", "val")
]
DATA = ["data.json=via.json", "data.images=imgs", "data.val_fraction=0.25"]
DATA.append("data.classes=[balloon]")


@pytest.fixture(scope="module")
def balloons(tmp_path_factory):
    """Return a folder with imgs/, and its annotations as via.json (10 photos) and a.json."""
    folder = tmp_path_factory.mktemp("balloons")
    write_balloons(folder, num_train=10, num_val=1, long_side=96)
    (folder / "train").rename(folder / "imgs")
    via = (folder / "imgs" / ANNOTATIONS).rename(folder / "via.json")
    records = read_via(via, folder / "imgs", ["balloon"])
    content = to_coco(records, ["balloon"], folder / "imgs")
    (folder / "a.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def photos(balloons, tmp_path):
    """Return a copy of the folder of balloons, which is the current directory."""
    return shutil.copytree(balloons, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def plan(repo, train_net, photos):
    """Return a function that plans a run without writing anything."""

    def run(*overrides, config=CONFIG):
        before = sorted(photos.rglob("*"))
        done = train_net("--dry-run", *overrides, *QUICK, config=repo / config)
        assert sorted(photos.rglob("*")) == before
        return done

    return run


def _images(file):
    return {image["file_name"] for image in json.loads(file.read_text())["images"]}


def test_a_file_is_split_and_the_plan_says_so(plan):
    done = plan(*DATA)
    assert done.status == 0, done.stderr
    assert "via.json: 8 images for training, 2 for validation" in done.stdout
    assert "data.val_fraction=0.25, data.split_seed=0" in done.stdout
    assert "near-duplicates: none among 10 photos" in done.stdout
    assert re.search(r"custom_train +8 ", done.stdout) and re.search(r"custom_val +2 ", done.stdout)
    assert "the best checkpoint is chosen by custom_val/coco/segm/AP" in done.stdout


def test_other_configs_split_a_file_too(plan, repo):
    done = plan(
        *DATA, "data.near_duplicates=False", config="configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
    )
    assert done.status == 0, done.stderr
    assert "8 images for training, 2 for validation" in done.stdout
    assert "not searched for (data.near_duplicates=False)" in done.stdout
    assert re.search(r"custom_val +2 ", done.stdout)


def test_a_validation_file_needs_no_split(plan):
    done = plan("data.json=a.json", "data.images=imgs", "data.val.json=via.json", DATA[-1])
    assert done.status == 0, done.stderr
    assert re.search(r"custom_train +10 ", done.stdout) and "for validation" not in done.stdout
    assert "10 images of custom_val" in done.stdout and "are also in custom_train" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["data.train.json=a.json"],
            "data.json=via.json and data.train.json=a.json are both given",
        ),
        (["data.val_fraction=0"], "data.val_fraction 0: give the share"),
        (["data.split_seed=-1"], "the seed -1 is negative"),
        (["data.group_by=^x"], "data.group_by '^x' matches no file name"),
        (["data.images=null"], "the folder of its images is not given"),
        (["data.val.images=other"], "data.val.images=other needs a file for validation"),
        (["data.json=absent.json"], "absent.json does not exist"),
    ],
)
def test_mistakes_are_one_line(plan, overrides, words):
    done = plan(*DATA, *overrides)
    assert done.status == 2 and words in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.slow
def test_a_run_keeps_its_split(repo, train_net, d2ext_command, photos):
    """All processes use it, also after photos were added, and it is that of d2ext split.

    A photo that was added is trained on, unless it is a copy of a validation photo.
    """
    content = json.loads((photos / "via.json").read_text())
    few = dict(list(content.items())[:8])
    (photos / "via.json").write_text(json.dumps(few))
    short = ["train.max_iter=2", "train.checkpointer.period=1", "train.eval_period=0", *QUICK]
    start = ["--num-gpus", "2", "--work-dir", "run", *DATA, *short]
    done = train_net(*start, config=repo / CONFIG)
    assert done.status == 0, done.stderr
    split = json.loads((photos / "run/split.json").read_text())
    assert len(split["val"]) == 2 and len(split["train"]) == 6
    done = d2ext_command(
        *("convert", "via", "via.json", "--images", "imgs", "--classes", "balloon"),
        *("--val", "0.25", "--output", "split"),
    )
    assert done.status == 0 and _images(photos / "split/val.json") == set(split["val"])

    with Image.open(photos / "imgs" / split["val"][0]) as photo:
        photo.save(photos / "imgs" / "copy.png")
    entry = next(e for e in content.values() if e["filename"] == split["val"][0])
    content["copy.png"] = {**entry, "filename": "copy.png"}
    (photos / "via.json").write_text(json.dumps(content))
    done = train_net("--resume", "train.max_iter=3", config=photos / "run/config.yaml")
    assert done.status == 0, done.stderr
    assert "2 images added since the split, for training" in done.stdout
    assert "1 image added since the split, such as copy.png, is not used" in done.stdout
    assert re.search(r"custom_train +8 ", done.stdout), done.stdout
    kept = json.loads((photos / "run/split.json").read_text())
    assert kept["val"] == split["val"] and kept["unused"] == ["copy.png"]
    assert set(kept["train"]) > set(split["train"]) and "copy.png" not in kept["train"]
    assert "optimistic" in (photos / "run/report.html").read_text()
    done = d2ext_command("evaluate", "run", "--weights", "last")
    assert done.status == 0 and "optimistic" not in done.stdout, done.stderr
    overlays = {path.stem for path in (photos / "run/eval/overlays/custom_val").iterdir()}
    assert overlays == {name.rpartition(".")[0] for name in split["val"]}
    done = d2ext_command("browse", "run", "--split", "val", "--all", "--output", "seen")
    assert done.status == 0 and done.stdout.startswith("2 images")
    done = d2ext_command("evaluate", "run", "--dry-run")  # the best weights
    assert "the best checkpoint is chosen by custom_val/coco/segm/AP" in done.stdout, done.stderr
    others = ["data.val.json=a.json", "data.val.images=imgs"]
    done = d2ext_command("evaluate", "run", "--dry-run", *others)
    assert done.status == 0 and "the best checkpoint is chosen" not in done.stdout, done.stderr
    shutil.move("run/split.json", "kept.json")
    (photos / "run/split.json").write_text("{")
    done = d2ext_command("evaluate", "run")
    assert done.status == 2 and "run/split.json is damaged" in done.stderr


@pytest.mark.slow
def test_folds_are_evaluated_together(repo, train_net, d2ext_command, photos):
    done = d2ext_command("split", "a.json", "--folds", "2", "--output", "folds")
    assert done.status == 0, done.stderr
    for k in (1, 2):
        files = [f"data.{side}.json=folds/fold_{k}/{side}.json" for side in ("train", "val")]
        done = train_net(
            *("--work-dir", f"runs/{k}", "data.images=imgs", *files, "train.max_iter=1", *QUICK),
            "model.roi_heads.box_predictor.test_score_thresh=0",
            config=repo / CONFIG,
        )
        assert done.status == 0, done.stderr
    predictions = [f"runs/{k}/predictions/custom_val.json" for k in (1, 2)]
    merged = [result for file in predictions for result in json.loads((photos / file).read_text())]
    assert merged
    (photos / "merged.json").write_text(json.dumps(merged))
    one = json.loads((photos / predictions[0]).read_text())
    empty = 10 - len({result["image_id"] for result in one})
    done = d2ext_command("evaluate", predictions[0], "--dataset", "a.json")
    assert done.status == 0 and f"{empty} of 10 images have no detections" in done.stdout
    for files, out in ((predictions, "folds.json"), (["merged.json"], "one.json")):
        done = d2ext_command("evaluate", *files, "--dataset", "a.json", "--out", out)
        assert done.status == 0 and "10 images" in done.stdout, done.stderr
    assert (photos / "folds.json").read_bytes() == (photos / "one.json").read_bytes()
    done = d2ext_command("evaluate", *predictions, "merged.json", "--dataset", "a.json")
    assert done.status == 2 and "both have detections in image" in done.stderr
