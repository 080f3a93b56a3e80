"""Runs that report to MLflow, W&B and the user's writers: real packages, offline."""

import json
import os
import site
import struct
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from wandb.proto import wandb_internal_pb2

from tests.conftest import LITE0, REPO

# MLflow's database uses it with SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")

STOP = "train.hooks=[{_target_: mine.At, iteration: 2, kind: stop}]"
BREAK = "{_target_: mine.At, iteration: 1, kind: break}"
FAIL = "train.hooks=[{_target_: mine.At, iteration: 2, kind: fail}]"

MODULE = """
import os, signal
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage


class Lines(EventWriter):
    def __init__(self, path, output_dir):
        self.path, self.output_dir = path, output_dir

    def write(self):
        storage = get_event_storage()
        loss = storage.latest()["total_loss"][0]
        with open(self.path, "a") as f:
            print(storage.iter, loss, self.output_dir, file=f)

    def close(self):
        with open(self.path, "a") as f:
            print("closed after", get_event_storage().iter, file=f)


class Broken(EventWriter):
    def write(self):
        raise ValueError("no such color")


class Unbuildable(Broken):
    def __init__(self):
        open("no/such/file")


class At(HookBase):
    def __init__(self, iteration, kind):
        self.iteration, self.kind = iteration, kind

    def before_step(self):
        if self.trainer.iter == self.iteration and self.kind == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.trainer.iter == self.iteration and self.kind == "break":
            os.remove("run/trackers/wandb.json")
            os.mkdir("run/trackers/wandb.json")
        elif self.trainer.iter == self.iteration:
            raise RuntimeError("a fault")
"""


class Desk:
    """A folder with a user's module, where runs have a local MLflow and W&B."""

    def __init__(self, folder: Path, tiny: list[str]):
        self.folder, self.tiny = folder, tiny
        (folder / "mine.py").write_text(MODULE)

    def train(self, *args: str, run: str = "run", **env: str) -> subprocess.CompletedProcess:
        command = [sys.executable, REPO / "tools/train_net.py", "--config-file", REPO / LITE0]
        flags = [arg for arg in args if arg.startswith("--")]
        overrides = [arg for arg in args if not arg.startswith("--")]
        return subprocess.run(
            [*command, "--work-dir", run, *flags, *self.tiny, *overrides],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(self.folder),
                "OMP_NUM_THREADS": "1",
                **env,
            },
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def mlflow_runs(self) -> list[mlflow.entities.Run]:
        client = self.client()
        experiment = client.get_experiment_by_name("d2ext")
        return client.search_runs([experiment.experiment_id])

    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    def steps(self, run: mlflow.entities.Run, metric: str = "total_loss") -> dict[int, float]:
        history = self.client().get_metric_history(run.info.run_id, metric)
        steps = {point.step: point.value for point in history}
        assert len(steps) == len(history), "a step was sent twice"
        return steps

    def rows(self, run: str = "run") -> dict[int, dict]:
        lines = (self.folder / run / "metrics.json").read_text().splitlines()
        return {row["iteration"]: row for row in map(json.loads, lines)}

    def weights(self, run: str = "run") -> dict[str, torch.Tensor]:
        file = self.folder / run / "model_final.pth"
        return torch.load(file, weights_only=True)["model"]


def wandb_records(file: Path) -> list[wandb_internal_pb2.Record]:
    """Read an offline run: LevelDB's log format with a header of 7 bytes."""
    content, place, records, parts = file.read_bytes(), 7, [], b""
    while place < len(content):
        if (left := 32768 - place % 32768) < 7:  # no record header fits into the block
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def wandb_history(records: list[wandb_internal_pb2.Record]) -> dict[int, dict]:
    rows = {}
    for record in (r.history for r in records if r.HasField("history")):
        row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.item}
        rows[record.step.num] = row
    return rows


@pytest.fixture
def desk(tmp_path, tiny):
    return Desk(tmp_path, tiny)


