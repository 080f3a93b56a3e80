"""Metrics and Detectron2's evaluators on the outputs of one inference, on one or several ranks."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import launch
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from msgspec import UNSET
from omegaconf import OmegaConf
from PIL import Image

from d2ext.engine.evaluation_outputs import write_evaluations
from d2ext.errors import UserError
from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.suite import Suite
from d2ext.launch.spawn import exit_process
from d2ext.preflight.options import check_metrics

SIZE = 8


class Model(torch.nn.Module):
    """Return the outputs of these kinds; in each image, the left half is class 1."""

    def __init__(self, *kinds):
        super().__init__()
        self.kinds = kinds
        self.images = 0

    def forward(self, inputs):
        self.images += len(inputs)
        return [{kind: getattr(self, f"_{kind}")() for kind in self.kinds} for _ in inputs]

    def _sem_seg(self):
        scores = torch.zeros(2, SIZE, SIZE)
        scores[1, :, : SIZE // 2] = 1
        scores[0, :, SIZE // 2 :] = 1
        return scores

    def _instances(self):
        found = Instances((SIZE, SIZE))
        found.pred_boxes = Boxes(torch.tensor([[0.0, 0, SIZE // 2, SIZE]]))
        found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.long)
        return found

    def _proposals(self):
        return self._instances()


class Count(DatasetEvaluator):
    """Count the images and objects of all ranks."""

    def __init__(self, dataset_name, output_dir=None):
        self._name = dataset_name
        self._output_dir = output_dir

    def reset(self):
        self._images, self._objects = 0, []

    def process(self, inputs, outputs):
        self._images += len(inputs)
        for output in outputs:
            scores = output["instances"].scores
            scores += 1  # evaluators may change tensors
            self._objects.append(scores)

    def evaluate(self):
        for scores in self._objects:
            scores *= 2
        images, scores = comm.gather(self._images), comm.gather(sum(map(torch.sum, self._objects)))
        if not comm.is_main_process():
            return None
        found = {"images": sum(images), "scores": sum(scores)}
        return {"count": {**found, "name": self._name, "output_dir": self._output_dir}, "flat": 1}


def _records(folder, count=3):
    truth = np.zeros((SIZE, SIZE), np.uint8)
    truth[:, : SIZE // 2] = 1
    for i in range(count):
        if not (folder / f"{i}.png").exists():  # another rank may be reading it
            Image.new("RGB", (SIZE, SIZE)).save(folder / f"{i}.jpg")
            Image.fromarray(truth).save(folder / f"{i}.png")
        box = {"bbox": [0, 0, SIZE // 2, SIZE], "bbox_mode": 1, "category_id": 0}
        yield {
            "file_name": str(folder / f"{i}.jpg"),
            "sem_seg_file_name": str(folder / f"{i}.png"),
            **{"image_id": i, "height": SIZE, "width": SIZE, "annotations": [box]},
        }


def _register(folder, *names):
    for name in names:
        DatasetCatalog.register(name, lambda: list(_records(folder)))
        metadata = MetadataCatalog.get(name)
        metadata.set(thing_classes=["left"], stuff_classes=["right", "left"], ignore_label=255)


@pytest.fixture
def datasets(tmp_path):
    """Register two datasets of three images, in which the left half is an object."""
    names = ["suite_a", "suite_b"]
    _register(tmp_path, *names)
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _batches(dataset):
    """Return this rank's images, one per batch."""
    return [[record] for record in dataset[comm.get_rank() :: comm.get_world_size()]]


def _suite(names, **evaluators):
    loader = L(_batches)(dataset=L(DatasetCatalog.get)(names=names))
    loader.dataset = {"_target_": f"{__name__}._dataset", "names": names}
    return Suite(loader, OmegaConf.create(evaluators, flags={"allow_objects": True}))


def _dataset(names):
    return DatasetCatalog.get(names)


def test_one_inference_feeds_metrics_and_evaluators_on_every_test_set(datasets, caplog):
    suite = _suite(datasets, coco=L(CocoMetric)(), mine=L(Count)(output_dir=None))
    model = Model("instances")
    for _ in range(2):
        first, second = suite.evaluate(model)
    assert model.images == 2 * 6
    assert first.results["suite_a/coco/bbox/AP"] == 100
    assert {k: v for k, v in first.results.items() if "/mine/" in k} == {
        "suite_a/mine/count/images": 3,
        "suite_a/mine/count/scores": 3 * 2 * (1 + 1),
        "suite_a/mine/flat": 1,
    }
    assert second.results["suite_b/mine/count/images"] == 3
    assert (
        caplog.messages.count(
            "suite_b/mine: results that are not numbers are skipped: count/name, count/output_dir"
        )
        == 1
    )  # although there were two evaluations


