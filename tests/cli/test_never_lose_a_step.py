"""Failures during training lose nothing (tests/chaos.py kills runs at random moments)."""

import json
import shutil

import pytest
import torch


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_a_run_that_reaches_its_time_limit_is_saved_and_resumed(train_net, tiny, tmp_path):
    """The status is 75, and the last checkpoint contains the last logged step."""
    common = ["--no-validate", "--work-dir", tmp_path, "--options", *tiny]
    done = train_net("--time-limit", "1s", *common, "train.max_iter=100000")
    assert done.status == 75, done.stderr
    assert "Stopped by --time-limit and saved" in done.stdout
    info = json.loads((tmp_path / "run.json").read_text())
    assert info["stopped_by"] == "--time-limit"
    # The checkpoint is named after the epoch if the time was up at its end.
    saved = tmp_path / (tmp_path / "last_checkpoint").read_text()
    steps = torch.load(saved, weights_only=True)["iterations_done"]
    assert steps == _metrics(tmp_path)[-1]["iteration"] + 1
    done = train_net("--time-limit", "soon", *common)
    assert done.status == 2 and "--time-limit soon" in done.stderr


def test_a_run_killed_before_its_first_checkpoint_starts_over(train_net, tiny, tmp_path):
    common = ["--no-validate", "--work-dir", tmp_path, "--options", *tiny, "train.max_iter=1"]
    assert train_net(*common).status == 0
    for path in [*tmp_path.glob("*.pth"), tmp_path / "last_checkpoint"]:
        path.unlink()
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "total_lo')  # a line cut short
    done = train_net("--resume", *common)
    assert done.status == 0 and "nothing to resume; iteration 0" in done.stdout
    assert '{"iteration": 0, "total_lo\n' in (tmp_path / "metrics.json").read_text()


def test_a_resumed_run_has_the_metrics_of_an_uninterrupted_one(train_net, tiny, tmp_path):
    """No line or evaluation is lost, wherever it stopped and although losses are logged rarely."""
    common = ["--options", *tiny, "train.log_period=3", "train.eval_period=2"]
    common += ["train.checkpointer.period=2"]
    whole = tmp_path / "whole"
    assert train_net("--work-dir", whole, *common).status == 0
    lines = (whole / "metrics.json").read_text().splitlines(keepends=True)
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3]
    evaluations = [{k: v for k, v in json.loads(x).items() if "balloon_val/" in k} for x in lines]

    def killed(name, checkpoint, written, evaluated):
        shutil.copytree(whole, tmp_path / name)
        (tmp_path / name / "last_checkpoint").write_text(checkpoint)
        (tmp_path / name / "metrics.json").write_text("".join(lines[:written]))
        last = {"iteration": evaluated, "results": evaluations[max(evaluated - 2, 0)]}
        (tmp_path / name / "results.json").write_text(json.dumps({"last": last, "scores": []}))

    killed("before its numbers were written", "model_0000001.pth", 0, 2)
    killed("in the last evaluation", "model_0000003.pth", 2, 2)
    assert train_net("--work-dir", tmp_path / "stopped", "--time-limit=1s", *common).status == 75
    for folder in tmp_path.iterdir():
        done = train_net("--work-dir", folder, "--resume", *common)
        assert done.status == 0, done.stderr
        assert _plain(folder) == _plain(whole), folder.name


@pytest.mark.parametrize("name", ["metrics.json", "log.txt"])
def test_a_full_disk_is_reported_with_the_file(train_net, tiny, tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    common = ["--no-validate", "--work-dir", tmp_path, "--options", *tiny, "train.max_iter=1"]
    done = train_net("--resume", *common)
    assert done.status == 2, done.stdout
    assert f"cannot write {tmp_path / name}: No space left on device; free space" in done.stderr
    assert "with --resume" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("before", [True, False])
def test_a_resume_in_another_memory_layout_trains_equally(train_net, tiny, tmp_path, before):
    """The layout can change if a run resumes on a different CPU."""
    common = ["--no-validate", "--options", *tiny, "train.checkpointer.period=2"]
    common += ["optimizer.lr=0.01", "train.warmup_iters=0"]

    def trained(folder, channels_last, *flags):
        options = [*common, f"train.channels_last={channels_last}"]
        done = train_net("--work-dir", tmp_path / folder, *flags, *options)
        assert done.status == 0, done.stderr
        return torch.load(tmp_path / folder / "model_final.pth", weights_only=True)["model"]

    whole = trained("whole", before)
    checkpoint = tmp_path / "whole" / "model_0000001.pth"
    start = torch.load(checkpoint, weights_only=True)["model"]
    same = trained("same", before, "--resume-from", checkpoint)
    assert all(torch.equal(same[key], whole[key]) for key in whole)
    other = trained("other", not before, "--resume-from", checkpoint)
    moved = sum(float((whole[key] - start[key]).float().square().sum()) for key in whole)
    apart = sum(float((other[key] - whole[key]).float().square().sum()) for key in whole)
    assert moved > 0 and (apart / moved) ** 0.5 < 0.02


def _plain(folder):
    clock = ("time", "data_time", "eta_seconds", "memory_mb")
    return [{k: v for k, v in line.items() if k not in clock} for line in _metrics(folder)]


def test_changes_since_the_checkpoint_are_reported(train_net, tiny, tiny_root, tmp_path):
    common = ["--no-validate", "--work-dir", tmp_path / "run", "--options", *tiny]
    assert train_net(*common, "train.max_iter=1").status == 0
    same = ["train.max_iter=1", "train.log_period=3", "dataloader.train.num_workers=1"]
    done = train_net("--resume", *common, *same)
    assert done.status == 0 and "Since the checkpoint" not in done.stdout
    done = train_net("--resume", *common, "train.max_iter=1", "train.accumulate=2")
    assert "micro-batches per step" in done.stdout and "1 before, 2 now" in done.stdout
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root)
    done = train_net("--resume", *common, "train.max_iter=1", f"data.root={root}")
    assert "Since the checkpoint" not in done.stdout  # the same images in another folder
    file = root / "balloon" / "train" / "via_region_data.json"
    content = json.loads(file.read_text())
    regions = next(iter(content.values()))["regions"]
    shape = (regions["0"] if isinstance(regions, dict) else regions[0])["shape_attributes"]
    shape["all_points_x"][0] += 1
    file.write_text(json.dumps(content))
    options = ["train.max_iter=2", f"data.root={root}", "optimizer.lr=0.01", "train.seed=5"]
    done = train_net("--resume", *common, *options)
    assert done.status == 0, done.stderr
    for words in ("optimizer.lr (0.0005 before, 0.01 now)", "train.seed (0 before, 5 now)"):
        assert words in done.stdout
    assert "the training data changed (6 images" in done.stdout
    checkpoint = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert checkpoint["seed"] == 5 and checkpoint["accumulate"] == 1
    assert checkpoint["fingerprint"]["data"]["images"] == 6


