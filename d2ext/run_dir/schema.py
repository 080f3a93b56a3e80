"""Typed records of the JSON files in a run directory, shared by their writers and readers.

| file | record |
|---|---|
| run.json | `RunInfo` |
| results.json | `ResultsRecord` |
| scaling.json | `d2ext.config.lr_scaling.ScalingReport` |
| trackers/<tracker>.json | `TrackerRun` |
| analysis/<dataset>.json | `d2ext.evaluation.analysis.AnalysisRecord` |
| overview/<dataset>.json | `DatasetOverview` |
| errors/rank-<N>.json | `RankFailure` |
| slurm/<time>/submission.json | `Submission` |
| slurm/<time>/attempts.json | `AttemptsRecord` |
| slurm/<time>/meet-<job>-<attempt> | `Rendezvous` |
| slurm/<time>/failed-<job>-<attempt> | `MachineFailure` |

Two files have no record, because other projects define their form: metrics.json (Detectron2's JSON
lines: `iteration`, and a number for each name; see `d2ext.run_dir.metrics`) and
predictions/<dataset>.json (COCO results).

A field whose default is `UNSET` is absent from the file until it is known. Unknown keys are
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

# A chart holds numbers as floats, which represent every integer below 2**53.
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
    """run.json: what a run is, and where and how it was started.

    Attributes:
        name: Name of the run: the recipe's stem, or the folder of a saved config.yaml.
        config_file: Config file on the command line; empty for a run from Python.
        command: Command or Python call that first started the run.
        started: Time of the first start, in ISO 8601 with the time zone.
        versions: Package name to version.
        machine: Operating system, architecture and number of CPU cores, in words.
        device: `cpu` or `cuda`.
        classes: Class names, in the order of the model's outputs.
        datasets: Dataset name to its size.
        weights: Path of the initial weights, or of those that are evaluated; empty for none.
        max_iter: Iterations of the whole training; None for an evaluation.
        batch_size: Images per optimizer step over all ranks; None for an evaluation.
        resumed_from: Checkpoint that the last start resumed.
        resumed_by: Command of the last start, if it resumed.
        seconds_before: `train_seconds` of the earlier starts, until this one ends.
        reproduce: Command that trains the same again from config.yaml; absent if none does.
        train_seconds: Duration of the training over all starts that ended in order, once it ended.
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
        iteration: Completed iterations before it; None in an evaluation-only run.
        metric: Key of `results` that makes it the best one (`train.best.metric`); set in `best`.
        mode: `max` or `min`, which values of the metric are better; set in `best`.
        results: `<dataset>/<metric>/<task>/<name>` to a number; None where it is undefined.
    """

    iteration: Count | None = None
    metric: str | UnsetType = UNSET
    mode: str | UnsetType = UNSET
    results: dict[str, float | None]


class ResultsRecord(msgspec.Struct, kw_only=True):
    """results.json: the evaluations of a run that later decisions need.

    Attributes:
        last: The last evaluation; None before the first one.
        best: The best evaluation by `train.best.metric`; only set with that option.
        scores: Iteration of each evaluation, and the value of `train.best.metric` (None where it is
            undefined); only set with that option.
    """

    last: EvaluationRecord | None = None
    best: EvaluationRecord | UnsetType = UNSET
    scores: list[tuple[int, float | None]] | UnsetType = UNSET


class TrackerRun(msgspec.Struct, kw_only=True):
    """trackers/<tracker>.json: the run of an experiment tracker that a resumed run continues.

    Attributes:
        run_id: The tracker's id of the run; empty before it has one.
        store: Where the tracker keeps it: MLflow's tracking URI, or a W&B project's path.
        iteration: Last iteration of metrics.json that was sent; -1 for none.
    """

    run_id: str = ""
    store: str = ""
    iteration: int = -1


class DatasetOverview(msgspec.Struct):
    """overview/<dataset>.json: what a dataset holds.

    Attributes:
        images: Number of images.
        objects: Number of objects, without crowds, groups and difficult ones.
        classes: Name, number of objects, and number of images with such an object, of each class.
        width: Minimum, median and maximum image width in pixels; None if no width is known.
        height: The same for the height.
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


