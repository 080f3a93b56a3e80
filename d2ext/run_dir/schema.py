"""Typed records of the JSON files in a run directory, shared by their writers and readers.

| file | record |
|---|---|
| run.json | `RunInfo` |
| results.json | `ResultsRecord` |
| scaling.json | `d2ext.config.lr_scaling.ScalingReport` |
| auto.json | `d2ext.data.fitting.fit.Fitted` |
| split.json | `d2ext.data.splitting.own_data.Split` |
| trackers/<tracker>.json | `TrackerRun` |
| analysis/<dataset>.json | `d2ext.evaluation.analysis.AnalysisRecord` |
| overview/<dataset>.json | `DatasetOverview` |
| export.json | `ExportsRecord` |
| errors/rank-<N>.json | `RankFailure` |
| slurm/<time>/submission.json | `Submission` |
| slurm/<time>/attempts.json | `AttemptsRecord` |
| slurm/<time>/meet-<job>-<attempt> | `Rendezvous` |
| slurm/<time>/failed-<job>-<attempt> | `MachineFailure` |

Two files have no record because other projects define their format: metrics.json (Detectron2's JSON
lines with `iteration` and a number for each name; see `d2ext.run_dir.metrics`) and
predictions/<dataset>.json (COCO results).

A field whose default is `UNSET` is not in the file until its value is known. Unknown keys are
ignored.
"""

import contextlib
import json
import types
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, UnsetType

from d2ext.files import write_json

T = TypeVar("T")

# Charts use floats, which represent every integer below 2**53.
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class DatasetInfo(msgspec.Struct):
    """A dataset in run.json.

    Attributes:
        images: Number of images.
        instances: Number of objects, crowds and groups excluded.
        masks: Whether any object has a mask.
    """

    images: Count | None = None
    instances: Count | None = None
    masks: bool = False


class RunInfo(msgspec.Struct, kw_only=True):
    """Description of a run and of how it was started, in run.json.

    Attributes:
        name: Name of the run: the recipe's stem, or the folder of a saved config.yaml.
        config_file: Config file on the command line; empty for a run from Python.
        command: Command or Python call that first started the run.
        started: Time of the first start, in ISO 8601 with the time zone.
        versions: Versions by package name, and of a GPU's driver and libraries.
        machine: Text with the operating system, architecture, number of CPU cores, and GPUs.
        device: `cpu` or `cuda`.
        classes: Class names, in the order of the model's outputs.
        datasets: Sizes by dataset name.
        weights: Path of the initial weights, or of those that are evaluated; empty for none.
        max_iter: Total number of iterations; None for an evaluation.
        batch_size: Images per optimizer step over all ranks; None for an evaluation.
        caveats: Sentences about what makes the results misleading, such as images in two sets; not
            set if there are none.
        resumed_from: Checkpoint that the last start resumed.
        resumed_by: Command of the last start, if it resumed.
        seconds_before: `train_seconds` of the earlier starts, until this one ends.
        reproduce: Command that repeats the run from config.yaml; not set if there is none.
        train_seconds: Duration over all starts that ended normally, once the run has ended.
        stopped_by: Signal, or `--time-limit`, that ended the run early.
        ended_by: Message of the error that ended the run.
    """

    name: str = ""
    config_file: str = ""
    command: str = ""
    started: str = ""
    versions: dict[str, str] = {}
    machine: str = ""
    device: str = ""
    classes: list[str] = []
    datasets: dict[str, DatasetInfo] = {}
    weights: str = ""
    max_iter: Count | None = None
    batch_size: Count | None = None
    caveats: list[str] | UnsetType = UNSET
    resumed_from: str | UnsetType = UNSET
    resumed_by: str | UnsetType = UNSET
    seconds_before: float | UnsetType = UNSET
    reproduce: str | UnsetType = UNSET
    train_seconds: float | UnsetType = UNSET
    stopped_by: str | UnsetType = UNSET
    ended_by: str | UnsetType = UNSET


class EvaluationRecord(msgspec.Struct, kw_only=True):
    """An evaluation in results.json.

    Attributes:
        iteration: Number of completed iterations; None in an evaluation-only run.
        metric: Key in `results` of `train.best.metric`; set only in `best`.
        mode: `max` or `min`, for whether higher or lower values of the metric are better; set only
            in `best`.
        results: Numbers by `<dataset>/<metric>/<task>/<name>`; None if undefined.
        intervals: Lower and upper end of the 95 % intervals by the same keys; None if undefined.
            Results without draws have none; not set if no draws were made.
        samples: Name of the file in resamples/ that holds the draws; not set without draws.
        caveats: Sentences about what biases the results and intervals, such as classes with few
            objects; not set if there are none.
        losses: Validation losses by `<dataset>/validation_loss/<loss>`; None if not finite.
    """

    iteration: Count | None = None
    metric: str | UnsetType = UNSET
    mode: str | UnsetType = UNSET
    results: dict[str, float | None]
    intervals: dict[str, tuple[float, float] | None] | UnsetType = UNSET
    samples: str | UnsetType = UNSET
    caveats: list[str] | UnsetType = UNSET
    losses: dict[str, float | None] | UnsetType = UNSET