def test_a_checkpoint_that_does_not_fit_is_a_one_line_error(train_net, tiny, tmp_path):
    common = ["--no-validate", "--work-dir", tmp_path, "--options", *tiny, "train.max_iter=1"]
    assert train_net(*common).status == 0
    for override, words in (
        ("model.roi_heads.box_head.fc_dims=[16,256]", "box_head.fc1.weight is 256 x 4704 in the"),
        ("model.roi_heads.mask_head.conv_dims=[96,96]", "tensors are not in the model, roi_heads"),
        ("optimizer._target_=torch.optim.Adam", "its optimizer is AdamW, not Adam"),
    ):
        done = train_net("--resume", *common, override)
        assert done.status == 2 and words in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_broken_training_photo_stops_the_run_or_is_skipped(
    train_net, tiny, tiny_root, tmp_path, policy
):
    """The photo is cut off after its header, so that the preflight checks cannot notice."""
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root)
    bad = sorted((root / "balloon" / "train").glob("*.jpg"))[0]
    bad.write_bytes(bad.read_bytes()[:900])
    work = tmp_path / "run"
    options = [*tiny, f"data.root={root}", f"train.bad_images={policy}"]
    done = train_net("--no-validate", "--work-dir", work, "--options", *options)
    if policy == "stop":
        assert done.status == 2 and bad.name in done.stderr
        return
    assert done.status == 0, done.stderr
    assert f"{bad.name} cannot be read" in (work / "log.txt").read_text()
    counts = [line["bad_images"] for line in _metrics(work) if "bad_images" in line]
    assert counts and counts[-1] in (1, 2)  # 8 samples, 6 images
    assert f"could not be read: {counts[-1]:.0f} " in (work / "report.html").read_text()
    final = torch.load(work / "model_final.pth", weights_only=True)
    assert final["bad_images"] == counts[-1]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_broken_evaluation_photo_stops_the_run_or_is_skipped(
    train_net, tiny, tiny_root, tmp_path, policy
):
    root, work = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_root, root)
    bad, good = sorted((root / "balloon" / "val").glob("*.jpg"))
    bad.write_bytes(bad.read_bytes()[:900])
    options = [*tiny, f"data.root={root}", f"train.bad_images={policy}", "train.max_iter=1"]
    options += ["model.roi_heads.box_predictor.test_score_thresh=0.0"]
    done = train_net("--work-dir", work, "--options", *options)
    if policy == "stop":
        assert done.status == 2 and f"{bad.name} cannot be read" in done.stderr
        return
    assert done.status == 0, done.stderr
    log = (work / "log.txt").read_text()
    assert f"{bad.name} cannot be read" in log and "1 of 2 images were not evaluated" in log
    predictions = json.loads((work / "predictions" / "balloon_val.json").read_text())
    assert len({p["image_id"] for p in predictions}) == 1
    pictures = [p.stem for p in (work / "overlays" / "balloon_val").glob("*.jpg")]
    assert sorted(pictures) == [bad.stem, good.stem]


def test_code_in_config_yaml_is_not_executed(train_net, tiny, tmp_path):
    common = ["--no-validate", "--work-dir", tmp_path / "run", "--options", *tiny]
    assert train_net(*common, "train.max_iter=1").status == 0
    file = tmp_path / "run" / "config.yaml"
    marker = tmp_path / "marker"
    text = file.read_text()
    file.write_text(f"{text}\nx: !!python/object/apply:pathlib.Path.touch [{marker}]\n")
    done = train_net("--dry-run", "--overwrite", config=file)
    assert done.status == 2 and "config.yaml:" in done.stderr and not marker.exists()
    file.write_text(text)
    assert train_net("--dry-run", "--overwrite", config=file).status == 0
