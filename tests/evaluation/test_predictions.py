"""Detections of a model as columns, from one or several processes, and as a file."""

import json
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import launch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances

from benchmarks.fake_cuda import FakeCuda
from d2ext.data.datasets.classes import FILE_IDS, select_metadata
from d2ext.errors import UserError
from d2ext.evaluation.predictions import one_behind, predict, results_of, write_predictions
from d2ext.launch.spawn import exit_process

IDS = [f"photo {i}" for i in range(600)]  # more than a rank sends at a time


class Found(torch.nn.Module):
    """Detect as many objects in an image as the last digit of its number."""

    def __init__(self, masks=True):
        super().__init__()
        self.masks = masks

    def forward(self, inputs):
        return [{"instances": self._found(int(sample["image_id"].split()[1]))} for sample in inputs]

    def _found(self, i):
        generator = torch.Generator().manual_seed(i)
        n = i % 10
        found = Instances((8, 9))
        start = torch.rand(n, 2, generator=generator) * 4
        found.pred_boxes = Boxes(torch.cat([start, start + 1 + torch.rand(n, 2)], 1))
        found.pred_boxes.tensor[:, 2:] = start + 2
        found.scores = torch.rand(n, generator=generator)
        found.pred_classes = torch.arange(n) % 3
        if self.masks:
            found.pred_masks = torch.rand(n, 8, 9, generator=generator) > 0.5
        return found


def _loader(numbers):
    """Yield batches of two images."""
    numbers = list(numbers)
    for i in range(0, len(numbers), 2):
        yield [{"image_id": IDS[k]} for k in numbers[i : i + 2]]


def _rank(file, parts):
    """Write the results that rank 0 has at the end."""
    from detectron2.utils import comm

    found = predict(Found(), _loader(parts[comm.get_rank()]), IDS)
    if comm.is_main_process():
        found = found.detections
        rows = list(results_of(found, IDS, slice(None)))
        with open(file, "w") as f:
            json.dump(rows, f)
    else:
        assert found is None
    if torch.distributed.is_initialized():
        exit_process(0)


def test_the_columns_equal_the_output_of_the_model():
    model = Found().train()
    found = predict(model, _loader([13, 4, 0]), IDS).detections
    assert model.training
    assert found.image.tolist() == [4] * 4 + [13] * 3  # in the order of the dataset
    expected = model._found(13)
    assert found.label[4:].tolist() == expected.pred_classes.tolist()
    assert found.scores[4:] == pytest.approx(expected.scores.numpy())
    x0, y0, x1, y1 = expected.pred_boxes.tensor.T.double()
    assert found.boxes[4:] == pytest.approx(torch.stack([x0, y0, x1 - x0, y1 - y0], 1).numpy())
    from pycocotools import mask

    for rle, ground_truth in zip(found.masks[4:], expected.pred_masks, strict=True):
        assert mask.decode(rle).tolist() == ground_truth.int().tolist()


@pytest.mark.parametrize("masks", [True, False])
def test_nothing_found(masks):
    found = predict(Found(masks), _loader([0, 10]), IDS).detections
    assert len(found.scores) == 0 and found.boxes.shape == (0, 4)


def test_images_that_were_not_evaluated_are_counted(caplog):
    predict(Found(), _loader(range(590)), IDS)
    assert "10 of 600 images were not evaluated" in caplog.text


