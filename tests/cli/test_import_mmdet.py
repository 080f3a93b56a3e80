"""`d2ext import-mmdet` writes a config that trains, and a table of what became of each field."""

import json
import shlex
import shutil

import pytest
import torch
from detectron2.config import instantiate

import d2ext
from d2ext import load_config
from d2ext.checkpoint.weights.mmdetection import to_mmdetection
from d2ext.config.mmdetection.importer import import_config
from d2ext.data.datasets.register import unregister_datasets
from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.via import read_via
from d2ext.preflight.plan import plan_run

BALLOON = "balloon/mask-rcnn_r50-caffe_fpn_ms-poly-1x_balloon.py"
OUTPUT = "mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon"
SMALL = [
    "train.init_checkpoint=",
    "dataloader.train.mapper.augmentations[0].short_edge_length=[64]",
    "dataloader.val.mapper.augmentations[0].short_edge_length=64",
    "dataloader.train.num_workers=0",
    "dataloader.val.num_workers=0",
]


@pytest.fixture(scope="module")
def configs(repo):
    """Return the folder of MMDetection's configs in the tests."""
    return repo / "tests" / "config" / "mmdetection" / "configs"


@pytest.fixture
def guide(tiny_root, tmp_path):
    """Lay out the balloons as MMDetection's guide does, in data/balloon."""
    root = tmp_path / "data" / "balloon"
    for split in ("train", "val"):
        shutil.copytree(tiny_root / "balloon" / split, root / split)
        via = root / split / "via_region_data.json"
        records = read_via(via, root / split, ["balloon"])
        content = to_coco(records, ["balloon"], root / split)
        (root / split / "annotation_coco.json").write_text(json.dumps(content))
    return root


@pytest.fixture(autouse=True)
def _no_datasets_left():
    """Remove what a config has registered, as if each test had a process of its own."""
    yield
    unregister_datasets()


def test_the_balloon_config_of_the_guide(d2ext_command, configs, guide, tmp_path):
    """The config is imported unchanged, and trains on the guide's folders."""
    done = d2ext_command("import-mmdet", configs / BALLOON)
    assert done.status == 0, done.stderr
    assert f"wrote {OUTPUT}.py and {OUTPUT}.md" in done.stdout
    assert ": 0 differ" not in done.stdout and " 0 unknown" in done.stdout
    assert f"train it with: d2ext train {OUTPUT}.py" in done.stdout
    cfg = load_config(f"{OUTPUT}.py")
    assert cfg.model.roi_heads.num_classes == 1 and cfg.model.input_format == "BGR"
    assert cfg.datasets.balloon_train.json_file == "data/balloon/train/annotation_coco.json"
    assert cfg.datasets.balloon_val.image_root == "data/balloon/val"
    assert cfg.datasets.balloon_train.palette == [[220, 20, 60]]
    assert (cfg.train.reference_world_size, cfg.train.reference_batch_size) == (16, 16)
    assert cfg.train.init_checkpoint.endswith("20200504_163245-42aa3d00.pth")
    assert cfg.dataloader.train.mapper.augmentations[0].short_edge_length[0] == 640
    table = (tmp_path / f"{OUTPUT}.md").read_text()
    assert "| `train_dataloader.batch_size` | `1` | set | train.reference_batch_size=16" in table
    small = [*SMALL, "train.reference_batch_size=1", "train.reference_world_size=1"]
    done = d2ext_command("train", f"{OUTPUT}.py", "--dry-run", *small)
    assert done.status == 0, done.stderr


def test_the_data_may_be_others(d2ext_command, configs, guide, tmp_path):
    """`data.*` exchanges the data of an imported config; those of the config may be absent."""
    name = "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
    assert d2ext_command("import-mmdet", configs / name, "--output", "mine.py").status == 0
    data = [
        f"data.{split}.{key}={guide / split / value}"
        for split in ("train", "val")
        for key, value in (("json", "annotation_coco.json"), ("images", ""))
    ]
    done = d2ext_command("train", "mine.py", "--dry-run", *data, *SMALL[:1], *SMALL[2:])
    assert done.status == 0, done.stderr
    assert load_config("mine.py", data).datasets.keys() == {"custom_train", "custom_val"}


def test_a_checkpoint_replaces_the_weights(d2ext_command, configs):
    done = d2ext_command("import-mmdet", configs / BALLOON, "epoch_12.pth")
    assert done.status == 0 and "load_from: train.init_checkpoint=epoch_12.pth" in done.stdout
    assert load_config(f"{OUTPUT}.py").train.init_checkpoint == "epoch_12.pth"


def test_training_a_config_of_mmdetection_names_the_import(d2ext_command, configs):
    done = d2ext_command("train", configs / BALLOON)
    path = configs / BALLOON
    assert done.status == 2 and done.stderr == (
        f"error: {path} is a config of MMDetection; `d2ext import-mmdet {shlex.quote(str(path))}`"
        " turns it into one of d2ext\n"
    )


