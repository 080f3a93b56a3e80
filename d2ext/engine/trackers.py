"""MLflow and Weights & Biases as Detectron2 writers: `train.writers=[mlflow, wandb]`."""

import abc
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from detectron2.utils.events import EventWriter, get_event_storage
from msgspec import UNSET

from d2ext.engine.metric_writer import step_metrics
from d2ext.environment import environment_defaults
from d2ext.launch.signals import EXIT_STOPPED
from d2ext.report.config import leaves
from d2ext.run_dir.metadata import read_run_info
from d2ext.run_dir.metrics import read_metrics
from d2ext.run_dir.schema import ResultsRecord, TrackerRun, read_valid_part, write_record
from d2ext.text import without_credentials

logger = logging.getLogger(__name__)

Outcome = Literal["finished", "stopped", "failed"]

_DEFAULT = "d2ext"  # experiment, or project
_FILES = (
    "auto.json",
    "config.yaml",
    "log.txt",
    "metrics.json",
    "report.html",
    "results.json",
    "run.json",
    "scaling.json",
    "split.json",
)


class Tracker(EventWriter):
    """Send the metrics of a run to an experiment tracker, and its files at the end.

    All data comes from the run directory. The tracker's run begins with the first logged step, and
    a resumed run continues it. Lines of metrics.json that did not arrive, because the server was
    unavailable or the tracker was added later, are sent as soon as possible; iterations that a
    resumed run repeats are not sent again.

    Args:
        output_dir: Run directory.
    """

    PACKAGE: ClassVar[str]  # required package, and the extra of d2ext that installs it

    def __init__(self, output_dir: str):
        self._folder = Path(output_dir).absolute()
        self._file = self._folder / "trackers" / f"{self.PACKAGE}.json"
        self._run: TrackerRun | None = None  # None until the tracker answers, and after an error

    def write(self) -> None:
        storage = get_event_storage()
        self._send({storage.iter: step_metrics(storage, storage.iter)})

    def close(self) -> None:
        info = read_run_info(self._folder)
        # run.json contains the seconds only if the run ended normally.
        ended = info.train_seconds is not UNSET
        outcome: Outcome = "stopped" if info.stopped_by else "finished" if ended else "failed"
        try:
            # Otherwise, do not wait for an unavailable server, or record a run that did not begin.
            if self._run is not None or outcome == "finished":
                self._send({})
            if outcome == "finished":
                paths = [self._folder / name for name in _FILES]
                self._upload([path for path in paths if path.is_file()])
        finally:
            self._end(outcome)

    def _send(self, rows: dict[int, Mapping[str, float]]) -> None:
        """Send the rows by iteration, after those of metrics.json that have not arrived."""
        run, self._run = self._run, None
        if run is None:
            run = self._connect()
            earlier, _ = read_metrics(self._folder / "metrics.json")
            rows = {row.pop("iteration"): row for row in earlier} | rows
        new = [(i, rows[i]) for i in sorted(rows) if i > run.iteration]
        if new:
            self._log(run, new)
            run.iteration = new[-1][0]
            write_record(self._file, run)
        self._run = run

    def _connect(self) -> TrackerRun:
        """Continue the tracker's run, or start one, and record it."""
        before = read_valid_part(self._file, TrackerRun)
        run = self._begin(before, read_run_info(self._folder).name)
        write_record(self._file, run)
        where = f"{self.PACKAGE} run {run.run_id} in {run.store}"
        logger.info("%s %s", "Continues" if run.run_id == before.run_id else "Records to", where)
        return run

    def _config(self) -> dict[str, Any]:
        """Return config.yaml's values by dotted key."""
        return leaves((self._folder / "config.yaml").read_text(encoding="utf-8"))

    @abc.abstractmethod
    def _begin(self, before: TrackerRun, name: str) -> TrackerRun:
        """Continue the tracker's run; if it does not exist, start one with this name."""

    @abc.abstractmethod
    def _log(self, run: TrackerRun, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Send metrics by iteration."""

    @abc.abstractmethod
    def _upload(self, paths: Sequence[Path]) -> None:
        """Upload files and the overlays."""

    @abc.abstractmethod
    def _end(self, outcome: Outcome) -> None:
        """Set the status of the tracker's run; do nothing if it did not begin."""


class MLflowWriter(Tracker):
    """Send a run to MLflow at $MLFLOW_TRACKING_URI, by default a database in the current folder.

    Args:
        output_dir: Run directory.
        experiment: Name of the experiment; by default $MLFLOW_EXPERIMENT_NAME, else `d2ext`.
    """

    PACKAGE = "mlflow"
    _STATUS: ClassVar = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    _LONGEST_VALUE = 500  # characters of a parameter, on servers before 2.10
    # With MLflow's default limits, a step may wait several minutes for an unavailable server. Data
    # that does not arrive is sent later.
    _LIMITS: ClassVar = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }
    _BATCH = {"params": 100, "metrics": 1000}  # sizes that every server accepts

    def __init__(self, output_dir: str, experiment: str | None = None):
        super().__init__(output_dir)
        self._experiment = experiment

    def write(self) -> None:
        with environment_defaults(self._LIMITS):
            super().write()

    def close(self) -> None:
        with environment_defaults(self._LIMITS):
            super().close()

    def _begin(self, before: TrackerRun, name: str) -> TrackerRun:
        import mlflow

        # The default store depends on the current folder; a resumed run must use the recorded one,
        # unless its record lacks the credentials.
        usable = before.store and "://***@" not in before.store and not mlflow.is_tracking_uri_set()
        self._client = mlflow.MlflowClient(before.store if usable else None)
        store = without_credentials(self._client.tracking_uri)
        if before.run_id and before.store == store and self._exists(before.run_id):
            self._client.update_run(before.run_id, status="RUNNING")
            return before
        run_id = self._client.create_run(self._experiment_id(), run_name=name).info.run_id
        self._log_batch(run_id, "params", self._params())
        return TrackerRun(run_id=run_id, store=store)

    def _exists(self, run_id: str) -> bool:
        import mlflow

        try:
            return self._client.get_run(run_id).info.lifecycle_stage == "active"
        except mlflow.MlflowException as e:
            if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _experiment_id(self) -> str:
        import mlflow

        if not self._experiment and (given := os.environ.get("MLFLOW_EXPERIMENT_ID")):
            return given
        name = self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT
        if found := self._client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except mlflow.MlflowException:
            # Another run may have created it at the same moment.
            if found := self._client.get_experiment_by_name(name):
                return found.experiment_id
            raise

    def _params(self) -> list[Any]:
        from mlflow.entities import Param

        values = {_mlflow_name(key): str(value) for key, value in self._config().items()}
        return [Param(key, value[: self._LONGEST_VALUE]) for key, value in values.items()]

    def _log(self, run: TrackerRun, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [
            Metric(_mlflow_name(key), value, now, iteration)
            for iteration, metrics in rows
            for key, value in metrics.items()
        ]
        self._log_batch(run.run_id, "metrics", points)

    def _log_batch(self, run_id: str, kind: str, entities: Sequence[Any]) -> None:
        size = self._BATCH[kind]
        for i in range(0, len(entities), size):
            self._client.log_batch(run_id, **{kind: entities[i : i + size]})

    def _upload(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self._run.run_id, str(path))
        if (overlays := self._folder / "overlays").is_dir():
            self._client.log_artifacts(self._run.run_id, str(overlays), "overlays")

    def _end(self, outcome: Outcome) -> None:
        if self._run is not None:
            self._client.set_terminated(self._run.run_id, self._STATUS[outcome])


def _mlflow_name(key: str) -> str:
    """Return a key that MLflow accepts: letters, digits, `_-. ` and a normalized path."""
    parts = re.sub(r"[^/\w.\- ]", "_", key[:250]).split("/")
    return "/".join(part if part.strip(".") else "_" for part in parts if part)


class WandbWriter(Tracker):
    """Send a run to Weights & Biases; $WANDB_MODE=offline keeps it in the current folder.

    Args:
        output_dir: Run directory.
        project: Name of the project; by default $WANDB_PROJECT, else `d2ext`.
    """

    PACKAGE = "wandb"

    def __init__(self, output_dir: str, project: str | None = None):
        super().__init__(output_dir)
        self._project = project or os.environ.get("WANDB_PROJECT") or _DEFAULT
        self._live: Any = None  # wandb's own run

    def _begin(self, before: TrackerRun, name: str) -> TrackerRun:
        import wandb

        if self._live is None:
            # A prompt would block the run.
            online = wandb.setup().settings.mode == "online"
            if online and not wandb.login(prompt=False, verify=False):
                raise RuntimeError("no API key: run `wandb login`, or set WANDB_MODE=offline")
            self._live = wandb.init(
                project=self._project,
                name=os.environ.get("WANDB_NAME") or name,
                id=before.run_id or None,
                resume="allow",
                config=self._config(),
                settings=wandb.Settings(
                    console="off",  # it would record the live panel; log.txt is uploaded instead
                    finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", 60)),
                    reinit="create_new",  # keep a run that the caller may have started
                ),
            )
        store = self._live.path.rpartition("/")[0]
        if before.store in ("", store):
            return TrackerRun(run_id=self._live.id, store=store, iteration=before.iteration)
        return TrackerRun(run_id=self._live.id, store=store)

    def _log(self, run: TrackerRun, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for iteration, metrics in rows:
            self._live.log({**metrics, **self._overlays(iteration)}, step=iteration, commit=True)

    def _overlays(self, iteration: int) -> dict[str, list[Any]]:
        """Return the overlays of each test set if the last evaluation was after this iteration."""
        import wandb

        last = read_valid_part(self._folder / "results.json", ResultsRecord).last
        folder = self._folder / "overlays"
        if last is None or last.iteration != iteration + 1 or not folder.is_dir():
            return {}
        return {
            f"overlays/{dataset.name}": [
                wandb.Image(str(path), caption=path.stem) for path in sorted(dataset.glob("*.jpg"))
            ]
            for dataset in sorted(folder.iterdir())
        }

    def _upload(self, paths: Sequence[Path]) -> None:
        for path in paths:  # in a subfolder, because W&B writes its own config.yaml
            self._live.save(str(path), base_path=str(self._folder.parent), policy="now")

    def _end(self, outcome: Outcome) -> None:
        if self._live is None:
            return
        if outcome == "stopped":
            self._live.mark_preempting()
        self._live.finish({"finished": 0, "stopped": EXIT_STOPPED, "failed": 1}[outcome])
