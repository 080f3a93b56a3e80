"""Test tools/train_net.py as a user runs it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
_TIMES_AND_MEMORY = ("time", "data_time", "eta_seconds", "memory_mb")


def _command(repo, *args):
    return [sys.executable, repo / "tools/train_net.py", "--config-file", repo / LITE0, *args]


def _losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


def _numbers(folder):
    """Return the complete lines of metrics.json, without times and memory."""
    lines = []
    for line in (folder / "metrics.json").read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            numbers = json.loads(line)
            lines.append({k: v for k, v in numbers.items() if k not in _TIMES_AND_MEMORY})
    return lines


def test_help_needs_no_torch(repo):
    code = (
        "import runpy, sys; tool = sys.argv[1]; sys.argv = ['train_net.py', '--help']\n"
        "try: runpy.run_path(tool, run_name='__main__')\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'detectron2', 'numpy'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, repo / "tools/train_net.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for flag in ("--num-gpus", "--dist-url", "--resume-from", "--no-validate", "--cfg-options"):
        assert flag in done.stdout


def test_a_run_writes_its_files_and_eval_only_gives_its_results(repo, train_net, tiny, tmp_path):
    work = tmp_path / "run"
    done = subprocess.run(
        _command(repo, "--work-dir", work, "--options", *tiny, "train.seed=3"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "CPU" in done.stdout
    for name in (
        "config.yaml",
        "log.txt",
        "report.html",
        "model_final.pth",
        "model_final.pth.sha256",
    ):
        assert (work / name).is_file(), name
    assert (work / "last_checkpoint").read_text() == "model_final.pth"
    assert len(list((work / "overlays" / "balloon_val").glob("*.jpg"))) == 2
    assert list(work.glob("events.out.tfevents*"))
    assert json.loads((work / "overview" / "balloon_val.json").read_text())["images"] == 2
    assert (work / "overview" / "balloon_train.jpg").is_file()
    assert sorted(_losses(work)) == [0, 1, 2, 3]
    about = json.loads((work / "run.json").read_text())
    assert about["datasets"]["balloon_val"] == {
        "images": 2,
        "instances": about["datasets"]["balloon_val"]["instances"],
        "masks": True,
    }
    assert "train.seed=3" in about["command"] and about["batch_size"] == 2
    trained = json.loads((work / "results.json").read_text())["last"]
    assert trained["iteration"] == 4
    assert {"balloon_val/coco/bbox/AP", "balloon_val/coco/segm/AP50"} <= set(trained["results"])
    html = (work / "report.html").read_text()
    for words in ("Images per second", "Memory", "Object sizes"):
        assert words in html
    assert "Training is in progress" not in html

    done = train_net("--work-dir", work, "--eval-only", "--weights", "last", *tiny)
    assert done.status == 0, done.stderr
    assert "Average Precision" in done.stdout and "COCO segm" in done.stdout
    evaluated = json.loads((work / "eval" / "results.json").read_text())["last"]["results"]
    assert evaluated == pytest.approx(trained["results"])
    assert json.loads((work / "eval" / "predictions" / "balloon_val.json").read_text()) is not None
    # The training's own results stay.
    assert json.loads((work / "results.json").read_text())["last"] == trained


def test_a_resumed_run_equals_an_uninterrupted_one(train_net, tiny, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["--no-validate", "--options", *tiny, "train.checkpointer.period=2"]
    assert train_net("--work-dir", whole, *common).status == 0
    assert train_net("--work-dir", parts, *common).status == 0
    # As if killed after the first checkpoint, before the metrics of its step were written.
    (parts / "last_checkpoint").write_text("model_0000001.pth")
    (parts / "metrics.json").write_text('{"iteration": 0')
    resumed = train_net("--work-dir", parts, "--resume", *common)
    assert resumed.status == 0, resumed.stderr
    assert "continues at iteration 2" in resumed.stdout
    assert _numbers(parts) == [line for line in _numbers(whole) if line["iteration"] > 0]
    a, b = (torch.load(d / "model_final.pth", weights_only=True)["model"] for d in (whole, parts))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_resume_of_a_finished_or_new_run(train_net, tiny, tmp_path):
    common = ["--work-dir", tmp_path, "--options", *tiny, "train.max_iter=1"]
    done = train_net("--resume", *common)
    assert done.status == 0 and "nothing to resume; iteration 0" in done.stdout
    before = (tmp_path / "model_final.pth").stat().st_mtime_ns
    results = (tmp_path / "results.json").read_text()
    # As if killed during the last evaluation.
    (tmp_path / "results.json").unlink()
    done = train_net("--resume", *common)
    assert done.status == 0 and "Nothing left to train" in done.stdout
    assert (tmp_path / "results.json").read_text() == results
    assert (tmp_path / "model_final.pth").stat().st_mtime_ns == before


def test_a_saved_config_resumes_its_run(train_net, tiny, tmp_path):
    done = train_net(
        "--no-validate", "--work-dir", tmp_path / "run", "--options", *tiny, "train.max_iter=1"
    )
    assert done.status == 0, done.stderr
    config = tmp_path / "run" / "config.yaml"
    done = train_net("--no-validate", "--resume", "train.max_iter=2", config=config)
    assert done.status == 0, done.stderr
    assert "continues at iteration 1" in done.stdout
    assert (tmp_path / "run" / "model_0000001.pth").is_file()


def test_resume_from_uses_the_state_and_the_new_learning_rate(train_net, tiny, tmp_path):
    common = ["--no-validate", "--options", *tiny, "train.checkpointer.period=2"]
    assert train_net("--work-dir", tmp_path / "a", *common).status == 0
    done = train_net(
        "--work-dir",
        tmp_path / "b",
        "--resume-from",
        tmp_path / "a" / "model_0000001.pth",
        *common,
        "optimizer.lr=0.25",
        "train.warmup_iters=0",
    )
    assert done.status == 0, done.stderr
    lines = [json.loads(x) for x in (tmp_path / "b" / "metrics.json").read_text().splitlines()]
    first = next(line for line in lines if "lr" in line)
    assert first["iteration"] == 2
    # The cosine from 1 to 0.01 is at 0.505 halfway through the run.
    assert first["lr"] == pytest.approx(0.25 * 0.505, rel=1e-6)


def test_damaged_checkpoints_are_skipped(train_net, tiny, tmp_path):
    common = [
        "--no-validate",
        "--work-dir",
        tmp_path,
        "--options",
        *tiny,
        "train.checkpointer.period=2",
    ]
    assert train_net(*common).status == 0
    for name in ("model_final.pth", "model_0000003.pth"):
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(content)
    done = train_net("--resume", *common)
    assert done.status == 0
    assert "continues at iteration 2" in done.stdout
    done = train_net("--eval-only", "--weights", tmp_path / "gone.pth", *common[1:])
    assert done.status == 2 and "gone.pth" in done.stderr


def test_the_number_of_loader_workers_does_not_change_the_losses(train_net, tiny, tmp_path):
    losses = []
    for workers in (0, 1, 3):
        work = tmp_path / str(workers)
        options = [*tiny, f"dataloader.train.num_workers={workers}"]
        assert train_net("--no-validate", "--work-dir", work, "--options", *options).status == 0
        losses.append(_losses(work))
    assert losses[0] == losses[1] == losses[2]


def _started(repo, folder, *options):
    """Start a training in folder/run in its own session; its output goes to folder/out."""
    with open(folder / "out", "w") as out:
        return subprocess.Popen(
            _command(repo, "--work-dir", folder / "run", "--options", *options),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.nightly)]
)
def test_a_signal_saves_the_run_and_ends_it(repo, tiny, tmp_path, number):
    """As Slurm and terminals do, it is sent to the process group, including loader workers."""
    options = [*tiny, "train.max_iter=100000", "dataloader.train.num_workers=2"]
    process = _started(repo, tmp_path, *options)
    metrics = tmp_path / "run" / "metrics.json"
    deadline = time.time() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None and time.time() < deadline, (tmp_path / "out").read_text()
        time.sleep(0.1)
    os.killpg(process.pid, number)
    assert process.wait(60) == 75, (tmp_path / "out").read_text()
    assert signal.Signals(number).name in (tmp_path / "out").read_text()
    name = (tmp_path / "run" / "last_checkpoint").read_text()
    state = torch.load(tmp_path / "run" / name, weights_only=True)
    assert state["iterations_done"] == max(_losses(tmp_path / "run")) + 1
    assert signal.Signals(number).name in (tmp_path / "run" / "report.html").read_text()


def test_repeated_signals_end_the_run_after_its_first_step(repo, tiny, tmp_path):
    """They arrive before the first step, and again while the run saves and ends."""
    options = [*tiny, "train.max_iter=100000"]
    process = _started(repo, tmp_path, *options)
    while "The model has" not in (tmp_path / "out").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    assert process.returncode == 75, (tmp_path / "out").read_text()
    assert sorted(_losses(tmp_path / "run")) == [0]
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000000.pth"
    assert (tmp_path / "run" / "report.html").is_file()


def test_checkpoints_are_named_by_epoch_and_old_ones_removed(train_net, tiny, tmp_path):
    options = [*tiny, "train.max_epochs=4", "train.checkpointer.period=1 epoch"]
    options.remove("train.max_iter=4")
    options.append("train.checkpointer.max_to_keep=2")
    done = train_net("--no-validate", "--work-dir", tmp_path, "--options", *options)
    assert done.status == 0, done.stderr
    names = sorted(p.name for p in tmp_path.glob("*.pth"))
    assert names == ["epoch_3.pth", "epoch_4.pth", "model_final.pth"]
    assert len(list(tmp_path.glob("*.sha256"))) == 3


def test_evaluations_follow_their_period(train_net, tiny, tmp_path):
    """Each one is written to metrics.json immediately, even if losses are logged rarely."""
    options = [*tiny, "train.log_period=3", "train.max_iter=5"]
    done = train_net("--work-dir", tmp_path, "--options", *options, "train.eval_period=2")
    assert done.status == 0, done.stderr
    lines = {x["iteration"]: x for x in _numbers(tmp_path)}
    evaluated = [i for i, x in lines.items() if any("coco/bbox/AP50" in k for k in x)]
    assert evaluated == [1, 3, 4] and list(_losses(tmp_path)) == [1, 2, 3, 4]


def test_dry_run_writes_nothing(train_net, tiny, tmp_path):
    done = train_net("--dry-run", "--work-dir", tmp_path / "run", "--options", *tiny)
    assert done.status == 0, done.stderr
    assert "4 iterations" in done.stdout and "lr 0.0" in done.stdout
    assert not (tmp_path / "run").exists()
    done = train_net("--dry-run", "--eval-only", "--work-dir", tmp_path / "run", "--options", *tiny)
    assert done.status == 0, done.stderr


def test_the_r50_balloon_recipe_accepts_local_weights(train_net, tiny_root, tmp_path, repo):
    (tmp_path / "w.pth").touch()
    done = train_net(
        "--dry-run",
        f"data.root={tiny_root}",
        f"train.init_checkpoint={tmp_path / 'w.pth'}",
        config=repo / "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py",
    )
    assert done.status == 0, done.stderr
    assert "12 epochs = 72 iterations" in done.stdout and "lr 0.00125" in done.stdout