def test_files_are_never_overwritten(d2ext_command, configs, tmp_path):
    (tmp_path / f"{OUTPUT}.md").write_text("mine")
    done = d2ext_command("import-mmdet", configs / BALLOON)
    assert done.status == 2
    assert done.stderr == f"error: {OUTPUT}.md already exists; give another name with --output\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{OUTPUT}.md"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import os\nos.system('touch ran')", "a.py:2: the import does not execute `os.system("),
        ("model = dict(type='YOLOX')", "model.type=YOLOX"),
        ("x = 1", "a.py has no section `model`; give a whole config, not a file of _base_"),
        ("_base_ = 'b.py'", "a.py:1: the base b.py does not exist"),
        (None, "the config file a.py does not exist"),
    ],
)
def test_errors_leave_nothing(d2ext_command, tmp_path, text, error):
    if text is not None:
        (tmp_path / "a.py").write_text(text)
    before = sorted(tmp_path.iterdir())
    done = d2ext_command("import-mmdet", "a.py")
    assert done.status == 2 and error in done.stderr and done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("a.txt", "--output a.txt is not a config file; give a name that ends with .py"),
        ("none/a.py", "the folder none of --output does not exist"),
    ],
)
def test_errors_of_the_output(d2ext_command, configs, output, error):
    done = d2ext_command("import-mmdet", configs / BALLOON, "--output", output)
    assert done.status == 2 and error in done.stderr


def test_a_trusted_config_is_executed(d2ext_command, configs, tmp_path):
    """Its differences are printed by field."""
    text = f"_base_ = {str(configs / BALLOON)!r}\nimport mmdet\nrate = sum([0.5, 0.5])\n"
    text += "if rate:\n    optim_wrapper = dict(optimizer=dict(lr=rate))\nstrange = 'abc'\n"
    text += "custom_hooks = [dict(type='MyHook', a=1)]"
    (tmp_path / "trusted-config.py").write_text(text)
    assert d2ext_command("import-mmdet", "trusted-config.py").status == 2
    done = d2ext_command("import-mmdet", "trusted-config.py", "--trust")
    assert done.status == 0, done.stderr
    assert load_config("trusted_config.py").optimizer.lr == 1
    assert "  custom_hooks.0.{type, a}: MyHook is not supported" in done.stdout
    assert "unknown: not known to d2ext, and ignored\n  rate\n  strange\n" in done.stdout


def test_training_without_validation(configs, guide, tmp_path):
    text = f"_base_ = {str(configs / BALLOON)!r}\n"
    text += "".join(
        f"{s}_{p} = None\n" for s in ("val", "test") for p in ("dataloader", "evaluator")
    )
    (tmp_path / "a.py").write_text(f"{text}val_cfg = test_cfg = None")
    import_config(tmp_path / "a.py", output=tmp_path / "mine.py")
    cfg = load_config(tmp_path / "mine.py", [*SMALL[:2], "train.device=cpu"])
    plan = plan_run(cfg, "mine")
    assert plan.classes == ["balloon"] and cfg.train.eval_period == 0


def test_classes_are_numbered_as_the_annotations(configs, guide, tmp_path):
    """MMDetection numbers labels by the COCO file, while its checkpoints name them by the config.

    The first row of a checkpoint's head is the file's first class, for evaluations and predictions.
    """
    guide = guide.rename(guide.with_name("pets"))
    for split in ("train", "val"):
        file = guide / split / "annotation_coco.json"
        content = json.loads(file.read_text())
        content["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
        file.write_text(json.dumps(content))
    meta = "dict(classes=('cat', 'dog'), palette=[(1, 1, 1), (2, 2, 2)])"
    text = f"_base_ = {str(configs / BALLOON)!r}\n"
    for split in ("train", "val", "test"):
        dataset = f"dict(data_root='data/pets/', metainfo={meta})"
        text += f"{split}_dataloader = dict(dataset={dataset})\n"
    text += "model = dict(backbone=dict(init_cfg=None, depth=18), test_cfg=dict(rcnn=dict("
    text += "max_per_img=3)), neck=dict(in_channels=[64, 128, 256, 512]), roi_head=dict("
    text += "bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2)))\n"
    (tmp_path / "pets.py").write_text(text)
    done = import_config(tmp_path / "pets.py", "pets.pth", tmp_path / "mine.py")
    assert "in the wrong order, ['cat', 'dog']" in str(done)
    cfg = load_config(done.config, [*SMALL[1:], "train.device=cpu"])
    assert cfg.datasets.pets_train.classes == ["dog", "cat"]
    assert cfg.datasets.pets_train.palette == [[2, 2, 2], [1, 1, 1]]

    model = instantiate(cfg.model)
    head = model.roi_heads.box_predictor.cls_score
    torch.nn.init.zeros_(head.weight)
    head.bias.data[0] = 9
    tensors, _ = to_mmdetection(model.state_dict())
    meta = {"dataset_meta": {"classes": ("cat", "dog")}}
    torch.save({"meta": meta, "state_dict": tensors}, tmp_path / "pets.pth")
    d2ext.evaluate(cfg, tmp_path / "pets.pth", tmp_path / "run")
    found = json.loads((tmp_path / "run/eval/predictions/pets_val.json").read_text())
    assert {detection["category_id"] for detection in found} == {1}
    predictor = d2ext.Predictor.from_config(
        done.config, tmp_path / "pets.pth", ["train.device=cpu"]
    )
    assert predictor.classes == ["dog", "cat"]