class RankFailure(msgspec.Struct):
    """errors/rank-<N>.json: what ended a rank.

    Attributes:
        rank: Global rank.
        host: Host name of its machine.
        time: Seconds since 1970, by the clock of that machine.
        kind: `user` (a UserError), `interrupted` (a second Ctrl-C), `communication` (lost peers),
            `crashed` (a signal of the process's own making), `killed`, or `other`.
        message: One line for the user.
        traceback: Formatted traceback; empty for a rank that a signal ended.
    """

    rank: int
    host: str
    time: float
    kind: str
    message: str
    traceback: str


class Submission(msgspec.Struct):
    """slurm/<time>/submission.json: the job of a submission.

    Attributes:
        job: Job id; of a local job, the id of its process.
        cluster: `slurm` or `local`.
        log: Path of rank 0's log.
        host: Host of a local job's process.
        begun: Start time of that process in clock ticks since boot; None if it had ended by then.
    """

    job: str
    cluster: str
    log: str
    host: str | UnsetType = UNSET
    begun: int | None | UnsetType = UNSET


class Attempt(msgspec.Struct, kw_only=True):
    """A start of a job in attempts.json.

    Attributes:
        number: Slurm's restart count; None in files that older versions wrote.
        started: Seconds since 1970.
        nodes: Slurm's node list, or the host name.
        checkpoint: Modification time, in ns, of the pointer to the newest checkpoint at the start;
            None without one.
        ended: Seconds since 1970.
        why: Why it ended.
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
        reason: Why the job ended.
    """

    status: int
    reason: str


class AttemptsRecord(msgspec.Struct):
    """slurm/<time>/attempts.json: the starts of a job.

    Attributes:
        attempts: Every start, in order.
        outcome: Exit status and reason, once the job has ended.
    """

    attempts: list[Attempt] = []
    outcome: JobOutcome | UnsetType = UNSET


class Rendezvous(msgspec.Struct, array_like=True):
    """slurm/<time>/meet-<job>-<attempt>: where the ranks of an attempt meet.

    Attributes:
        host: Name of the first machine.
        port: Port on it.
    """

    host: str
    port: str


class MachineFailure(msgspec.Struct, array_like=True):
    """slurm/<time>/failed-<job>-<attempt>: why the ranks on another machine than the first failed.

    Attributes:
        status: Exit status; a signal as a negative number.
        message: Machine and error.
    """

    status: int
    message: str


def write_record(path: Path, record: Any) -> None:
    """Write a record as JSON; raises UserError as `atomic_write` does."""
    write_json(path, to_plain(record))


def to_plain(record: Any) -> Any:
    """Return a record as the plain values of its file."""
    return msgspec.to_builtins(record, enc_hook=_to_float)


def _to_float(value: Any) -> float:
    if isinstance(value, float):  # np.float64, which a user's metric may return
        return float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def read_record(path: Path, kind: type[T]) -> T:
    """Read a record from a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not valid JSON, or not a valid record.
    """
    return msgspec.convert(json.loads(path.read_text(encoding="utf-8")), kind)


def read_valid_part(path: Path, kind: type[T]) -> T:
    """Read the valid part of a record; a missing or unreadable file gives the defaults.

    Args:
        path: The JSON file.
        kind: A record whose fields all have defaults.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return valid_part(json.loads(path.read_text(encoding="utf-8")), kind)
    return kind()


def valid_part(content: Any, kind: Any) -> Any:
    """Convert plain values to a type, without their invalid parts.

    Fields of a record that are missing or invalid keep their defaults. Invalid entries of a mapping
    become None where the type allows it, and are dropped otherwise.

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
