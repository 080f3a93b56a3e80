"""Values chosen from the data: commands that continue or use a run agree on them."""

import json
import time

import pytest

from d2ext.config import by_hand as keys
from d2ext.config.load import load_config
from d2ext.config.options import TrainOptions
from tests.balloons import write_balloons

# The recipe for tiny images; sizes in the file count as its own, because data.recipe is None.
CONFIG = """import d2ext

cfg = d2ext.get_config("custom/faster_rcnn_lite0_fpn.py")
cfg.data.recipe = None
cfg.train.init_checkpoint = ""
cfg.train.warmup_iters = 1
for split in ("train", "val"):
    cfg.dataloader[split].mapper.augmentations[0].short_edge_length = 128
    cfg.dataloader[split].mapper.augmentations[0].max_size = 192
    cfg.dataloader[split].num_workers = 0
model, dataloader, optimizer, lr_multiplier, train, datasets, evaluators, data = (
    cfg[name]
    for name in "model dataloader optimizer lr_multiplier train datasets evaluators data".split()
)
"""
DATA = [
    f"data.{split}.{key}={value}"
    for split in ("train", "val")
    for key, value in (("json", f"{split}/via_region_data.json"), ("images", split))
] + ["data.classes=[balloon]"]


@pytest.fixture
def folder(tmp_path):
    """Return the current directory, with mine.py and a few photos."""
    write_balloons(tmp_path, num_train=6, num_val=1, long_side=96)
    (tmp_path / "mine.py").write_text(CONFIG)
    return tmp_path


def _auto(done):
    """Return the lines of the plan about chosen values."""
    assert done.status == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("auto  "))
    after = (i for i, line in enumerate(lines) if i > first and not line.startswith(" " * 12))
    return [line[12:] for line in lines[first : next(after)]]


def _changes(done):
    """Return the fields that a resumed run reports as changed."""
    text = done.stdout + done.stderr
    return [line.split(";")[0] for line in text.split("the config changed: ")[1:]]


def test_the_plan_explains_what_is_chosen(d2ext_command, folder):
    lines = _auto(d2ext_command("train", "mine.py", "--dry-run", *DATA, "optimizer.lr=1e-3"))
    text = "\n".join(lines)
    assert text.startswith("short side 224 (was 128): the 25 % smallest objects, up to 14 % of it,")
    assert "training on crops of 128 x 128 pixels around an object" in text
    assert "anchors " in text and "in training images" in text
    assert "2 images per step (was 4): more steps with few images" in text
    assert "learning rate" not in text and "167 epochs (was 24): 501 steps" in text
    assert lines[-1] == "set by hand and kept: optimizer.lr"
    assert len(lines) <= 8
    assert sorted(path.name for path in folder.iterdir()) == ["mine.py", "train", "val"]
    off = d2ext_command("train", "mine.py", "--dry-run", *DATA, "data.auto=False")
    assert off.status == 0 and "auto  " not in off.stdout + off.stderr


def test_rules_that_do_not_apply_are_one_line(d2ext_command, folder):
    resize = "{_target_: detectron2.data.transforms.Resize, shape: [64, 64]}"
    override = f"dataloader.train.mapper.augmentations=[{resize}]"
    lines = _auto(d2ext_command("train", "mine.py", "--dry-run", *DATA, override))
    words = "not chosen: image sizes: the first augmentation is not a ResizeShortestEdge"
    assert lines[-1] == words and any(line.startswith("anchors ") for line in lines[:-1]) is False


