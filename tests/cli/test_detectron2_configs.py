"""Configs with Detectron2's sections run unchanged; tests/detectron2_style has one of each kind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.conftest import REPO, checkout_env
from tests.detectron2_style.photos import write_photos

CONFIGS = REPO / "tests" / "detectron2_style" / "configs"
# Results of each config, as <metric>/<task>.
RESULTS = {
    "cascade_rcnn": {"coco/bbox", "coco/segm"},
    "cascade_rcnn_mmdet": {"coco/bbox", "coco/segm"},  # with d2ext's classes
    "detr": {"coco/bbox"},
    "faster_rcnn": {"coco/bbox"},
    "fcos": {"coco/bbox"},
    "keypoint_rcnn": {"coco/bbox", "coco/keypoints"},
    "mask_rcnn": {"coco/bbox", "coco/segm"},
    "mask_rcnn_c4": {"coco/bbox", "coco/segm"},
    "panoptic_fpn": {"coco/bbox", "coco/segm", "sem_seg/sem_seg"},
    "retinanet": {"coco/bbox"},
    "retinanet_mmdet": {"coco/bbox"},
    "vitdet": {"coco/bbox", "coco/segm"},
}
STOCK_MODELS = [name for name in RESULTS if not name.endswith("_mmdet")]
QUICK = ("detr", "mask_rcnn", "panoptic_fpn", "retinanet")  # the others are slow tests
ALL = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in RESULTS]

CHANGES_NOTHING = [  # FasterRCNN has BatchNorm in training mode
    pytest.param(name, [], marks=[] if name in ("detr", "retinanet") else [pytest.mark.slow])
    for name in ("detr", "faster_rcnn", "keypoint_rcnn", "panoptic_fpn", "retinanet", "vitdet")
] + [
    pytest.param("retinanet", ["train.amp.enabled=True", "train.amp.dtype=bfloat16"], id="bfloat16")
]


def _nightly_except(first, names):
    return [pytest.param(n, marks=[pytest.mark.nightly] if n != first else []) for n in names]


# Runs in other processes are compared with one config; in `make nightly`, with all of them.
SOME = _nightly_except("mask_rcnn", RESULTS)
STOCK_FILES = _nightly_except("mask_rcnn.py", [f"{name}.py" for name in STOCK_MODELS])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return the folder that the configs read as $DETECTRON2_DATASETS."""
    root = tmp_path_factory.mktemp("datasets")
    write_photos(root)
    return root


@pytest.fixture(autouse=True)
def _no_datasets_left():
    """Remove what a config has registered, as if each test had a process of its own."""
    known = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def train(train_net, photos, monkeypatch):
    """Return a function that trains a config in this process."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(photos))

    def run(name, folder, *options):
        done = train_net("--work-dir", folder, *options, config=CONFIGS / f"{name}.py")
        assert done.status == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def train_on_two(photos):
    """Return a function that starts a training with two processes."""
    started = []

    def start(name, folder, *options):
        command = [sys.executable, REPO / "tools/train_net.py", "--config-file"]
        command += [CONFIGS / f"{name}.py", "--num-gpus", "2", "--work-dir", folder, *options]
        process = subprocess.Popen(
            command,
            env=checkout_env() | {"DETECTRON2_DATASETS": str(photos), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        _kill(process)


def _kill(process):
    """Kill a process and its session."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def _weights(folder, file="model_final.pth"):
    return torch.load(folder / file, weights_only=True)["model"]