class ResultsRecord(msgspec.Struct, kw_only=True):
    """Evaluations of a run on which later decisions depend, in results.json.

    Attributes:
        last: Last evaluation; None before the first one.
        best: Best evaluation by `train.best.metric`; set only with that option.
        scores: Iteration of each evaluation with the value of `train.best.metric` (None if
            undefined); set only with that option.
    """

    last: EvaluationRecord | None = None
    best: EvaluationRecord | UnsetType = UNSET
    scores: list[tuple[int, float | None]] | UnsetType = UNSET


class TrackerRun(msgspec.Struct, kw_only=True):
    """Run of an experiment tracker that a resumed run continues, in trackers/<tracker>.json.

    Attributes:
        run_id: Id of the tracker's run; empty before it is created.
        store: Location of the tracker's run: MLflow's tracking URI, or a W&B project's path.
        iteration: Last iteration of metrics.json that was sent; -1 for none.
    """

    run_id: str = ""
    store: str = ""
    iteration: int = -1


class DatasetOverview(msgspec.Struct):
    """Counts and sizes of a dataset, in overview/<dataset>.json.

    Attributes:
        images: Number of images.
        objects: Number of objects, without crowd, group and difficult objects.
        classes: For each class, its name, number of objects, and number of images with such an
            object.
        width: Minimum, median and maximum image width in pixels; None if no width is known.
        height: The same for the image height.
        object_sizes: Number of `small`, `medium` and `large` objects, as COCO defines them, in the
            measured images.
        measured: Number of images whose objects are counted in `object_sizes`.
    """

    images: int
    objects: int
    classes: list[tuple[str, int, int]]
    width: tuple[int, int, int] | None
    height: tuple[int, int, int] | None
    object_sizes: dict[str, int]
    measured: int


class ExportRecord(msgspec.Struct, kw_only=True):
    """Proof of an exported model: how it differs from the model in torch. Also beside the file.

    Objects are compared with those of the same class and image that torch finds.

    Attributes:
        file: Path of the model; relative to the run directory if it is inside.
        precision: `float32` or `float16`.
        bytes: Size of the file.
        images: Number of images that both models ran on.
        objects: Number of objects that torch finds.
        alone: Number of objects that only one of the two models finds.
        boxes: Largest difference of a coordinate of a box, in pixels of the resized images that the
            models see.
        scores: Largest difference of a score.
        masks: Largest difference of a mask: 1 minus the IoU; None without masks.
        within: Share of the objects whose differences are all within `tolerances`.
        tolerances: `boxes`, `scores` and `masks`, the least `within`, and points of `AP`.
        results: Results of torch and of the file, by name; empty for photos without annotations.
        failures: Sentences about the tolerances that are exceeded; empty if the file passed.
        page: Path of the HTML page with the model, like `file`; not set without a page.
        weights_sha256: SHA-256 of the checkpoint.
    """

    file: str
    precision: str
    bytes: Count
    images: Count
    objects: Count
    alone: Count
    boxes: float
    scores: float
    masks: float | None = None
    within: float
    tolerances: dict[str, float] = {}
    results: dict[str, tuple[float | None, float | None]] = {}
    failures: list[str] = []
    page: str | UnsetType = UNSET
    weights_sha256: str = ""


class ExportsRecord(msgspec.Struct):
    """Exported models of a run, in export.json.

    Attributes:
        exports: The models, each file once, the newest last.
    """

    exports: list[ExportRecord] = []


class RankFailure(msgspec.Struct):
    """Failure of a rank, in errors/rank-<N>.json.

    Attributes:
        rank: Global rank.
        host: Host name of its machine.
        time: Seconds since 1970, by the clock of that machine.
        kind: `user` (a UserError), `interrupted` (a second Ctrl-C), `communication` (lost peers),
            `crashed` (a signal that the process caused itself), `killed`, or `other`.
        message: One-line message for the user.
        traceback: Formatted traceback; empty for a rank that a signal ended.
    """

    rank: int
    host: str
    time: float
    kind: str
    message: str
    traceback: str


