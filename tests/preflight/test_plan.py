"""Preflight decisions for machines other than the one that runs the tests."""

import sysconfig

import pytest
import torch

from d2ext.config.load import load_config
from d2ext.errors import UserError
from d2ext.launch.device import choose_device, threads_per_process
from d2ext.preflight.plan import plan_run


def test_the_device_depends_on_the_visible_gpus(monkeypatch):
    assert choose_device("cuda", num_gpus=2, visible=2)[0] == "cuda"
    assert choose_device("cpu", num_gpus=1, visible=2)[0] == "cpu"
    device, words = choose_device("cuda", num_gpus=1, visible=0)
    assert device == "cpu" and "no GPU is visible" in words
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert choose_device("cpu", 2)[1] == (
        "CPU, 3 threads for each of 2 processes; one process would use 6 on the same cores"
    )
    assert choose_device("cpu", 2, gpu_each=True)[1] == "CPU, 6 threads"  # of srun's task
    assert threads_per_process(3, "cuda") == 1  # the loader workers get as many
    assert choose_device("cuda", num_gpus=4, gpu_each=True, visible=1)[0] == "cuda"  # srun's tasks
    with pytest.raises(UserError, match="--num-gpus 3 is more than .* give at most 2"):
        choose_device("cuda", num_gpus=3, visible=2)


@pytest.fixture
def plan(repo, tiny, monkeypatch):
    """Return a function that returns the text of a plan for a GPU."""
    monkeypatch.setenv("D2EXT_PLAN_GPUS", "1")

    def lines(*overrides):
        recipe = repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
        cfg = load_config(recipe, [*tiny, *overrides])
        return "\n".join(plan_run(cfg, "run", validate=False).lines)

    return lines


def test_compiling_for_a_gpu_needs_a_c_compiler_and_pythons_headers(plan, monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "gcc").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = sysconfig.get_path
    get_path = lambda name, *scheme: str(tmp_path) if name == "include" else found(name, *scheme)  # noqa: E731
    monkeypatch.setattr("sysconfig.get_path", get_path)
    (tmp_path / "Python.h").touch()
    assert plan("train.compile.enabled=True")
    (tmp_path / "Python.h").unlink()
    with pytest.raises(UserError, match="needs Python.h, which is not in .*python3-dev"):
        plan("train.compile.enabled=True")
    (tmp_path / "gcc").unlink()
    with pytest.raises(UserError, match="needs a C compiler, .* install gcc, or set"):
        plan("train.compile.enabled=True")


@pytest.mark.parametrize(
    ("capability", "dtype", "advice"),
    [
        ((7, 5), "bfloat16", "precision   this GPU emulates bfloat16"),
        ((8, 0), "float16", "precision   train.amp.dtype=bfloat16 is as fast"),
        ((7, 5), "float16", None),
        ((9, 0), "bfloat16", None),
    ],
)
def test_the_precision_that_suits_the_gpu_is_advised(plan, monkeypatch, capability, dtype, advice):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda i=0: capability)
    monkeypatch.setattr("torch.cuda.get_arch_list", list)
    options = ["train.amp.enabled=True", f"train.amp.dtype={dtype}"]
    assert "precision" not in plan(*options)  # of another machine's GPU
    monkeypatch.delenv("D2EXT_PLAN_GPUS")
    text = plan(*options)
    assert advice in text if advice else "precision" not in text


def test_a_schedule_made_for_more_images_gets_a_note(repo, tiny):
    def lines(*overrides):
        recipe = repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
        cfg = load_config(recipe, [*tiny, *overrides])
        return "\n".join(plan_run(cfg, "run", validate=False).lines)

    assert "train.max_epochs=24 is a usual length" in lines("train.max_iter=90000")
    assert "usual length" not in lines("train.max_iter=450")  # 150 epochs
    assert "usual length" not in lines("train.max_epochs=1000")  # chosen for this dataset


def test_the_folder_of_another_programs_run(repo, tiny, tmp_path):
    """Its run is not resumed, and not moved aside if its checkpoint is to be used."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    theirs = folder / "epoch_12.pth"
    torch.save({"meta": {}, "state_dict": {}}, theirs)
    recipe = repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"

    def plan(weights, **flags):
        overrides = [f"train.output_dir={folder}", f"train.init_checkpoint={weights}"]
        return plan_run(load_config(recipe, [*tiny, *overrides]), "run", validate=False, **flags)

    for flags in ({}, {"resume": True}):
        with pytest.raises(UserError, match="another program, such as epoch_12.pth; choose"):
            plan("", **flags)
    with pytest.raises(UserError, match="overwrite=True would move train.init_checkpoint=.*12.pth"):
        plan(theirs, overwrite=True)
    with pytest.raises(UserError, match="overwrite=True would move resume_from=.*12.pth"):
        plan("", overwrite=True, resume_from=str(theirs))
    assert plan("", overwrite=True).overwrite
    assert [path.name for path in folder.iterdir()] == [theirs.name]


@pytest.mark.parametrize("preset", ["none", "light", "strong", "aerial"])
def test_presets_pass_preflight(repo, tiny, tmp_path, preset):
    recipe = repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
    cfg = load_config(recipe, [*tiny, f"data.augmentation={preset}"])
    plan = plan_run(cfg, "run", validate=False)
    [line] = [line for line in plan.lines if line.startswith("augment ")]
    assert line.startswith(f"augment     {preset}: ResizeShortestEdge, RandomCrop")
    assert ("copy-paste (50 %)" in line) == (preset == "strong")
    assert cfg.data.augmentation == preset and plan.built.cfg.data.augmentation is None
    weights = tmp_path / "weights.pth"
    weights.touch()
    evaluation = plan_run(cfg, "run", eval_only=True, weights=str(weights))
    assert not any(line.startswith("augment ") for line in evaluation.lines)


def test_pasting_without_masks_is_refused_before_the_first_sample(repo, tiny):
    """The preset turns it off instead, and says so."""
    recipe = repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
    boxes = ["model.roi_heads.mask_in_features=null", "model.roi_heads.mask_pooler=null"]
    boxes += ["model.roi_heads.mask_head=null", "dataloader.train.mapper.use_instance_mask=False"]
    boxes += ["dataloader.train.mapper.recompute_boxes=False", "train.best.metric=null"]
    paste = "{_target_: d2ext.data.loading.augment.copy_paste.CopyPaste}"
    paste = f"+dataloader.train.copy_paste={paste}"
    with pytest.raises(UserError, match=r"copy_paste needs masks, but .*use_instance_mask=False;"):
        plan_run(load_config(recipe, [*tiny, *boxes, paste]), "run", validate=False)
    cfg = load_config(recipe, [*tiny, *boxes, "data.augmentation=strong"])
    lines = "\n".join(plan_run(cfg, "run", validate=False).lines)
    assert "no copy-paste, because the model has no masks" in lines