def test_an_evaluator_gets_the_name_of_its_test_set_unless_the_config_sets_it(datasets):
    class Named(Count):
        names = []

        def __init__(self, dataset_name, **arguments):
            self.names.append((dataset_name, arguments))
            super().__init__(dataset_name)

    _suite(datasets, one=L(Named)(), two=L(Named)(dataset_name="mine", output_dir=None))
    given = ("mine", {"output_dir": None})
    assert Named.names == [("suite_a", {}), given, ("suite_b", {}), given]


def test_a_model_without_instances_is_evaluated_by_evaluators(datasets, tmp_path):
    suite = _suite(datasets[:1], sem_seg=L(SemSegEvaluator)())
    (evaluation,) = suite.evaluate(Model("sem_seg"))
    assert evaluation.results["suite_a/sem_seg/sem_seg/mIoU"] == 100
    assert evaluation.detections is None and list(evaluation.segmentations) == [0, 1, 2]
    out = tmp_path / "out"
    assert write_evaluations([evaluation], out) == (evaluation.results, UNSET, UNSET, UNSET)
    files = sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file())
    assert files == [f"overlays/suite_a/{i}.jpg" for i in range(3)]


def test_a_metric_needs_instances(datasets):
    suite = _suite(datasets[:1], sem_seg=L(SemSegEvaluator)(), coco=L(CocoMetric)())
    with pytest.raises(UserError, match="the model returns sem_seg, but no instances"):
        suite.evaluate(Model("sem_seg"))


def test_errors_of_an_evaluator_name_it(datasets):
    suite = _suite(datasets[:1], sem_seg=L(SemSegEvaluator)())
    with pytest.raises(KeyError) as e:
        suite.evaluate(Model("instances"))
    assert e.value.__notes__ == ["(in evaluators.sem_seg)"]


def _rank(folder, file):
    """Write the results that rank 0 has."""
    _register(folder, "suite_ranks")
    evaluators = {"coco": L(CocoMetric)(), "sem_seg": L(SemSegEvaluator)(), "mine": L(Count)()}
    evaluations = _suite(["suite_ranks"], **evaluators).evaluate(Model("instances", "sem_seg"))
    if comm.is_main_process():
        file.write_text(json.dumps(evaluations[0].results))
    else:
        assert evaluations == []
    if torch.distributed.is_initialized():
        exit_process(0)
    DatasetCatalog.remove("suite_ranks")
    MetadataCatalog.remove("suite_ranks")


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    _rank(tmp_path, one)
    launch(_rank, 2, dist_url="auto", args=(tmp_path, two), timeout=None)
    assert two.read_text() == one.read_text()
    assert json.loads(one.read_text())["suite_ranks/mine/count/images"] == 3


def test_results_of_evaluators_are_not_known_in_advance(datasets):
    sets = {"suite_a": (["left"], ["bbox"])}
    evaluators = OmegaConf.create(
        {"coco": L(CocoMetric)(), "mine": L(Count)()}, flags={"allow_objects": True}
    )
    check_metrics(evaluators, {"train.best.metric": "suite_a/mine/count/images"}, sets)
    with pytest.raises(UserError, match="the evaluation will not return suite_a/coco/count"):
        check_metrics(evaluators, {"train.best.metric": "suite_a/coco/count"}, sets)


def test_a_missing_package_of_an_evaluator_is_found_before_the_run(datasets, monkeypatch):
    MetadataCatalog.get("suite_a").set(
        thing_dataset_id_to_contiguous_id={1: 0}, stuff_dataset_id_to_contiguous_id={1: 0, 2: 1}
    )
    evaluators = OmegaConf.create(
        {"panoptic": L(COCOPanopticEvaluator)()}, flags={"allow_objects": True}
    )
    sets = {"suite_a": (["left"], ["bbox"])}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="evaluators.panoptic: COCOPanopticEvaluator needs panopt"):
        check_metrics(evaluators, {}, sets)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    check_metrics(evaluators, {}, sets)
    evaluators.panoptic = None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_metrics(evaluators, {}, sets)
