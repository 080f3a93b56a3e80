"""Metrics named in the config, on any dataset, give the same numbers as tools/evaluate.py."""

import json
import sys

import pytest

VOC = "+evaluators.voc={_target_: d2ext.evaluation.voc.VocMetric, iou_thresholds: [0.3, 0.5]}"
GROUPS = "+evaluators.open_images={_target_: d2ext.evaluation.open_images.OpenImagesMetric}"
SETS = "dataloader.val.dataset.names=[balloon_val,balloon_train]"
OWN = "+evaluators.balloon_train={mine: {_target_: d2ext.evaluation.voc.VocMetric}}"


@pytest.fixture
def results(train_net, tiny, tmp_path):
    """Train a step with the overrides, evaluate, and return the run directory and results."""

    def run(*overrides):
        out = tmp_path / "out"
        done = train_net("--work-dir", out, "--overwrite", *tiny, "train.max_iter=1", *overrides)
        assert done.status == 0, done.stderr
        return out, json.loads((out / "results.json").read_text())["last"]["results"]

    return run


def test_several_metrics_equal_those_of_evaluate(results, run_tool, tiny_root, tmp_path):
    out, numbers = results(VOC, GROUPS)
    assert {key.split("/")[1] for key in numbers} == {"coco", "voc", "open_images"}
    folder = tiny_root / "balloon" / "val"
    ground_truth = tmp_path / "truth.json"
    convert = [folder / "via_region_data.json", "--images", folder, "--classes", "balloon"]
    done = run_tool("convert_dataset", "via", *convert, "--output", ground_truth)
    assert done.status == 0, done.stderr
    done = run_tool(
        *("evaluate", out / "predictions" / "balloon_val.json", "--dataset", ground_truth),
        *("--metrics", "coco", "voc", "open_images", "--per-class", "--out", tmp_path / "o.json"),
        *("--confusion-matrix", "--pr-curves", "--errors"),
    )
    assert done.status == 0, done.stderr
    offline = json.loads((tmp_path / "o.json").read_text())
    shared = {key.split("/", 1)[1] for key in numbers} & offline.keys()
    assert {"coco/bbox/AP", "coco/segm/AP", "voc/bbox/AP50", "open_images/bbox/AP50"} <= shared
    for key in shared - {"voc/bbox/AP", "voc/bbox/AP-balloon"}:  # their thresholds differ
        assert offline[key] == pytest.approx(numbers[f"balloon_val/{key}"], abs=1e-9), key
    # The analyses of the run equal those of evaluate.
    mine = json.loads((out / "analysis" / "balloon_val.json").read_text())["tasks"]
    theirs = json.loads((tmp_path / "o_analysis.json").read_text())
    assert mine["segm"]["confusion_matrix"] == theirs["segm"]["confusion_matrix"]
    assert mine["bbox"]["errors"] == theirs["bbox"]["errors"]
    page = (out / "report.html").read_text()
    assert "Error analysis: balloon_val" in page and "Confusion matrix" in page


def test_each_test_dataset_may_have_its_own_metrics(results):
    out, numbers = results(SETS, OWN)
    assert {tuple(key.split("/")[:2]) for key in numbers} == {
        ("balloon_val", "coco"),
        ("balloon_train", "mine"),
    }
    assert (out / "analysis" / "balloon_train.json").is_file()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+evaluators.voc={mode: area}", "evaluators.voc is neither a metric"),
        (VOC.replace("0.3", "3"), "iou_thresholds="),
        ("+evaluators.c={_target_: d2ext.evaluation.coco.CocoMetric, tasks: bbox}", "tasks='bbox'"),
        (
            "+evaluators.c={_target_: d2ext.evaluation.cityscapes.CityscapesMetric}",
            "'balloon' is not a Cityscapes class",
        ),
        ("train.best.metric=voc/bbox/AP", "the evaluation will not return balloon_val/voc/bbox/AP"),
    ],
)
def test_invalid_metrics_are_found_before_the_run(train_net, tiny, tmp_path, override, words):
    done = train_net("--dry-run", "--work-dir", tmp_path / "out", *tiny, override)
    assert done.status == 2 and words in done.stderr, done.stderr


METRICS = """
from detectron2.evaluation import DatasetEvaluator

class Images(DatasetEvaluator):
    def __init__(self, dataset_name):
        self._name = dataset_name

    def reset(self):
        self._masks = []

    def process(self, inputs, outputs):
        for sample, output in zip(inputs, outputs, strict=True):
            size = output["instances"].pred_masks.shape[1:]
            self._masks.append(size == (sample["height"], sample["width"]))

    def evaluate(self):
        return {self._name: {"images": sum(self._masks)}}

class Short:
    def __call__(self, detections):
        return {}

class Count:
    def __init__(self, result, max_detections=100):
        self.result = result

    def __call__(self, ground_truth, detections):
        return self.result
"""


@pytest.fixture
def my_metrics(tmp_path, monkeypatch):
    """Make a user's module with metrics importable."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_metrics", raising=False)
    (tmp_path / "my_metrics.py").write_text(METRICS)


def test_a_metric_must_be_callable_with_two_arguments(train_net, tiny, my_metrics):
    for target, words in (
        ("collections.OrderedDict", "evaluators.mine: OrderedDict is not a metric; give a class"),
        ("no_such_module.Metric", "evaluators.mine cannot be built: ImportError: Error loading"),
        ("my_metrics.Short", "evaluators.mine: Short.__call__ cannot take (ground_truth, detect"),
    ):
        done = train_net("--dry-run", *tiny, f"+evaluators.mine={{_target_: {target}}}")
        assert done.status == 2 and words in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1


def test_an_evaluator_of_detectron2_replaces_all_metrics(results, my_metrics):
    overrides = ["evaluators.coco=null", "+evaluators.mine={_target_: my_metrics.Images}"]
    out, numbers = results(*overrides, "train.best.metric=mine/balloon_val/images")
    assert numbers == {"balloon_val/mine/balloon_val/images": 2.0}
    assert (out / "predictions" / "balloon_val.json").is_file()


def test_results_of_a_metric_are_numbers_by_task_and_name(results, train_net, tiny, my_metrics):
    mine = "+evaluators.mine={_target_: my_metrics.Count, result: %s}"
    _, numbers = results(mine % "{bbox/count: 3}")
    assert numbers["balloon_val/mine/bbox/count"] == 3.0
    for result, words in (
        ("[1]", "evaluators.mine returned [1]; return a dict of numbers by <task>/<name>"),
        ("{count: 1}", "evaluators.mine returned the result 'count'; name it <task>/<name>"),
    ):
        done = train_net("--overwrite", *tiny, "train.max_iter=1", mine % result)
        assert done.status == 2 and words in done.stderr, done.stderr
