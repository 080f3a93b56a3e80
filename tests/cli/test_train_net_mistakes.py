"""Bad input to tools/train_net.py is a one-line error with the fix; nothing is written."""

import json
import resource
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def check_error(train_net, tiny, tmp_path):
    """Run a command and check that it fails with one line that contains all `words`.

    It must write no file; with `training=True` it fails during training and writes no checkpoint.
    """

    def run(*args, words, options=(), training=False, **kwargs):
        work = tmp_path / "run"
        done = train_net("--work-dir", work, *args, "--options", *tiny, *options, **kwargs)
        assert done.status == 2, done
        # A progress bar may precede the line.
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("error: ") and "Traceback" not in done.stderr
        assert all(word in line for word in words), done.stderr
        if training:
            assert not list(work.rglob("*.pth"))
        else:
            assert not work.exists()

    return run


def test_a_missing_config_is_named(check_error):
    check_error(config="configs/nothing.py", words=["configs/nothing.py", "does not exist"])


def test_missing_data_is_named_with_the_fix(check_error, tmp_path):
    options = [f"data.root={tmp_path / 'none'}"]
    check_error(
        options=options, words=["via_region_data.json", "balloon --root DIR", "data.root=DIR"]
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimzer.lr=1", ["optimzer.lr", "did you mean 'optimizer.lr'"]),
        ("optimizer.lr=fast", ["optimizer.lr", "float", "'fast'"]),
        ("train.max_iter=0", ["train.max_iter=0"]),
        ("train.max_iter=abc", ["train.max_iter", "'abc'"]),
        ("train.seed=null", ["train.seed"]),
        ("train.log_period=0", ["train.log_period=0"]),
        ("train.hooks=3", ["train.hooks=3: takes list"]),
        ("train.hooks=[{path: x}]", ["train.hooks[0]={'path': 'x'}", "_target_"]),
        ("train.hooks=[{_target_: no.Hook}]", ["train.hooks[0]._target_=no.Hook", "PYTHONPATH"]),
        ("train.hooks=[{_target_: torch.nn.ReLU}]", ["train.hooks[0]: ReLU is not a hook"]),
        ("train.hooks=[{_target_: builtins.max}]", ["train.hooks[0] cannot be built"]),
        ("train.hooks=[{_target_: os.getcwd}]", ["train.hooks[0]: _target_ returned str"]),
        (
            "train.hooks=[{_target_: detectron2.engine.hooks.IterationTimer, x: 1}]",
            ["train.hooks[0] cannot be built: IterationTimer", "'x'"],
        ),
        (
            "train.hooks=[{_target_: detectron2.engine.hooks.IterationTimer},"
            " {_target_: detectron2.engine.hooks.EvalHook, eval_period: 1}]",
            ["train.hooks[1] cannot be built: EvalHook", "'eval_function'"],
        ),
        ("train.writers=[mlfow]", ["train.writers[0]='mlfow'", "did you mean 'mlflow'?"]),
        ("train.writers=[{_target_: no.W}]", ["train.writers[0]._target_=no.W", "PYTHONPATH"]),
        ("train.writers=[{_target_: torch.nn.ReLU}]", ["train.writers[0]: ReLU is not a writer"]),
        (
            "train.writers=[{_target_: detectron2.utils.events.JSONWriter}]",
            ["train.writers[0] cannot be built: JSONWriter", "'json_file'"],
        ),
        ("optimizer.lr=-1", ["optimizer.lr"]),
        ("+optimizer.foo=1", ["optimizer cannot be built", "foo"]),
        (
            "model.backbone.bottom_up.name=resnet999",
            ["model.backbone.bottom_up cannot be built", "resnet999"],
        ),
        ("dataloader.train.num_workers=-1", ["dataloader.train.num_workers=-1: takes int, 0"]),
        ("dataloader.val.num_workers=-1", ["dataloader.val.num_workers=-1"]),
        (
            "dataloader.train.mapper.augmentations[0].short_edge_length=[]",
            ["dataloader.train.mapper cannot be built"],
        ),
        ("evaluators.coco.tasks=[box]", ["box"]),
        ("dataloader.val=null", ["dataloader.val is null", "--no-validate"]),
        ("dataloader.val.dataset.names=[]", ["dataloader.val.dataset.names"]),
        ("train.seed=-1", ["train.seed=-1"]),
        ("train.device=tpu", ["train.device='tpu'", "cuda or cpu"]),
        ("dataloader.train.total_batch_size=0", ["dataloader.train.total_batch_size=0"]),
        ("dataloader.train.dataset.names=baloon_train", ["baloon_train", "balloon_train"]),
        ("model.roi_heads.num_classes=80", ["model.roi_heads.num_classes=80", "1 class "]),
        ("datasets.balloon_val.classes=[kite]", ["balloon_train", "kite", "balloon"]),
        ("train.init_checkpoint=/no/such.pth", ["/no/such.pth", "train.init_checkpoint="]),
        ("train.init_checkpoint=package://no_such/x.pth", ["no-such", "not installed; install it"]),
        ("train.init_checkpoint=http://127.0.0.1:9/x.pth", ["127.0.0.1:9", "local file"]),
    ],
)
def test_an_invalid_field_is_named(check_error, override, words):
    check_error(options=[override], words=words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a GPU here")
@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--eval-only"]])
def test_a_granted_gpu_that_torch_does_not_find_is_an_error(check_error, monkeypatch, flags):
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    check_error(
        *flags,
        words=[
            "Slurm granted GPUs (SLURM_JOB_GPUS=0), but torch finds no GPU (",
            "train.device=cpu",
        ],
    )


def test_a_flag_after_the_overrides_is_an_error(train_net, tiny):
    done = train_net(*tiny, "--eval-only")
    assert done.status == 2
    assert "--eval-only" in done.stderr and "before" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-machines", "2"], ["--dist-url tcp://"]),
        (["--num-machines", "2", "--machine-rank", "2"], ["--machine-rank 2", "0 to 1"]),
        (["--num-gpus", "0"], ["--num-gpus"]),
        (["--weights", "last"], ["--weights", "--eval-only"]),
        (["--eval-only", "--weights", "last"], ["--weights last", "no checkpoint"]),
        (["--eval-only", "--weights", "best"], ["--weights best", "model_best.pth"]),
        (["--eval-only", "--weights", "/no/x.pth"], ["--weights=/no/x.pth", "no such file"]),
        (["--resume", "--overwrite"], ["--resume", "--overwrite"]),
        (["--resume-from", "gone.pth"], ["--resume-from gone.pth", "does not exist"]),
    ],
)
def test_invalid_flags_are_errors(check_error, flags, words):
    check_error(*flags, words=words)


