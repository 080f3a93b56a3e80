"""Cost of a model: parameters, FLOPs, and the time and memory of a step."""

import copy
import re

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from d2ext.config.load import load_config
from d2ext.errors import UserError
from d2ext.inspect.cost import analyze

SMALL = [
    "train.device=cpu",
    "dataloader.train.mapper.augmentations[0].short_edge_length=64",
    "dataloader.val.mapper.augmentations[0].short_edge_length=48",
]


class Toy(nn.Module):
    """A 1 x 1 convolution; `traced=False` cannot be traced, `named=False` returns one loss."""

    def __init__(self, traced: bool = True, named: bool = True, input_format: str = "RGB"):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1, bias=False)
        self.frozen = nn.Linear(1000, 1000)
        self.frozen.requires_grad_(False)
        self.traced, self.named = traced, named

    def forward(self, batch):
        out = self.layer(batch[0]["image"][None].float())
        if self.training:
            assert len(batch[0]["instances"])
            return {"loss": out.mean()} if self.named else out.mean()
        if torch.jit.is_tracing() and not self.traced:
            raise RuntimeError("no graph")
        return [out]


@pytest.fixture(scope="module")
def recipe(repo):
    return load_config(repo / "configs/custom/mask_rcnn_lite0_fpn.py", SMALL)


@pytest.fixture
def cfg(recipe):
    """Return a copy of a config without data, which a test may change."""
    return copy.deepcopy(recipe)


def _toy(cfg, **arguments):
    cfg.model = L(Toy)(input_format="RGB", **arguments)
    return "\n".join(analyze(cfg))


def test_parameters_and_flops_of_a_known_model(cfg):
    text = _toy(cfg)
    assert "image       a random photo of 640 x 480, without data: the annotation file is" in text
    assert "parameters  1.00 million, 0.00 million of which train" in text
    assert "frozen: 1.00 million, 0.00 million of which train" in text
    assert re.search(r"inference   \S+ s \(median of \d\) and \S+ GiB .* of 64 x 48\n", text)
    assert re.search(r"training    \S+ s \(median of \d\) and \S+ GiB .* of 85 x 64\n", text)
    # 64 x 48 pixels, 3 x 2 multiply-adds for each
    assert "FLOPs       1.843e-05 G multiply-adds for one image of 64 x 48" in text


def test_a_model_that_cannot_be_traced_is_measured_without_flops(cfg):
    text = _toy(cfg, traced=False)
    assert (
        "FLOPs       unknown: the model cannot be traced (RuntimeError: no graph)" in text
        and "training    " in text
    )


def test_a_model_that_returns_one_loss_is_measured(cfg):
    assert "training    " in _toy(cfg, named=False)


def test_random_data_have_everything_that_detectron2_heads_need(cfg):
    cfg.dataloader.train.mapper.use_keypoint = True

    class Needs(Toy):
        def forward(self, batch):
            if self.training:
                instances = batch[0]["instances"]
                assert instances.has("gt_masks") and instances.gt_keypoints.tensor.shape[1:] == (
                    17,
                    3,
                )
            return super().forward(batch)

    cfg.model = L(Needs)(input_format="RGB")
    assert len(list(analyze(cfg))) == 8


@pytest.fixture
def registered():
    """Return a function that registers records for a test, and returns the dataset's name."""
    names = []

    def register(records, **metadata):
        name = f"analyzed_{len(names)}"
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


class ToySegmenter(Toy):
    """A model that trains on images alone."""

    def forward(self, batch):
        return self.layer(batch[0]["image"][None].float()).mean()


def test_a_dataset_without_objects_is_used(cfg, registered, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (80, 60)).save(photo)
    record = {"file_name": str(photo), "height": 60, "width": 80, "image_id": 1}
    name = registered([record], stuff_classes=["sky", "grass"])
    cfg.dataloader.train.dataset.names = cfg.dataloader.val.dataset.names = name
    cfg.model = L(ToySegmenter)(input_format="RGB")
    text = "\n".join(analyze(cfg))
    assert f"image       {photo}" in text and "training    " in text


def test_a_dataset_without_images_is_replaced(cfg, registered):
    cfg.dataloader.val.dataset.names = name = registered([], thing_classes=["cat"])
    assert f"a random photo of 640 x 480, without data: dataset '{name}' has no images" in _toy(cfg)
    cfg.dataloader.val.dataset.names = []
    assert "without data: the loader has no dataset.names" in _toy(cfg)


def test_the_state_of_random_generators_is_restored(cfg):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    _toy(cfg)
    assert torch.equal(torch.rand(1), expected)


def test_a_step_that_fails_is_an_error_of_one_line(cfg):
    class Broken(Toy):
        def forward(self, batch):
            return self.frozen(batch[0]["image"].float())

    cfg.model = L(Broken)(input_format="RGB")
    with pytest.raises(UserError, match="the first step fails in model") as e:
        list(analyze(cfg))
    assert "\n" not in str(e.value)