@pytest.mark.nightly
@pytest.mark.slow
def test_a_run_keeps_its_values(d2ext_command, folder):
    """Resume, evaluation, prediction and pages agree, even if the annotations changed."""
    command = ["train", "mine.py", "--work-dir", "run", *DATA, "train.max_iter=2"]
    lines = _auto(d2ext_command(*command))
    kept = json.loads((folder / "run/auto.json").read_text())
    chosen = {choice["key"]: choice["value"] for choice in kept["choices"]}
    assert chosen[keys.BATCH] == 2 and keys.ANCHORS in chosen
    assert chosen[keys.CROP]["size"] == [128, 128] and chosen[keys.VAL_SHORT_SIDE] > 166
    assert kept["fingerprint"]["images"] == 6 and kept["fingerprint"]["size"]["50"] > 0
    assert {choice["reason"] for choice in kept["choices"]} <= set(lines)
    saved = load_config(folder / "run/config.yaml")
    assert saved.data.auto is False
    anchors = saved.model.proposal_generator.anchor_generator.sizes
    assert [list(level) for level in anchors] == chosen[keys.ANCHORS]
    assert saved.dataloader.train.total_batch_size == 2
    resize, crop, _ = saved.dataloader.train.mapper.augmentations
    assert list(resize.short_edge_length) == chosen[keys.SHORT_SIDES]
    assert crop["_target_"].endswith(".ObjectCrop")
    size = saved.dataloader.val.mapper.augmentations[0].short_edge_length
    assert size == chosen[keys.VAL_SHORT_SIDE]

    # A dataset to which other values fit: one object of each photo, three times as large.
    file = folder / "train/via_region_data.json"
    content = json.loads(file.read_text())
    for entry in content.values():
        entry["regions"] = {"0": next(iter(entry["regions"].values()))}
        shape = entry["regions"]["0"]["shape_attributes"]
        for name in ("all_points_x", "all_points_y"):
            low = min(shape[name])
            shape[name] = [min(low + 3 * (v - low), 60) for v in shape[name]]
    file.write_text(json.dumps(content))
    fresh = _auto(d2ext_command("train", "mine.py", "--work-dir", "other", "--dry-run", *DATA))
    assert not set(fresh) & {line for line in lines if line.startswith("anchors")}

    more = ["train", "mine.py", "--resume", "--work-dir", "run", *DATA]
    again = d2ext_command(*more, "train.max_iter=3")
    assert _auto(again) == lines
    assert _changes(again) == ["train.max_iter (2 before, 3 now)"]
    assert json.loads((folder / "run/auto.json").read_text())["choices"] == kept["choices"]
    by_hand = d2ext_command(*more, "train.max_iter=4", "optimizer.lr=1e-3")
    assert "optimizer.lr" in _auto(by_hand)[-1]
    assert load_config(folder / "run/config.yaml").optimizer.lr == 1e-3
    from_yaml = d2ext_command("train", "run", "--resume", "train.max_iter=5")
    assert from_yaml.status == 0 and "auto  " not in from_yaml.stdout + from_yaml.stderr
    assert _changes(from_yaml) == ["train.max_iter (4 before, 5 now)"]
    again = ["data.auto=True", "train.budget=10 min"]
    twice = d2ext_command("train", "run", "--resume", "train.max_iter=6", *again)
    assert _auto(twice) == ["the values of the run's config.yaml stay"]
    assert "budget      the length of the run stays; train.max_epochs changes it" in twice.stdout
    assert _changes(twice) == ["train.max_iter (5 before, 6 now)"]
    saved = load_config(folder / "run/config.yaml")
    assert len(saved.dataloader.train.mapper.augmentations) == 3 and not saved.data.auto

    # The original config, with the run's weights.
    results = []
    initial = "train.init_checkpoint=run/model_final.pth"
    weights = ["--weights", "run/model_final.pth"]
    for config, flags in (("mine.py", weights), ("run", weights), ("mine.py", [initial])):
        name = f"eval_{len(results)}"
        done = d2ext_command("train", config, "--eval-only", "--work-dir", name, *flags, *DATA)
        assert done.status == 0, done.stderr
        results.append(json.loads((folder / f"{name}/eval/results.json").read_text()))
    assert results[0]["last"] == results[1]["last"] == results[2]["last"]
    fine_tuned = _auto(d2ext_command("train", "mine.py", "--dry-run", *DATA, initial))
    first, last = chosen[keys.ANCHORS][0][0], chosen[keys.ANCHORS][-1][-1]
    assert f"anchors {first} to {last} pixels: those of the initial weights" in fine_tuned
    predictions = []
    for config in ("mine.py", "run/config.yaml"):
        done = d2ext_command(
            *["predict", "--config-file", config, "--weights", "run/model_final.pth", "val"],
            *["--output", f"out_{len(predictions)}", "--options", *DATA],
        )
        assert done.status == 0, done.stderr
        predictions.append((folder / f"out_{len(predictions)}/predictions.json").read_text())
    assert predictions[0] == predictions[1]
    pages = []
    for config, overrides in (("mine.py", [*DATA, "train.output_dir=run"]), ("run", [])):
        output = folder / f"pages_{len(pages)}"
        done = d2ext_command("browse", config, "--count", "4", "--output", output, *overrides)
        assert done.status == 0, done.stderr
        pages.append([file.read_bytes() for file in sorted(output.glob("*.jpg"))])
    assert pages[0] == pages[1] != []