def test_a_missing_image_is_named(check_error, tiny_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root)
    gone = next((root / "balloon" / "val").glob("*.jpg"))
    gone.unlink()
    check_error(options=[f"data.root={root}"], words=[gone.name, "balloon"])


def test_a_broken_image_ends_the_training_with_an_error(check_error, tiny_root, tmp_path):
    """The header is intact, so that only the loader can notice, in the middle of training."""
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root)
    for image in (root / "balloon" / "train").glob("*.jpg"):
        image.write_bytes(image.read_bytes()[:900])
    words = ["cannot be read", "train"]
    check_error("--no-validate", options=[f"data.root={root}"], words=words, training=True)


def test_an_output_directory_with_another_run_is_refused(train_net, tiny, tmp_path):
    work = tmp_path / "run"
    common = ["--no-validate", "--work-dir", work, "--options", *tiny, "train.max_iter=1"]
    assert train_net(*common).status == 0
    before = (work / "metrics.json").read_text()
    done = train_net(*common)
    assert done.status == 2
    assert all(
        word in done.stderr for word in ("another run", "--resume", "--overwrite", "--work-dir")
    )
    assert (work / "metrics.json").read_text() == before
    assert train_net("--overwrite", *common).status == 0
    aside = [p for p in tmp_path.iterdir() if p.name.startswith("run.")]
    assert len(aside) == 1 and (aside[0] / "metrics.json").read_text() == before


