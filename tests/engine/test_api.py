"""d2ext.train and d2ext.evaluate: several calls in one process, which stays as it was."""

import json
import logging
import os
import shutil
import signal
import threading
import warnings
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from omegaconf import OmegaConf

import d2ext
from tests.conftest import LITE0, REPO

CUSTOM = REPO / "configs/custom/mask_rcnn_lite0_fpn.py"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


@pytest.fixture
def cfg(tiny):
    return d2ext.load_config(REPO / LITE0, [*tiny, "train.max_iter=2"])


def _state():
    """Return the state of the process that a call must restore."""
    loggers = {name: logging.getLogger(name) for name in ("d2ext", "detectron2", "py.warnings")}
    return {
        "logging": {n: (lg.handlers[:], lg.level, lg.propagate) for n, lg in loggers.items()},
        "warnings": warnings.showwarning,
        "signals": [signal.getsignal(number) for number in _SIGNALS],
        "datasets": DatasetCatalog.list(),
        "files": sorted(_open_files()),
        "threads": [thread.name for thread in threading.enumerate()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "environment": dict(os.environ),
    }


def _open_files():
    for file in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(file)
        except OSError:  # that of the listing itself
            continue
        if "/runs/" in target:
            yield target


def test_train_resume_overwrite_and_evaluate(cfg, tmp_path, capsys):
    """One process, one directory; the user's config and the process stay as they are."""
    given = OmegaConf.to_yaml(cfg.train)
    before = _state()
    cfg.train.deterministic = True
    run = d2ext.train(cfg, tmp_path / "runs" / "a")
    assert _state() == before
    cfg.train.deterministic = False
    assert OmegaConf.to_yaml(cfg.train) == given
    assert isinstance(run, d2ext.Run) and run.output_dir == tmp_path / "runs" / "a"
    assert run.stopped_by is None and run.state.model is run.evaluated
    key = "balloon_val/coco/segm/AP"
    saved = json.loads((run.output_dir / "results.json").read_text())["last"]["results"]
    assert run.results == saved and isinstance(run.results[key], float)
    output = capsys.readouterr().out
    assert output.count("Finished") == 1 and output.count(" iter: 1 ") == 1

    for weights in ("last", None):
        results = d2ext.evaluate(cfg, weights, run.output_dir)
        assert results == pytest.approx(run.results, nan_ok=True)
    assert (run.output_dir / "eval" / "report.html").is_file()

    with pytest.raises(
        d2ext.UserError, match=r"another run; .* resume=True, .* overwrite=True, .* output_dir"
    ):
        d2ext.train(cfg, run.output_dir)
    cfg.train.max_iter = 3
    capsys.readouterr()
    longer = d2ext.train(cfg, run.output_dir, resume=True, validate=False)
    assert longer.trainer.start_iter == 2 and longer.results == run.results
    assert capsys.readouterr().out.count(" iter: 2 ") == 1  # no handler is there twice
    cfg.train.output_dir = str(run.output_dir)
    d2ext.train(cfg, overwrite=True, validate=False)
    assert len(list(tmp_path.glob("runs/a.*"))) == 1
    log = (run.output_dir / "log.txt").read_text()
    assert log.count("Finished") == 1 and log.count(" iter: 0 ") == 1
    assert _state() == before


def test_another_dataset_under_the_same_name(tiny_coco, tiny, tmp_path):
    """`custom_train` is what each config says it is."""
    names = []
    for i, wanted in enumerate((["ball"], ["ball", "other"])):
        folder = shutil.copytree(tiny_coco / "coco", tmp_path / str(i))
        for split in ("train", "val"):
            file = folder / "annotations" / f"instances_{split}2017.json"
            content = json.loads(file.read_text())
            content["categories"] = [{"id": k, "name": n} for k, n in enumerate(wanted, 1)]
            for annotation in content["annotations"]:
                annotation["category_id"] = 1
            file.write_text(json.dumps(content))
        data = [
            f"data.{split}.{key}={folder}/{path}"
            for split in ("train", "val")
            for key, path in (
                ("json", f"annotations/instances_{split}2017.json"),
                ("images", f"{split}2017"),
            )
        ]
        less = [text for text in tiny if not text.startswith("data.root")]
        cfg = d2ext.load_config(CUSTOM, [*data, *less, "train.max_iter=1"])
        run = d2ext.train(cfg, tmp_path / "runs" / str(i), validate=False)
        names.append(run.plan.classes)
        assert run.evaluated.roi_heads.num_classes == len(wanted)
    assert names == [["ball"], ["ball", "other"]]
    assert not [name for name in DatasetCatalog.list() if name.startswith("custom")]


class Fails(HookBase):
    """Fails in the second step."""

    def after_step(self):
        if self.trainer.iter == 1:
            raise d2ext.UserError("a hook that fails")


def test_an_error_leaves_nothing_behind(cfg, tmp_path):
    before = _state()
    with pytest.raises(d2ext.UserError, match="a hook that fails"):
        d2ext.train(cfg, "runs/a", hooks=(hook for hook in [Fails()]))
    assert _state() == before
    run_info = json.loads(Path("runs/a/run.json").read_text())
    assert run_info["ended_by"] == "a hook that fails"
    assert "reproduce" not in run_info  # a command has no such hook
    d2ext.train(cfg, "runs/a", overwrite=True, validate=False)


class Wrong(HookBase):
    def before_step(self):
        raise ValueError("a fault")


def wrong_metric(ground_truth, detections):
    raise ValueError("a fault")


def test_the_place_of_an_error_is_recorded(cfg):
    """The class of a hook, or the field of a metric."""

    def recorded():
        return json.loads(Path("runs/a/run.json").read_text())["ended_by"]

    with pytest.raises(ValueError, match="^a fault"):
        d2ext.train(cfg, "runs/a", hooks=[Wrong()])
    assert recorded() == "ValueError: a fault (in Wrong.before_step)"
    cfg.train.best.metric = None
    cfg.evaluators = {"mine": {"_target_": f"{__name__}._metric"}}
    with pytest.raises(ValueError, match="^a fault"):
        d2ext.train(cfg, "runs/a", overwrite=True)
    assert "ValueError: a fault (in evaluators.mine)" in recorded()


def _metric():
    return wrong_metric


class Evaluates(HookBase):
    """Evaluates in the first step, in this thread or another one."""

    def __init__(self, cfg):
        self._cfg = cfg
        self.errors = []

    def after_step(self):
        for call in (self._evaluate, self._in_a_thread):
            call()

    def _evaluate(self):
        with pytest.raises(d2ext.UserError, match="this process is already training") as e:
            d2ext.evaluate(self._cfg, "last", "runs/a")
        self.errors.append(e)

    def _in_a_thread(self):
        thread = threading.Thread(target=self._evaluate)
        thread.start()
        thread.join()


def test_one_run_at_a_time(cfg):
    """A second call is refused, and the first one does not notice it."""
    hook = Evaluates(cfg)
    run = d2ext.train(cfg, "runs/a", hooks=[hook], validate=False)
    assert run.trainer.iter == 2 and len(hook.errors) == 4
    assert "already training" not in (run.output_dir / "log.txt").read_text()


@pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")
def test_a_tracker_leaves_the_environment_alone(cfg, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    cfg.train.writers = ["mlflow"]
    before = dict(os.environ)
    d2ext.train(cfg, "runs/a", validate=False)
    assert dict(os.environ) == before


def test_a_path_that_looks_like_a_flag(cfg, trained):
    """Messages name arguments, and leave paths alone."""
    shutil.copytree(trained, "runs/b--resume")
    with pytest.raises(d2ext.UserError, match=r"runs/b--resume holds another run; .* resume=True"):
        d2ext.train(cfg, "runs/b--resume")
    with pytest.raises(d2ext.UserError, match=r"^weights best: .* use weights last or a file$"):
        d2ext.Predictor.from_run("runs/b--resume", "best")


class Signals(HookBase):
    """Sends this process a signal in the first step."""

    def __init__(self, number):
        self._number = number

    def before_step(self):
        if self.trainer.iter == 0:
            os.kill(os.getpid(), self._number)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_saves_and_raises(cfg, tmp_path, capsys, number, error):
    before = _state()
    with pytest.raises(error) as e:
        d2ext.train(cfg, "runs/a", hooks=[Signals(number)])
    if error is SystemExit:
        assert e.value.code == 75
    assert _state() == before
    assert "d2ext.train(cfg, 'runs/a', resume=True)" in capsys.readouterr().out
    assert Path("runs/a/model_0000000.pth").is_file()
    run = d2ext.train(cfg, "runs/a", resume=True, validate=False)
    assert run.trainer.start_iter == 1 and run.trainer.iter == 2


def test_outside_the_main_thread(cfg, capsys):
    """No handler can be set there; a signal does not stop the training."""
    runs = []
    thread = threading.Thread(target=lambda: runs.append(d2ext.train(cfg, "a", validate=False)))
    thread.start()
    thread.join()
    assert runs[0].trainer.iter == 2
    assert capsys.readouterr().out.count("Not in the main thread") == 1


def test_invalid_arguments_are_errors(cfg, monkeypatch):
    with pytest.raises(d2ext.UserError, match="give output_dir=... or set train.output_dir"):
        d2ext.train(cfg)
    with pytest.raises(d2ext.UserError, match="cfg is a str; give a config returned by"):
        d2ext.train("recipe.py", "runs/a")
    with pytest.raises(d2ext.UserError, match="hooks: function is not a hook"):
        d2ext.train(cfg, "runs/a", hooks=[_state])
    with pytest.raises(d2ext.UserError, match="hooks is a Fails; give a list of hooks"):
        d2ext.train(cfg, "runs/a", hooks=Fails())
    with pytest.raises(d2ext.UserError, match="^weights last: .* no checkpoint"):
        d2ext.evaluate(cfg, "last", "runs/a")
    cfg.train.max_iter = "ten"
    with pytest.raises(d2ext.UserError, match="train.max_iter='ten'"):
        d2ext.train(cfg, "runs/a")
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29999")
    cfg.train.max_iter = 2
    with pytest.raises(d2ext.UserError, match="NNODES=2; start .* with torchrun"):
        d2ext.train(cfg, "runs/a")
    assert not Path("runs").exists()


def test_the_classes_of_detectron2s_own_datasets_stay(tiny_root):
    """A run may map them to others; the next one finds them as they were."""
    from d2ext.data.datasets.register import unregister_datasets, use_classes

    load = DatasetCatalog["coco_2017_val"]
    names = MetadataCatalog.get("coco_2017_val").thing_classes
    use_classes("coco_2017_val", ["person"])
    assert MetadataCatalog.get("coco_2017_val").thing_classes == ["person"]
    unregister_datasets()
    assert MetadataCatalog.get("coco_2017_val").thing_classes == names
    assert DatasetCatalog["coco_2017_val"] is load
    assert MetadataCatalog.get("coco_2017_val").json_file