def test_a_damaged_file_of_choices_is_an_error(d2ext_command, folder):
    (folder / "run").mkdir()
    (folder / "run/auto.json").write_text("{")
    done = d2ext_command(
        *["train", "mine.py", "--eval-only", "--weights", "run/model_final.pth", *DATA]
    )
    assert done.status == 2
    assert "run/auto.json is damaged" in done.stderr.splitlines()[-1]
    assert "use the run's config.yaml" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_use_the_same_values(d2ext_command, folder):
    done = d2ext_command(
        *["train", "mine.py", "--num-gpus", "2", "--no-validate", "--work-dir", "run"],
        *[*DATA, "train.max_iter=1"],
    )
    assert done.status == 0, done.stderr
    saved = load_config(folder / "run/config.yaml")
    kept = json.loads((folder / "run/auto.json").read_text())["choices"]
    assert TrainOptions.from_config(saved.train).reference_batch_size == 2
    assert {choice["key"]: choice["value"] for choice in kept}[keys.BATCH] == 2


@pytest.mark.slow
def test_a_run_ends_within_its_budget(d2ext_command, folder):
    begin = time.monotonic()
    done = d2ext_command("train", "mine.py", "--work-dir", "run", *DATA, "train.budget=40 s")
    seconds = time.monotonic() - begin
    assert done.status == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if " in 40 s: " in line)
    assert line.startswith("budget") and "per step" in line and "per evaluation" in line
    assert 20 < seconds < 80  # other tests may start after the timing, and slow the run down
    kept = json.loads((folder / "run/auto.json").read_text())
    assert kept["budget"] == "40 s"
    epochs = {choice["key"]: choice["value"] for choice in kept["choices"]}[keys.EPOCHS]
    saved = load_config(folder / "run/config.yaml")
    assert saved.train.max_epochs == epochs and saved.train.budget is None
    # Nothing is measured again, and nothing is left to train.
    again = d2ext_command(
        "train", "mine.py", "--resume", "--work-dir", "run", *DATA, "train.budget=40 s"
    )
    assert again.status == 0, again.stderr
    assert "Nothing left to train" in again.stdout + again.stderr
    assert "the config changed" not in again.stderr and "timing" not in again.stdout


def test_contradictory_and_invalid_budgets(d2ext_command, folder):
    for overrides, words in (
        (["train.budget=soon"], "train.budget='soon': give hours, minutes or seconds"),
        (
            ["train.budget=1 h", "train.max_iter=5"],
            "train.budget and train.max_epochs (or train.max_iter) both set the length",
        ),
        (["train.budget=1,5 h"], "train.budget='1,5 h': give hours, minutes or seconds"),
        (["train.budget=1 s"], "train.budget='1 s' is too short: the start takes"),
    ):
        done = d2ext_command("train", "mine.py", *DATA, *overrides)
        assert done.status == 2 and words in done.stderr.splitlines()[-1], done.stderr
