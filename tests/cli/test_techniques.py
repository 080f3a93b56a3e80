"""Each training technique has its effect in a real training, and so do all of them together."""

import json
import os
import subprocess
import sys

import pytest
import torch

LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
AP = "balloon_val/coco/segm/AP"


def _load(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=True)


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def _losses(folder):
    return [line["total_loss"] for line in _lines(folder) if "total_loss" in line]


def _results(folder):
    return json.loads((folder / "results.json").read_text())


def _scores(folder):
    return [tuple(score) for score in _results(folder)["scores"]]


def _same(a, b, **tolerance):
    return all(torch.allclose(a[key].float(), b[key].float(), **tolerance) for key in a)


def test_clipping_logs_the_gradient_norm(train_net, tiny, tmp_path):
    done = train_net("--no-validate", "--work-dir", tmp_path, *tiny, "train.clip_grad_norm=0.5")
    assert done.status == 0, done.stderr
    norms = [line["grad_norm"] for line in _lines(tmp_path) if "grad_norm" in line]
    assert len(norms) == 4 and all(norm > 0 for norm in norms)


def test_bfloat16_trains_about_the_same(train_net, tiny, trained, tmp_path):
    options = ["train.max_iter=2", "train.amp.enabled=True", "train.amp.dtype=bfloat16"]
    done = train_net("--no-validate", "--work-dir", tmp_path, *tiny, *options)
    assert done.status == 0, done.stderr
    first = _losses(tmp_path)[0]
    assert first != _losses(trained)[0] and first == pytest.approx(_losses(trained)[0], rel=0.1)
    assert all(t.dtype != torch.bfloat16 for t in _load(tmp_path)["model"].values())


