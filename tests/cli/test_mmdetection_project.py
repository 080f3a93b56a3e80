"""The walkthrough of docs/from_mmdetection.md: a project of MMDetection continues in d2ext."""

import json
import re
import shlex
import shutil

import pytest
import torch

import d2ext
from d2ext.checkpoint.weights.convert import convert_to_mmdetection
from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.via import read_via
from tests.balloons import ANNOTATIONS, write_balloons

CONFIGS = "tests/config/mmdetection/configs"
THEIRS = "mask-rcnn_r50-caffe_fpn_ms-poly-1x_balloon"
GUIDE = f"configs/balloon/{THEIRS}.py"
# What the user changed in the guide's config; the photos are small.
CHANGES = """
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    dict(type='RandomChoiceResize', scales=[(213, 128), (213, 160)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(213, 160), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
train_dataloader['dataset']['pipeline'] = train_pipeline
train_dataloader['num_workers'] = 0
val_dataloader['dataset']['pipeline'] = test_pipeline
optim_wrapper = dict(optimizer=dict(lr=1e-6))  # the weights are random
"""


@pytest.fixture
def project(tmp_path, repo, monkeypatch):
    """Return a folder with config, checkpoint and COCO files, after changing to it."""
    folder = tmp_path / "my project"
    shutil.copytree(repo / CONFIGS, folder / "configs")
    with open(folder / GUIDE, "a", encoding="utf-8") as config:
        config.write(CHANGES)
    data = folder / "data" / "balloon"
    write_balloons(data, num_train=3, num_val=2)
    for split in ("train", "val"):
        records = read_via(data / split / ANNOTATIONS, data / split, ["balloon"])
        coco = to_coco(records, ["balloon"], data / split)
        (data / split / "annotation_coco.json").write_text(json.dumps(coco))
    (folder / "work_dirs" / THEIRS).mkdir(parents=True)
    _write_checkpoint(folder / "work_dirs" / THEIRS / "epoch_12.pth")
    monkeypatch.chdir(folder)
    return folder


def _write_checkpoint(path):
    """Write random weights of the guide's model under MMDetection's names."""
    from detectron2.config import instantiate

    model = d2ext.get_config("mask_rcnn/mask_rcnn_r50_caffe_fpn_ms_poly_1x_coco.py").model
    model.roi_heads.num_classes = 1
    torch.manual_seed(0)
    ours = path.with_name("ours.pth")
    torch.save({"model": instantiate(model).state_dict(), "classes": ["balloon"]}, ours)
    convert_to_mmdetection(ours, path)
    ours.unlink()


@pytest.mark.slow
def test_a_project_of_mmdetection_moves_as_the_page_says(project, repo, d2ext_command):
    """The page's commands run in order, and the run resumes after its second epoch."""
    page = (repo / "docs" / "from_mmdetection.md").read_text(encoding="utf-8")
    block = re.search(r"## Move a project\n.*?```bash\n(.*?)```", page, re.DOTALL)[1]
    commands = [shlex.split(line) for line in block.replace("\\\n", "").splitlines()]
    done = []
    for words in commands:
        done.append(d2ext_command(*words[1:]))
        assert done[-1].status == 0, f"{shlex.join(words)}\n{done[-1].stdout}\n{done[-1].stderr}"
    imported, dry, evaluated, trained, resumed, _ = done
    assert "0 unknown" in imported.stdout and "differs" in imported.stdout
    assert (project / "balloon.md").is_file()
    run = project / "work_dirs" / "balloon"
    log = (run / "log.txt").read_text()
    loaded = re.search(r"Loaded (\d+) of the model's (\d+) tensors from \S*epoch_12.pth", log)
    assert loaded and loaded[1] == loaded[2]
    results = json.loads((run / "results.json").read_text())["last"]
    assert results["iteration"] == 9  # three epochs of three photos
    assert any(name.endswith("/coco/segm/AP") for name in results["results"])
    assert "resum" in resumed.stdout.lower() and "resum" not in trained.stdout.lower()