@pytest.mark.slow
def test_two_processes_with_uneven_overlapping_parts_find_the_same(tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    _rank(one, [range(600)])
    parts = [range(0, 401), range(390, 600)]  # 11 images twice
    launch(_rank, 2, dist_url="auto", args=(str(two), parts), timeout=None)
    assert json.loads(two.read_text()) == json.loads(one.read_text())
    assert len(json.loads(one.read_text())) == 600 * 4.5


def test_the_file_has_the_category_ids_of_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("d2ext.evaluation.predictions._WRITTEN", 4)
    found = predict(Found(), _loader([13, 4]), IDS).detections
    MetadataCatalog.get("predictions_own").set(
        thing_classes=["a", "b", "c"], thing_dataset_id_to_contiguous_id={70: 0, 2: 1, 3: 2}
    )
    MetadataCatalog.get("predictions_none").set(thing_classes=["a", "b", "c"])
    for name, ids in (("predictions_own", [70, 2, 3]), ("predictions_none", [1, 2, 3])):
        written = json.loads(write_predictions(name, found, IDS, tmp_path).read_text())
        expected = list(results_of(found, IDS, slice(None)))
        assert len(written) == 7
        assert written == [{**r, "category_id": ids[r["category_id"]]} for r in expected]
    nothing = predict(Found(), _loader([0]), IDS).detections
    file = write_predictions("predictions_own", nothing, IDS, tmp_path)
    assert json.loads(file.read_text()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_size_of_images():
    """The masks of 200 more images with a million pixels each would take a gigabyte."""
    code = """
import resource, torch
from detectron2.structures import Boxes, Instances
from d2ext.evaluation.predictions import predict
class Model(torch.nn.Module):
    def forward(self, inputs):
        found = Instances((1000, 1000))
        found.pred_boxes = Boxes(torch.tensor([[0., 0, 9, 9]] * 5))
        found.scores, found.pred_classes = torch.ones(5), torch.zeros(5, dtype=torch.long)
        found.pred_masks = torch.zeros(5, 1000, 1000, dtype=torch.bool)
        found.pred_masks[:, :100] = True
        return [{"instances": found}]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
loader = lambda n: ([{"image_id": i}] for i in range(n))
predict(Model(), loader(100), range(100))  # glibc keeps some freed memory, up to a limit
before = peak()
found = predict(Model(), loader(300), range(300))
assert len(found.detections.masks) == 1500
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200  # MB


def test_classes_that_the_dataset_lacks_are_not_written(tmp_path, caplog):
    """The file can then be evaluated against the dataset's own annotation file."""
    caplog.set_level("INFO", "d2ext")
    metadata = {FILE_IDS: {7: 0, 4: 1}}
    metadata = select_metadata(metadata, ["cat", "dog"], ["unicorn", "dog"])
    metadata = select_metadata(metadata, ["unicorn", "dog"], ["cat", "unicorn", "dog"])
    MetadataCatalog.get("predictions_lacking").set(
        thing_classes=["cat", "unicorn", "dog"], **metadata
    )
    found = predict(Found(), _loader([13, 4]), IDS).detections
    assert set(found.label) == {0, 1, 2}
    file = write_predictions("predictions_lacking", found, IDS, tmp_path)
    written = json.loads(file.read_text())
    assert len(written) == sum(found.label == 2) and {r["category_id"] for r in written} == {4}
    left_out = sum(found.label != 2)
    assert f"{left_out} detections of classes that the dataset lacks" in caplog.text


def test_a_model_without_instances_gives_a_one_line_error():
    class Proposals(torch.nn.Module):
        def forward(self, inputs):
            return [{"proposals": Instances((8, 9))} for _ in inputs]

    with pytest.raises(UserError, match="the model returns proposals, but no instances"):
        predict(Proposals(), _loader([3]), IDS)


def test_detections_with_non_finite_values_are_dropped(caplog):
    class WithNaN(Found):
        def _found(self, i):
            found = super()._found(i)
            found.scores[0] = np.nan
            return found

    assert len(predict(WithNaN(), _loader([13]), IDS).detections.scores) == 2
    assert "1 of 3 detections dropped" in caplog.text


def test_an_image_is_encoded_while_the_model_runs_on_the_next():
    started = [threading.Event() for _ in range(3)]

    def items():
        for i, event in enumerate(started):
            event.set()
            yield i

    def work(i):
        assert i == 2 or started[i + 1].wait(60)
        return 10 * i

    assert list(one_behind(items(), work)) == [(0, 0), (1, 10), (2, 20)]


def test_an_error_while_encoding_is_raised():
    class Small(Found):
        def _found(self, i):
            found = super()._found(i)
            found.remove("pred_classes")
            return found

    model = Small().train()
    with pytest.raises(AttributeError, match="pred_classes"):
        predict(model, _loader([13, 4]), IDS)
    assert model.training


@pytest.mark.parametrize("wrong", ["encode", "evaluator", "model"])
def test_the_loader_is_closed_before_an_error_is_handled(wrong):
    """Even though the traceback of the error keeps the generators alive."""
    closed = []

    def loader():
        try:
            yield from _loader([13, 4, 0, 1, 2, 3])
        finally:
            closed.append(True)

    class Failing(Found):
        def _found(self, i):
            found = super()._found(i)
            if wrong == "encode":
                found.remove("pred_classes")
            elif wrong == "model":
                raise AttributeError("scores")
            return found

    class Evaluator(DatasetEvaluator):
        def process(self, inputs, outputs):
            raise AttributeError("scores")

    evaluators = {"own": Evaluator()} if wrong == "evaluator" else {}
    with pytest.raises(Exception, match="pred_classes|scores") as error:
        predict(Failing(), loader(), IDS, evaluators=evaluators)
    assert closed and error.traceback


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("evaluates", [False, True])
def test_outputs_of_earlier_batches_are_released(device, evaluates):
    """The next batch needs the memory; evaluators still need the outputs of the last one."""
    seen, alive = [], []

    class Watched(Found):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, inputs):
            alive.append(sum(outputs() is not None for outputs in seen))
            found = super().forward(inputs)
            seen.extend(weakref.ref(output["instances"]) for output in found)
            return found

    class Evaluator(DatasetEvaluator):
        def process(self, inputs, outputs):
            pass

    evaluators = {"own": Evaluator()} if evaluates else {}
    with FakeCuda():
        model = Watched().to(device)
        predict(model, _loader([13, 4, 0, 1, 2, 3, 7, 8]), IDS, evaluators=evaluators)
    assert alive[0] == 0 and max(alive) == 2 * evaluates


@pytest.mark.parametrize(("device", "runs"), [("cpu", 1), ("cuda", 2)])
def test_only_with_a_gpu_the_next_batch_runs_during_the_encoding(device, runs):
    started = []

    class Small(Found):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, inputs):
            started.append(inputs)
            return super().forward(inputs)

        def _found(self, i):
            found = super()._found(i)
            found.remove("pred_classes")
            return found

    with FakeCuda(), pytest.raises(AttributeError, match="pred_classes"):
        predict(Small().to(device), _loader(range(8)), IDS)
    assert len(started) == runs