def _checkpoint(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


def _metrics(folder):
    """Return the lines of metrics.json without measurements of the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    machine = ("time", "data_time", "eta_seconds", "memory_mb")
    return [{k: v for k, v in line.items() if k not in machine} for line in lines]


def _results(folder):
    return json.loads((folder / "results.json").read_text())["last"]["results"]


def _tensors(value):
    """Yield the tensors in nested dicts and lists, in order."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ALL)
def test_a_config_trains_resumes_exactly_and_evaluates(train, tmp_path, name):
    train(name, tmp_path / "whole")
    first = tmp_path / "whole" / "model_0000001.pth"
    train(name, tmp_path / "resumed", "--resume-from", first)
    weights = _weights(tmp_path / "whole")
    assert _equal(weights, _weights(tmp_path / "resumed"))
    assert not _equal(weights, _weights(first.parent, first.name))
    results = _results(tmp_path / "whole")
    assert {"/".join(key.split("/")[1:3]) for key in results} == RESULTS[name]
    assert results == _results(tmp_path / "resumed")
    train(name, tmp_path / "whole", "--eval-only", "--weights", "last")
    assert results == _results(tmp_path / "whole")


@pytest.mark.parametrize(("name", "options"), CHANGES_NOTHING)
def test_validation_losses_change_nothing_else(train, tmp_path, name, options):
    """Evaluate after every step, so that each later step could differ."""
    for folder in ("with", "without"):
        enabled = f"train.validation_loss={folder == 'with'}"
        train(name, tmp_path / folder, "train.eval_period=1", enabled, *options)
    checkpoints = [_checkpoint(tmp_path / folder) for folder in ("with", "without")]
    assert _equal(*(content["model"] for content in checkpoints))
    states = [list(_tensors(content["optimizer"])) for content in checkpoints]
    assert states[0] and all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    normalizers = [content.get("loss_normalizer") for content in checkpoints]
    assert normalizers[0] == normalizers[1]
    whole, plain = (_metrics(tmp_path / folder) for folder in ("with", "without"))
    for line, expected in zip(whole, plain, strict=True):
        losses = [key for key in line if "/validation_loss/" in key]
        names = {key.rpartition("/")[2] for key in losses}
        assert names == {key for key in expected if "loss" in key}
        assert {key: value for key, value in line.items() if key not in losses} == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_two_processes_are_killed_resume_and_equal_one(train, train_on_two, tmp_path, name):
    """One process has the same micro-batches; only the order of sums differs."""
    folder, options = tmp_path / "two", ["--no-validate", "train.max_iter=8"]
    killed = train_on_two(name, folder, *options)
    while killed.poll() is None and not (folder / "last_checkpoint").is_file():
        time.sleep(0.01)
    _kill(killed)
    assert killed.returncode == -signal.SIGKILL
    resumed = train_on_two(name, folder, "--resume", *options)
    output = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, output
    assert "Resumed" in output
    if name == "faster_rcnn":  # SyncBN normalizes over the photos of all processes
        other = train_on_two(name, tmp_path / "other", *options)
        output = other.communicate(timeout=300)[0]
        assert other.returncode == 0, output
        assert _equal(_weights(folder), _weights(tmp_path / "other"))
        return
    train(name, tmp_path / "one", *options, "train.accumulate=2")
    one, two = _weights(tmp_path / "one"), _weights(folder)
    for key in one:
        assert torch.allclose(one[key], two[key], rtol=1e-3, atol=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("config", [*STOCK_FILES, "mask_rcnn.yaml"])
def test_losses_are_those_of_detectron2s_scripts(train_net, photos, monkeypatch, tmp_path, config):
    """Weights, batches and seeds are the same; see tests/detectron2_style/stock.py."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(photos))
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir()
    theirs.mkdir()
    hook = f"{{_target_: tests.detectron2_style.stock.Record, folder: {mine}}}"
    options = ["--no-validate", "--work-dir", tmp_path / "run", *STOCK, f"train.hooks=[{hook}]"]
    config = CONFIGS / config
    if config.suffix == ".yaml":
        options.append("train.yacs_setup=[tests.detectron2_style.photos.register_photos]")
    done = train_net(*options, config=config)
    assert done.status == 0, done.stderr
    _stock(photos, "train", config, mine, theirs)
    losses, stock = (json.loads((f / "losses.json").read_text()) for f in (mine, theirs))
    assert len(losses) == len(stock) == 5
    for step, expected in zip(losses, stock, strict=True):
        assert step == pytest.approx(expected, abs=1e-5)
    weights, expected = _weights(tmp_path / "run"), _weights(theirs)
    for key in weights:
        assert torch.allclose(weights[key], expected[key], rtol=1e-5, atol=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mask_rcnn", marks=pytest.mark.nightly),
        pytest.param("keypoint_rcnn", marks=pytest.mark.nightly),
        "panoptic_fpn",  # boxes, masks and label maps
    ],
)
def test_results_are_those_of_detectron2s_evaluators(train, photos, tmp_path, name):
    """The model is trained until its AP is not 0."""
    longer = ["train.max_iter=120", "train.eval_period=120", "train.clip_grad_norm=1"]
    train(name, tmp_path / "run", *STOCK, *longer, "optimizer.lr=0.03")
    weights = tmp_path / "run" / "model_final.pth"
    _stock(photos, "evaluate", CONFIGS / f"{name}.py", weights, tmp_path / "stock.json")
    stock = json.loads((tmp_path / "stock.json").read_text())
    assert stock["bbox"]["AP"] > 0
    results = _results(tmp_path / "run")
    for key, value in results.items():
        task, metric = key.split("/")[2:]
        if metric in stock[task] and value is not None:
            assert value == pytest.approx(stock[task][metric], abs=1e-9), key


STOCK = ["train.fast_layers=False", "train.channels_last=False"]


def _stock(photos, *args):
    """Run tests/detectron2_style/stock.py with as many threads as this process has."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.detectron2_style.stock", *args]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    env = checkout_env() | {"DETECTRON2_DATASETS": str(photos)} | threads
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.nightly
@pytest.mark.slow
def test_two_processes_evaluate_like_one(train, train_on_two, tmp_path):
    """Evaluators of Detectron2 gather the predictions of both."""
    train("panoptic_fpn", tmp_path / "run")
    results = _results(tmp_path / "run")
    process = train_on_two("panoptic_fpn", tmp_path / "run", "--eval-only", "--weights", "last")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert _results(tmp_path / "run") == pytest.approx(results, nan_ok=True)


def test_the_plan_says_what_became_of_detrexs_keys(train, tmp_path):
    plan = train("detr", tmp_path, "--dry-run")
    for line in (
        "train.clip_grad -> train.clip_grad_norm=0.1",
        "train.seed -> train.seed=0",
        "model.device=cuda follows train.device",
        "train.output_dir=./output is not used",
        "COCOEvaluator",
        "train.fast_dev_run",
    ):
        assert line in plan, line
    assert not (tmp_path / "output").exists()


def test_mixed_precision_of_a_config_is_off_on_the_cpu(train, tmp_path):
    assert "train.amp.enabled=auto" in train("vitdet", tmp_path, "--dry-run")


def test_a_lambda_is_named_by_config_yaml_and_the_run_resumes_from_its_file(train, tmp_path):
    output = train("mask_rcnn", tmp_path, "--no-validate", "train.max_iter=1")
    lost = "model.roi_heads.mask_head.conv_norm (<lambda>)"
    assert f"config.yaml cannot be loaded, because it cannot hold {lost}" in output
    assert lost in (tmp_path / "config.yaml").read_text().partition("\n")[0]
    assert "Resumed" in train("mask_rcnn", tmp_path, "--no-validate", "--resume")


@pytest.fixture
def own_photos(photos, tmp_path):
    """Return overrides for other photos with boxes of three classes."""
    write_photos(tmp_path / "own", num_train=4)
    options = []
    for split in ("train", "val"):
        file = tmp_path / "own" / "tiny" / f"{split}.json"
        content = json.loads(file.read_text())
        classes = {3: "apple", 7: "bottle", 9: "cup"}
        content["categories"] = [dict(id=i, name=name) for i, name in classes.items()]
        file.write_text(json.dumps(content))
        options += [f"data.{split}.json={file}", f"data.{split}.images={file.with_suffix('')}"]
    return options


# For each config, a bias with one value per class, and their number with three classes.
CLASSIFIERS = {
    "cascade_rcnn": ("roi_heads.box_predictor.2.cls_score.bias", 4),
    "detr": ("class_embed.bias", 3),
    "mask_rcnn": ("roi_heads.mask_head.predictor.bias", 3),
    "retinanet": ("head.cls_score.bias", 27),
    "vitdet": ("roi_heads.box_predictor.cls_score.bias", 4),
}


@pytest.mark.parametrize("name", [p for p in ALL if p.values[0] in CLASSIFIERS])
def test_a_config_trains_on_your_own_photos(train, own_photos, tmp_path, name):
    output = train(name, tmp_path / "run", *own_photos)
    assert "custom_train" in output and "apple 4, bottle 4, cup 0" in output
    bias, count = CLASSIFIERS[name]
    assert len(_weights(tmp_path / "run")[bias]) == count
    tasks = {key.rpartition("/")[0] for key in _results(tmp_path / "run")}
    assert tasks == {f"custom_val/{task}" for task in RESULTS[name]}