@pytest.fixture(scope="module")
def both(tmp_path_factory, tiny):
    """A run with both trackers that is stopped and resumed, and one without any."""
    desk = Desk(tmp_path_factory.mktemp("both"), tiny)
    writers, evaluated = "train.writers=[mlflow, wandb]", "train.eval_period=2"
    done = desk.train(writers, evaluated, STOP)
    assert done.returncode == 75, done.stderr
    (run,) = desk.mlflow_runs()
    assert run.info.status == "KILLED" and sorted(desk.steps(run)) == [0, 1, 2]
    done = desk.train(writers, evaluated, "--resume")
    assert done.returncode == 0, done.stderr
    done = desk.train("train.writers=[]", evaluated, run="plain")
    assert done.returncode == 0, done.stderr
    return desk


class TestBoth:
    def test_mlflow_has_metrics_results_and_config(self, both):
        (run,) = both.mlflow_runs()
        assert run.info.run_name == Path(LITE0).stem and run.info.status == "FINISHED"
        rows = both.rows()
        assert sorted(rows) == list(range(4))
        assert both.steps(run) == pytest.approx({i: row["total_loss"] for i, row in rows.items()})
        assert sorted(both.steps(run, "balloon_val/coco/segm/AP")) == [1, 3]
        assert run.data.params["train.seed"] == "0"

    def test_mlflow_has_the_files(self, both):
        (run,) = both.mlflow_runs()
        files = {file.path for file in both.client().list_artifacts(run.info.run_id)}
        wanted = {"config.yaml", "log.txt", "metrics.json", "report.html", "results.json"}
        assert wanted < files
        pictures = both.client().list_artifacts(run.info.run_id, "overlays/balloon_val")
        assert len(pictures) == 2

    def test_wandb_has_the_same_in_one_run(self, both):
        history, ids, files, pictures = {}, set(), set(), 0
        for file in sorted(both.folder.glob("wandb/offline-run-*/*.wandb")):
            records = wandb_records(file)
            part = wandb_history(records)
            assert not part.keys() & history.keys(), "a step was sent twice"
            history |= part
            started = [r.run for r in records if r.HasField("run")][0]
            ids.add(started.run_id)
            config = {item.key: json.loads(item.value_json) for item in started.config.update}
            files |= {f.path for r in records if r.HasField("files") for f in r.files.files}
            pictures += len(list((file.parent / "files/media/images").rglob("*.jpg")))
        assert (started.project, started.display_name) == ("d2ext", Path(LITE0).stem)
        assert len(ids) == 1 and config["train.seed"] == 0
        rows = both.rows()
        assert {i: row["total_loss"] for i, row in history.items()} == pytest.approx(
            {i: row["total_loss"] for i, row in rows.items()}
        )
        assert "balloon_val/coco/segm/AP" in history[3]
        assert {"run/config.yaml", "run/report.html", "run/results.json"} < files
        assert pictures == 2 * 2  # of two evaluations

    def test_the_weights_are_those_of_a_run_without_trackers(self, both):
        weights, plain = both.weights(), both.weights("plain")
        assert weights.keys() == plain.keys()
        assert all(torch.equal(weights[key], plain[key]) for key in plain)

    def test_without_writers_there_are_only_json_lines(self, both):
        files = {path.name for path in (both.folder / "plain").iterdir()}
        assert "metrics.json" in files and "trackers" not in files
        assert not [name for name in files if name.startswith("events.out")]


@pytest.mark.nightly
def test_two_processes_send_each_step_once(desk):
    done = desk.train("train.writers=[tensorboard, mlflow]", "--no-validate", "--num-gpus=2")
    assert done.returncode == 0, done.stderr
    (run,) = desk.mlflow_runs()
    assert sorted(desk.steps(run)) == [0, 1, 2, 3]
    assert len(list((desk.folder / "run").glob("events.out*"))) == 1


@pytest.mark.nightly
def test_a_server_that_is_gone_changes_nothing_and_a_resume_sends_all(desk, both):
    gone = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = desk.train("train.writers=[mlflow]", "--no-validate", **gone)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("MLflowWriter failed") == 1
    assert "Traceback" not in done.stdout + done.stderr
    weights, plain = desk.weights(), both.weights("plain")
    assert all(torch.equal(weights[key], plain[key]) for key in plain)

    done = desk.train("train.writers=[mlflow]", "--no-validate", "--resume")
    assert done.returncode == 0, done.stderr
    (run,) = desk.mlflow_runs()
    assert sorted(desk.steps(run)) == [0, 1, 2, 3] and run.info.status == "FINISHED"