class Submission(msgspec.Struct):
    """Submitted job, in slurm/<time>/submission.json.

    Attributes:
        job: Job id; for a local job, its process id.
        cluster: `slurm` or `local`.
        log: Path of rank 0's log.
        host: Host of a local job's process.
        begun: Start time of that process in clock ticks since boot; None if it had already ended
            when the file was written.
    """

    job: str
    cluster: str
    log: str
    host: str | UnsetType = UNSET
    begun: int | None | UnsetType = UNSET


class Attempt(msgspec.Struct, kw_only=True):
    """A start of a job in attempts.json.

    Attributes:
        number: Slurm's restart count; None in files from older versions.
        started: Seconds since 1970.
        nodes: Slurm's node list, or the host name.
        checkpoint: Modification time, in ns, of the pointer to the newest checkpoint at the start;
            None without one.
        ended: Seconds since 1970.
        why: Reason why it ended.
    """

    number: int | None = None
    started: float
    nodes: str
    checkpoint: int | None
    ended: float | UnsetType = UNSET
    why: str | UnsetType = UNSET


class JobOutcome(msgspec.Struct):
    """The end of a job in attempts.json.

    Attributes:
        status: Exit status.
        reason: Reason why the job ended.
    """

    status: int
    reason: str


class AttemptsRecord(msgspec.Struct):
    """Starts of a job, in slurm/<time>/attempts.json.

    Attributes:
        attempts: All starts, in order.
        outcome: Exit status and reason, once the job has ended.
    """

    attempts: list[Attempt] = []
    outcome: JobOutcome | UnsetType = UNSET


class Rendezvous(msgspec.Struct, array_like=True):
    """Rendezvous of an attempt's ranks, in slurm/<time>/meet-<job>-<attempt>.

    Attributes:
        host: Name of the first machine.
        port: Port on that machine.
    """

    host: str
    port: str


class MachineFailure(msgspec.Struct, array_like=True):
    """Failure of a machine other than the first, in slurm/<time>/failed-<job>-<attempt>.

    Attributes:
        status: Exit status; negative for a signal.
        message: Text with the machine and the error.
    """

    status: int
    message: str


def write_record(path: Path, record: Any) -> None:
    """Write a record as JSON; raise a UserError like `atomic_write`."""
    write_json(path, to_plain(record))


def to_plain(record: Any) -> Any:
    """Return a record as plain values, as in its file."""
    return msgspec.to_builtins(record, enc_hook=_to_float)


def _to_float(value: Any) -> float:
    if isinstance(value, float):  # np.float64, which a custom metric may return
        return float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def read_record(path: Path, kind: type[T]) -> T:
    """Read a record from a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not valid JSON, or not a valid record.
    """
    return msgspec.convert(json.loads(path.read_text(encoding="utf-8")), kind)


def read_valid_part(path: Path, kind: type[T]) -> T:
    """Read the valid part of a record; if the file is missing or unreadable, return the defaults.

    Args:
        path: Path of the JSON file.
        kind: Type of the record, whose fields all have defaults.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return valid_part(json.loads(path.read_text(encoding="utf-8")), kind)
    return kind()


def valid_part(content: Any, kind: Any) -> Any:
    """Convert plain values to a type, ignoring invalid parts.

    Missing or invalid fields of a record keep their defaults. Invalid entries of a mapping become
    None if the type allows it, and are dropped otherwise.

    Raises:
        ValueError: The content has another type, or a field without a default is invalid.
    """
    union = get_origin(kind) in (Union, types.UnionType)
    options = get_args(kind) if union else (kind,)
    try:
        if isinstance(content, dict):
            for option in options:
                if isinstance(option, type) and issubclass(option, msgspec.Struct):
                    return _valid_fields(content, option)
                if get_origin(option) is dict:
                    return _valid_entries(content, get_args(option)[1])
        return msgspec.convert(content, kind)
    except ValueError:
        if type(None) in options:
            return None
        raise


def _valid_fields(content: dict[str, Any], kind: type[msgspec.Struct]) -> msgspec.Struct:
    fields = {}
    for field in msgspec.structs.fields(kind):
        with contextlib.suppress(KeyError, ValueError):
            fields[field.name] = valid_part(content[field.encode_name], field.type)
    try:
        return kind(**fields)
    except TypeError as e:
        raise ValueError(str(e)) from e


def _valid_entries(content: dict[str, Any], kind: Any) -> dict[str, Any]:
    entries = {}
    for key, value in content.items():
        with contextlib.suppress(ValueError):
            entries[key] = valid_part(value, kind)
    return entries
