"""Names of version 0.1 in configs, overrides, fingerprints and imports."""

import importlib
import pydoc

import pytest
from omegaconf import OmegaConf

from d2ext.checkpoint.fingerprint import differences
from d2ext.config.load import load_config
from d2ext.config.renamed import RENAMED, current_name
from d2ext.config.yaml_io import saved_text
from d2ext.data.datasets.register import register_datasets
from d2ext.errors import UserError

RECIPE = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
# Everything in version 0.1 (commit 926f172) that a config can name: datasets, loaders, samplers,
# mappers, metrics, parts of a model, and functions that build them.
NAMEABLE = [
    "d2ext.data.catalog.Dataset",
    "d2ext.data.catalog.annotated_dataset",
    "d2ext.data.catalog.coco_dataset",
    "d2ext.data.catalog.middle_dataset",
    "d2ext.data.catalog.via_dataset",
    "d2ext.data.catalog.with_classes",
    "d2ext.data.loader.Loader",
    "d2ext.data.loader.build_test_loader",
    "d2ext.data.loader.build_train_loader",
    "d2ext.data.mapper.Mapper",
    "d2ext.data.mapping.ReportFailures",
    "d2ext.data.mapping.RleAsBitmaps",
    "d2ext.data.sampler.BatchSampler",
    "d2ext.data.sampler.EpochOrder",
    "d2ext.data.training_set.TrainingSet",
    "d2ext.data.training_set.evaluation_set",
    "d2ext.data.training_set.training_set",
    "d2ext.evaluation.cityscapes.CityscapesMetric",
    "d2ext.evaluation.coco.CocoMetric",
    "d2ext.evaluation.lvis.LvisMetric",
    "d2ext.evaluation.open_images.OpenImagesMetric",
    "d2ext.evaluation.voc.VocMetric",
    "d2ext.modeling.roi_align.BagROIAlign",
    "d2ext.modeling.sampled_rpn.SampledRPN",
    "d2ext.modeling.timm_backbone.TimmBackbone",
]
# Other names that mappers or dataset functions of users import.
IMPORTED = ["d2ext.data.classes.select_classes", "d2ext.data.photo.read_photo"]


@pytest.mark.parametrize("name", [*NAMEABLE, *IMPORTED])
def test_each_name_of_0_1_maps_to_the_same_object(name):
    found = pydoc.locate(current_name(name))
    assert found.__qualname__ == name.rpartition(".")[2]
    assert current_name(name) == f"{found.__module__}.{found.__qualname__}"


def test_the_table_has_all_modules_that_moved():
    modules = {name.rpartition(".")[0] for name in [*NAMEABLE, *IMPORTED]}
    assert set(RENAMED) == {module for module in modules if pydoc.locate(module) is None}
    for new in RENAMED.values():
        importlib.import_module(new)
        assert current_name(new) == new


@pytest.mark.parametrize(
    "name",
    ["my_data.catalog.f", "d2ext.data.catalogue.f", "d2ext.nowhere", "d2ext.data.records.columns"],
)
def test_other_names_do_not_change(name):
    assert current_name(name) == name


def test_a_saved_config_of_0_1_loads_as_a_current_one(repo, tmp_path):
    present = saved_text(load_config(repo / RECIPE))[0]
    old = present
    for module, new in RENAMED.items():
        old = old.replace(f"_target_: {new}.", f"_target_: {module}.")
    assert old.count("d2ext.data.catalog.via_dataset") == 2
    (tmp_path / "config.yaml").write_text(old)
    assert saved_text(load_config(tmp_path / "config.yaml"))[0] == present


def test_a_python_config_may_name_modules_of_0_1(repo):
    """The `_target_` values are strings, as in docs/metrics.md of version 0.1."""
    file = repo / "tests" / "data" / "run_0_1" / "recipe.py"
    cfg = load_config(file)
    assert cfg.dataloader.val.mapper._target_ == "d2ext.data.loading.mapper.Mapper"
    text = saved_text(cfg)[0]
    named = [module for module in RENAMED if f"{module}." in file.read_text()]
    assert len(named) == 5 and not any(f"{module}." in text for module in named)


@pytest.mark.parametrize(
    "overrides",
    [
        ["datasets.balloon_val._target_=d2ext.data.catalog.coco_dataset"],
        ["datasets.balloon_val={_target_: d2ext.data.catalog.coco_dataset, image_root: a}"],
        ["+datasets.balloon_val={_target_: d2ext.data.catalog.coco_dataset}"],
        [
            "datasets.balloon_val._target_=d2ext.data.catalog.coco_dataset",
            "datasets.balloon_val.boxes_as_masks=True",  # a parameter of the function
        ],
    ],
)
def test_overrides_may_name_modules_of_0_1(repo, overrides):
    cfg = load_config(repo / RECIPE, overrides)
    assert cfg.datasets.balloon_val._target_ == "d2ext.data.datasets.declare.coco_dataset"


def test_an_override_with_the_name_of_0_1_keeps_the_fields(repo):
    value = "{_target_: d2ext.data.catalog.via_dataset, image_root: elsewhere}"
    cfg = load_config(repo / RECIPE, [f"datasets.balloon_val={value}"])
    assert cfg.datasets.balloon_val.image_root == "elsewhere"
    assert cfg.datasets.balloon_val.classes == ["balloon"]


def test_targets_of_users_do_not_change(repo):
    cfg = load_config(repo / RECIPE, ["datasets.balloon_val._target_=my_data.catalog.f"])
    assert cfg.datasets.balloon_val._target_ == "my_data.catalog.f"


def test_fingerprints_are_compared_by_current_names():
    def made(mapper):
        return {"config": {"dataloader.train.mapper._target_": mapper}, "data": {}}

    now = made("d2ext.data.loading.mapper.Mapper")
    assert not differences(made("d2ext.data.mapper.Mapper"), now)
    assert "my.Mapper before" in differences(made("my.Mapper"), now)[0]


@pytest.mark.parametrize(
    "line",
    [
        "from d2ext.data.catalog import Dataset",
        "from d2ext.data import catalog",
        "import d2ext.data.catalog",
    ],
)
def test_an_import_of_a_moved_module_names_its_new_location(tmp_path, monkeypatch, line):
    words = "d2ext.data.catalog is d2ext.data.datasets.declare since 0.2; change the import"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.py").write_text(f"import os\n{line}\n")
    with pytest.raises(UserError) as e:
        load_config("config.py")
    assert str(e.value) == f"config.py:2: {words}"
    # The import may be in a module that a config imports or a config.yaml names.
    (tmp_path / "my_photos.py").write_text(f"\n\n{line}\n")
    (tmp_path / "config.py").write_text("from my_photos import load\n")
    with pytest.raises(UserError) as e:
        load_config("config.py")
    assert str(e.value) == f"my_photos.py:3: {words}"
    with pytest.raises(UserError) as e:
        register_datasets(OmegaConf.create({"mine": {"_target_": "my_photos.load"}}))
    place = f"datasets.mine: my_photos.load cannot be imported: my_photos.py:3: {words}"
    assert str(e.value) == place


def test_a_failing_module_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_photos.py").write_text("import d2ext.nowhere\n")
    with pytest.raises(UserError, match="failing_photos.load cannot be imported: ModuleNotFound"):
        register_datasets(OmegaConf.create({"mine": {"_target_": "failing_photos.load"}}))