@pytest.mark.nightly
def test_a_run_that_fails_has_failed(desk):
    done = desk.train("train.writers=[mlflow]", "--no-validate", FAIL)
    assert done.returncode == 1, done.stderr
    (run,) = desk.mlflow_runs()
    assert run.info.status == "FAILED" and sorted(desk.steps(run)) == [0, 1]


def test_a_record_that_cannot_be_written_stops_nothing_and_wandb_is_ended(desk):
    """Otherwise the run of W&B would stay open in a notebook."""
    hooks = STOP.replace("=[", f"=[{BREAK}, ")
    done = desk.train("train.writers=[wandb]", "--no-validate", hooks)
    assert done.returncode == 75, done.stderr
    assert done.stdout.count("WandbWriter failed (") == 1
    (file,) = desk.folder.glob("wandb/offline-run-*/*.wandb")
    records = wandb_records(file)
    assert any(r.HasField("preempting") for r in records)
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [75]


@pytest.mark.nightly
def test_wandb_without_a_key(desk):
    done = desk.train(
        "train.writers=[wandb]", "--no-validate", WANDB_MODE="online", HOME=str(desk.folder)
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "WandbWriter failed" in line]
    assert "no API key: run `wandb login`, or set WANDB_MODE=offline" in line


def test_a_password_in_mlflows_uri_stays_secret(desk):
    """A resume recognizes the store without it."""
    uri = f"file://me:secret@localhost{desk.folder}/store"
    env = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_FILE_STORE": "true"}
    ids = set()
    for flag in ("--overwrite", "--resume"):
        done = desk.train("train.writers=[mlflow]", "--no-validate", flag, **env)
        assert done.returncode == 0, done.stderr
        record = json.loads((desk.folder / "run/trackers/mlflow.json").read_text())
        ids.add(record["run_id"])
        assert record["store"] == uri.replace("me:secret", "***")
        log = (desk.folder / "run/log.txt").read_text()
        assert "MLflowWriter failed" not in log
        assert "secret" not in done.stdout + done.stderr + log
    assert len(ids) == 1


def test_writers_of_the_user(desk):
    """Each gets its arguments and the run directory; those that fail are warned of once."""
    lines = desk.folder / "lines.txt"
    entries = [
        {"_target_": "mine.Lines", "path": str(lines)},
        {"_target_": "mine.Broken"},
        {"_target_": "mine.Unbuildable"},
        {"_target_": "os.getcwd"},
    ]
    done = desk.train(f"train.writers={json.dumps(entries)}", "--no-validate")
    assert done.returncode == 0, done.stderr
    *rows, last = [line.split() for line in lines.read_text().splitlines()]
    assert [(int(row[0]), row[2]) for row in rows] == [(i, "run") for i in range(4)]
    losses = {i: row["total_loss"] for i, row in desk.rows().items()}
    assert len(losses) == 4
    assert " ".join(last) == "closed after 4"
    assert done.stdout.count("Broken failed (ValueError: no such color)") == 1
    skipped = "is skipped: it cannot be built"
    assert f"train.writers[2] {skipped} (FileNotFoundError" in done.stdout
    assert f"train.writers[3] {skipped} (TypeError: _target_ returned str" in done.stdout


def test_a_missing_package_is_named_before_anything_starts(tmp_path, tiny):
    """In an environment that lacks mlflow, except for a plain folder with this name.

    Every other package is linked into a new environment.
    """
    (tmp_path / "packages/mlflow").mkdir(parents=True)
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if not entry.name.startswith("mlflow"):
            (tmp_path / "packages" / entry.name).symlink_to(entry)
    writers = "train.writers=[tensorboard, {_target_: d2ext.engine.trackers.MLflowWriter}]"
    command = [sys.executable, "-S", REPO / "tools/train_net.py", "--config-file", REPO / LITE0]
    done = subprocess.run(
        [*command, "--dry-run", "--work-dir", "run", *tiny, writers],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "packages")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "error: train.writers[1] needs mlflow: pip install 'd2ext[mlflow]'"
    assert not (tmp_path / "run").exists()