def test_an_output_directory_below_a_file_is_refused(train_net, tiny, tmp_path):
    (tmp_path / "file").touch()
    done = train_net("--work-dir", tmp_path / "file" / "run", "--options", *tiny)
    assert done.status == 2
    assert "file is not a directory" in done.stderr


@pytest.mark.parametrize("limit", [pytest.param(2**10, marks=pytest.mark.nightly), 2**20])
def test_a_full_disk_is_an_error_without_leftovers(repo, tiny, tmp_path, limit):
    """A file size limit makes the same system call fail as a full disk.

    1 KiB is too small for the log or the config, 1 MiB for a checkpoint.
    """

    def limit_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, repo / "tools/train_net.py", "--config-file"]
    command += [repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py", "--no-validate"]
    done = subprocess.run(
        [*command, "--work-dir", str(tmp_path / "run"), "--options", *tiny, "train.max_iter=1"],
        preexec_fn=limit_files,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    # torch 2.6 itself writes a file on import, which already fails at 1 KiB.
    assert "cannot write" in last or last.endswith("OSError: [Errno 27] File too large"), last
    assert "Traceback" not in done.stderr + done.stdout
    assert not list((tmp_path / "run").glob("*.pth")) and not list((tmp_path / "run").glob("*.tmp"))


def test_a_failed_command_leaves_the_run_as_it_was(train_net, tiny, tmp_path):
    work = tmp_path / "run"
    common = ["--no-validate", "--work-dir", work, "--options", *tiny, "train.max_iter=1"]
    assert train_net(*common).status == 0
    before = {p.name: p.read_bytes() for p in work.iterdir() if p.is_file()}
    for flag, override, words in [
        ("--resume", "model.roi_heads.box_head.fc_dims=[16, 256]", "does not fit this config"),
        (
            "--resume",
            "model.roi_heads.box_head.conv_dims=[16]",
            f"{shlex.quote(str(work))} --resume` uses the config that its run has",
        ),
        ("--overwrite", "+optimizer.foo=1", "optimizer cannot be built"),
        ("--overwrite", "train.init_checkpoint=/no/file.pth", "/no/file.pth"),
    ]:
        done = train_net(flag, *common, override)
        assert done.status == 2 and words in done.stderr, done.stderr
    assert {p.name: p.read_bytes() for p in work.iterdir() if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    other = tmp_path / "other.pth"
    shutil.copy(work / "model_final.pth", other)
    done = train_net("--resume-from", other, *common)
    assert done.status == 2 and "another run" in done.stderr
    # Start over from a file of the run that --overwrite moves aside.
    done = train_net("--overwrite", *common, f"train.init_checkpoint={work / 'model_final.pth'}")
    assert done.status == 0, done.stderr


def test_a_non_finite_loss_is_an_error(check_error):
    check_error(
        "--no-validate",
        options=["optimizer.lr=1e30", "train.warmup_iters=0"],
        words=["not finite", "optimizer.lr", "iteration"],
        training=True,
    )


def test_weights_of_another_model_are_an_error(check_error, tmp_path):
    torch.save({"model": {"a.weight": torch.zeros(3)}}, tmp_path / "w.pth")
    check_error(
        options=[f"train.init_checkpoint={tmp_path / 'w.pth'}"],
        words=["w.pth", "do not fit the model", "0 of the backbone's"],
    )
    (tmp_path / "w.pth").write_bytes(b"no checkpoint")
    check_error(
        options=[f"train.init_checkpoint={tmp_path / 'w.pth'}"],
        words=["w.pth", "cannot be read"],
    )
    torch.save({"meta": {}, "state_dict": {"a.weight": torch.zeros(3)}}, tmp_path / "w.pth")
    check_error(
        options=[f"train.init_checkpoint={tmp_path / 'w.pth'}"],
        words=["w.pth", "do not fit the model", "d2ext has no recipe"],
    )


def test_results_are_valid_json(train_net, tiny, tmp_path):
    """No JSON file contains NaN, even if nothing was detected."""
    done = train_net("--work-dir", tmp_path, "--options", *tiny, "train.max_iter=1")
    assert done.status == 0, done.stderr

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    for line in (tmp_path / "metrics.json").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