def test_averaged_weights_are_evaluated_and_resumed(train_net, tiny, trained, tmp_path):
    options = [*tiny, "train.ema_decay=0.9", "optimizer.lr=0.01", "train.checkpointer.period=2"]
    done = train_net("--work-dir", tmp_path / "whole", *options)
    assert done.status == 0, done.stderr
    whole = _load(tmp_path / "whole")
    assert not _same(whole["model"], whole["ema"])
    results = _results(tmp_path / "whole")["last"]["results"]
    done = train_net("--work-dir", tmp_path / "whole", "--eval-only", "--weights", "last", *options)
    assert done.status == 0 and "averaged weights (EMA)" in done.stdout
    assert _results(tmp_path / "whole" / "eval")["last"]["results"] == results
    start = tmp_path / "whole" / "model_0000001.pth"
    done = train_net(
        "--no-validate", "--work-dir", tmp_path / "rest", "--resume-from", start, *options
    )
    assert done.status == 0, done.stderr
    rest = _load(tmp_path / "rest")
    assert all(torch.equal(rest["ema"][key], whole["ema"][key]) for key in whole["ema"])
    # If the checkpoint has no average, the average starts from its weights.
    start = trained / "model_0000003.pth"
    options += ["train.max_iter=5"]
    done = train_net(
        "--no-validate", "--work-dir", tmp_path / "more", "--resume-from", start, *options
    )
    assert done.status == 0 and "the average starts from its weights" in done.stdout


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_checkpoint_has_the_best_score(train_net, tiny, tmp_path, mode):
    options = [*tiny, "train.eval_period=1", f"train.best.mode={mode}", "optimizer.lr=0.01"]
    options += ["train.best.metric=coco/bbox/AR100"]
    done = train_net("--work-dir", tmp_path, *options)
    assert done.status == 0, done.stderr
    better = max if mode == "max" else min
    number, score = better(_scores(tmp_path), key=lambda s: s[1])
    best = _results(tmp_path)["best"]
    assert best["results"]["balloon_val/coco/bbox/AR100"] == score
    assert best["iteration"] == number == _load(tmp_path, "model_best.pth")["iterations_done"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert len({score for _, score in _scores(tmp_path)}) > 1  # or it proves nothing


def test_a_resumed_run_keeps_the_best_score(train_net, tiny, tmp_path):
    options = [*tiny, "train.eval_period=1", "optimizer.lr=0.01", "train.checkpointer.period=1"]
    options += ["train.best.metric=coco/bbox/AR100", "train.checkpointer.max_to_keep=1"]
    for folder in ("whole", "parts"):
        lengths = [4] if folder == "whole" else [2, 4]
        for length in lengths:
            # A constant rate, so that the shorter first part follows the same schedule.
            done = train_net(
                "--work-dir",
                tmp_path / folder,
                "--resume",
                *options,
                "lr_multiplier.scheduler.end_value=1.0",
                "train.warmup_iters=0",
                f"train.max_iter={length}",
            )
            assert done.status == 0, done.stderr
    whole, parts = _results(tmp_path / "whole"), _results(tmp_path / "parts")
    assert whole == parts and len(whole["scores"]) == 4
    draws = [
        {file.name: file.read_bytes() for file in (tmp_path / folder / "resamples").iterdir()}
        for folder in ("whole", "parts")
    ]
    assert draws[0] == draws[1]
    assert draws[0].keys() == {whole[which]["samples"] for which in ("last", "best")}
    files = [_load(tmp_path / f, "model_best.pth")["iterations_done"] for f in ("whole", "parts")]
    assert files[0] == files[1] == whole["best"]["iteration"]


def test_an_evaluation_lost_to_a_kill_is_run_on_resume(train_net, tiny, tmp_path):
    options = [*tiny, "train.eval_period=2", "train.checkpointer.period=2"]
    assert train_net("--work-dir", tmp_path, *options).status == 0
    whole = _results(tmp_path)
    # As if the run had been killed during the first evaluation.
    (tmp_path / "results.json").unlink()
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert train_net("--work-dir", tmp_path, "--resume", *options).status == 0
    assert _results(tmp_path) == whole


def test_early_stopping_ends_a_complete_run(train_net, tiny, tmp_path):
    options = [*tiny, "train.eval_period=1", "train.early_stopping_patience=1"]
    options += ["optimizer.lr=1e-12"]  # so that nothing improves
    done = train_net("--work-dir", tmp_path, *options)
    assert done.status == 0, done.stderr
    assert "Ended early at iteration 2: 1 evaluation did not improve" in done.stdout
    assert _load(tmp_path)["iterations_done"] == 2 and len(_scores(tmp_path)) == 2
    done = train_net("--work-dir", tmp_path, "--resume", *options)
    assert done.status == 0 and "Nothing left to train" in done.stdout
    done = train_net(
        "--work-dir", tmp_path, "--resume", *options, "train.early_stopping_patience=2"
    )
    assert done.status == 0 and "Ended early at iteration 3" in done.stdout


def test_a_compiled_backbone_has_the_same_keys_and_losses(train_net, tiny, trained, tmp_path):
    """The backend is the one that needs no compiler."""
    options = ["train.max_iter=1", "train.compile.enabled=True", "train.compile.backend=eager"]
    done = train_net("--no-validate", "--work-dir", tmp_path, *tiny, *options)
    assert done.status == 0, done.stderr
    assert _losses(tmp_path)[0] == pytest.approx(_losses(trained)[0], rel=1e-4)
    assert _load(tmp_path)["model"].keys() == _load(trained)["model"].keys()


def test_sync_bn_updates_its_statistics(train_net, tiny, tmp_path):
    options = ["train.max_iter=1", "model.backbone.norm=BN", "train.sync_bn=True"]
    done = train_net("--no-validate", "--work-dir", tmp_path, *tiny, *options)
    assert done.status == 0, done.stderr
    weights = _load(tmp_path)["model"]
    assert weights["backbone.fpn_output3.norm.running_mean"].abs().sum() > 0


def test_deterministic_runs_are_reproducible(train_net, tiny, tmp_path):
    for name in "ab":
        options = [*tiny, "train.max_iter=2", "train.deterministic=True"]
        done = train_net("--no-validate", "--work-dir", tmp_path / name, *options)
        assert done.status == 0, done.stderr
    assert not torch.are_deterministic_algorithms_enabled()  # restored after each run
    a, b = (_load(tmp_path / name)["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def sizes():
    return ["dataloader.tta.min_sizes=[64,96]", "dataloader.tta.max_size=192"]


def test_test_time_augmentation_changes_the_detections(train_net, tiny, trained, sizes, tmp_path):
    evaluate = ["--eval-only", "--weights", trained / "model_final.pth"]
    sensitive = [*tiny, "model.roi_heads.box_predictor.test_score_thresh=0.0"]
    found = {}
    for name, flags, options in (
        ("plain", [], []),
        ("one", ["--tta"], ["dataloader.tta.min_sizes=[96]", "dataloader.tta.flip=False"]),
        ("flip", ["--tta"], ["dataloader.tta.min_sizes=[96]"]),
        ("all", ["--tta"], sizes),
    ):
        work = tmp_path / name
        done = train_net(*evaluate, *flags, "--work-dir", work, *sensitive, *options)
        assert done.status == 0, done.stderr
        found[name] = json.loads((work / "eval/predictions/balloon_val.json").read_text())
    assert all("segmentation" in p for p in found["all"])
    boxes = {name: [p["bbox"] for p in ps[:5]] for name, ps in found.items()}
    # A single version at the size of the plain evaluation gives its boxes.
    assert boxes["one"] == [pytest.approx(box, abs=1.0) for box in boxes["plain"]]
    for name in ("flip", "all"):
        assert boxes[name] != [pytest.approx(box, abs=1.0) for box in boxes["plain"]]
    # A threshold of 1 leaves no detections, which must not fail.
    nothing = [*tiny, "model.roi_heads.box_predictor.test_score_thresh=1.0", *sizes]
    done = train_net(*evaluate, "--tta", "--work-dir", tmp_path / "nothing", *nothing)
    assert done.status == 0, done.stderr


def test_expect_sets_the_exit_status(train_net, tiny, tmp_path):
    options = ["--expect", f"{AP}>=0", "--work-dir", tmp_path, *tiny, "train.max_iter=1"]
    assert train_net(*options).status == 0
    done = train_net("--resume", "--expect", f"{AP}<=-1", *options)
    assert done.status == 1 and f"error: expected {AP}<=-1, got " in done.stderr
    done = train_net("--eval-only", "--weights", "last", "--expect", f"{AP}>100", *options)
    assert done.status == 1


@pytest.mark.parametrize(
    ("flags", "options", "words"),
    [
        ("", "train.amp.enabled=True train.device=cpu", "float16 needs a GPU"),
        ("", "train.amp.dtype=int8", "train.amp.dtype='int8': takes float16 or bfloat16"),
        ("", "train.ema_decay=1.5", "takes float or null, above 0 and below 1"),
        ("", "train.clip_grad_norm=0", "train.clip_grad_norm=0: takes"),
        ("", "train.best.mode=most", "takes max or min"),
        ("", "train.early_stopping_patience=0", "1 or more"),
        ("--no-validate", "train.early_stopping_patience=2", "which --no-validate skips"),
        (
            "",
            "train.best.metric=null train.early_stopping_patience=2",
            "patience needs train.best.metric",
        ),
        (
            "",
            "train.eval_period=0 train.early_stopping_patience=2",
            "but with train.eval_period=0",
        ),
        ("", "train.best.metric=voc/AP50", "the evaluation will not return balloon_val/voc/AP50"),
        ("", "train.best.metric=coco/segm/mAP", "results include balloon_val/coco/bbox/AP, "),
        (f"--no-validate --expect {AP}>=1", "", "--expect needs the evaluation"),
        (f"--expect {AP.lower()}>=1", "", "evaluation will not return balloon_val/coco/segm/ap"),
        ("--expect AP=1", "", "give a result and its bound"),
        ("--tta", "", "--tta needs --eval-only"),
        ("--eval-only --tta", "dataloader.tta=null", "needs dataloader.tta"),
        ("--eval-only --tta", "dataloader.tta.min_sizes=[]", "dataloader.tta.min_sizes=[]: give"),
        (
            "",
            "train.compile.enabled=True +train.compile.mode=fast",
            "train.compile cannot be built",
        ),
        ("", "train.compile.enabled=True train.compile.backend=fast", "choose from aot_eager"),
        ("", "train.sync_bn=True", "no BatchNorm to synchronize"),
    ],
)
def test_contradictory_options_are_one_line_errors(
    train_net, tiny, tmp_path, flags, options, words
):
    work = ["--work-dir", tmp_path / "run"]
    done = train_net(*flags.split(), *work, *tiny, *options.split())
    assert done.status == 2, done.stdout
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_all_together_with_accumulation_in_two_processes(train_net, tiny, tmp_path, compiled):
    """2 x 2 micro-batches equal 1 x 4, with every technique that does not mix images."""
    common = [*tiny, "train.max_iter=2", "train.reference_batch_size=4", "train.eval_period=1"]
    common += ["train.reference_world_size=4"]
    common += ["train.ema_decay=0.9", "train.clip_grad_norm=0.5", "train.amp.enabled=True"]
    common += ["train.amp.dtype=bfloat16", "train.best.metric=coco/bbox/AR100"]
    common += ["train.early_stopping_patience=5", "train.deterministic=True", "optimizer.lr=0.001"]
    common += ["train.checkpointer.max_to_keep=1", "train.checkpointer.period=1"]
    common += [f"train.compile.enabled={compiled}", "train.compile.backend=eager"]
    for name, flags, options in (
        ("one", [], ["train.accumulate=4"]),
        ("two", ["--num-gpus", 2], ["train.accumulate=2"]),
    ):
        done = train_net(*flags, "--work-dir", tmp_path / name, *common, *options)
        assert done.status == 0, done.stderr
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=1e-3)
    one, two = _load(tmp_path / "one"), _load(tmp_path / "two")
    for kind in ("model", "ema"):
        assert _same(two[kind], one[kind], rtol=1e-2, atol=1e-4), kind
    assert [i for i, _ in _scores(tmp_path / "two")] == [1, 2]
    assert _load(tmp_path / "two", "model_best.pth").keys() == two.keys()
    kept = [p.name for p in (tmp_path / "two").glob("model_0*.pth")]
    assert kept == ["model_0000001.pth"]


@pytest.mark.slow
def test_two_processes_stop_early_together_and_synchronize(repo, train_net, tiny, sizes, tmp_path):
    """Rank 0 decides about early stopping and --expect; SyncBN and --tta work on 2 ranks."""
    command = [sys.executable, repo / "tools/train_net.py", "--config-file", repo / LITE0]
    command += ["--num-gpus", "2"]
    common = ["--work-dir", str(tmp_path / "run"), *tiny, *sizes, "model.backbone.norm=BN"]
    common += ["train.eval_period=1", "train.early_stopping_patience=1", "optimizer.lr=1e-12"]
    common += ["train.reference_world_size=2", "train.sync_bn=True", "train.max_iter=9"]
    common += ["train.accumulate=2", "train.reference_batch_size=4"]

    def run(*flags):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = [*command, *flags, *common]
        return subprocess.run(process, env=environment, capture_output=True, text=True)

    done = run("--expect", f"{AP}>100")
    assert done.returncode == 1, done.stderr
    assert f"expected {AP}>100" in done.stderr and "Ended early at iteration" in done.stdout
    evaluate = ["--eval-only", "--weights", "last", "--tta"]
    done = run(*evaluate)
    assert done.returncode == 0, done.stderr
    two = _results(tmp_path / "run" / "eval")["last"]["results"]
    done = train_net(*evaluate, *common)
    assert done.status == 0, done.stderr
    assert _results(tmp_path / "run" / "eval")["last"]["results"] == two


@pytest.mark.slow
def test_frozen_parts_stay_as_they_are_through_averages_resumes_and_ranks(
    train_net, tiny, tmp_path
):
    options = [*tiny, "train.freeze=[backbone.bottom_up]", "train.ema_decay=0.9"]
    options += ["train.checkpointer.period=2"]
    done = train_net("--no-validate", "--work-dir", tmp_path / "whole", *options)
    assert done.status == 0, done.stderr
    assert "Frozen by train.freeze=[backbone.bottom_up]: backbone.bottom_up" in done.stdout
    whole = _load(tmp_path / "whole")
    start = tmp_path / "whole" / "model_0000001.pth"
    folder = tmp_path / "rest"
    done = train_net("--no-validate", "--work-dir", folder, "--resume-from", start, *options)
    assert done.status == 0, done.stderr
    rest = _load(folder)
    assert _same(rest["model"], whole["model"]) and _same(rest["ema"], whole["ema"])
    folder = tmp_path / "ranks"
    done = train_net("--no-validate", "--work-dir", folder, "--num-gpus", 2, *options)
    assert done.status == 0, done.stderr
    other = _load(folder)["model"]
    assert not _same(other, _load(tmp_path / "whole", "model_0000001.pth")["model"])
    frozen = [name for name in other if name.startswith("backbone.bottom_up.")]
    assert frozen and all(torch.equal(other[name], whole["model"][name]) for name in frozen)
