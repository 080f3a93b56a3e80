"""The records of the JSON files in a run directory are complete, documented and read old files."""

import json
import shutil
import time

import msgspec
import numpy as np
import pytest

from d2ext.config.lr_scaling import Change, ScalingReport
from d2ext.evaluation import analysis
from d2ext.evaluation.analysis import AnalysisRecord
from d2ext.run_dir import schema
from d2ext.run_dir.metadata import (
    finish_run_info,
    read_run_info,
    update_run_info,
    write_repro_command,
    write_run_info,
)
from d2ext.run_dir.schema import (
    UNSET,
    Attempt,
    AttemptsRecord,
    DatasetInfo,
    DatasetOverview,
    EvaluationRecord,
    JobOutcome,
    MachineFailure,
    RankFailure,
    Rendezvous,
    ResultsRecord,
    RunInfo,
    Submission,
    read_record,
    read_valid_part,
    to_plain,
    valid_part,
    write_record,
)

FILES = {
    "run.json": RunInfo,
    "results.json": ResultsRecord,
    "scaling.json": ScalingReport,
    "analysis/*.json": AnalysisRecord,
    "overview/*.json": DatasetOverview,
}
STRUCTS = [
    value
    for module in (schema, analysis)
    for value in vars(module).values()
    if isinstance(value, type)
    and issubclass(value, msgspec.Struct)
    and value.__module__ == module.__name__
] + [Change, ScalingReport]


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_key_is_documented(kind):
    described = [line.strip().partition(":")[0] for line in kind.__doc__.splitlines()]
    assert [name for name in kind.__struct_fields__ if name not in described] == []


def check_files(run_dir, expected):
    """Check that the directory has these files, and that reading and writing preserves each."""
    found = [(file, kind) for name, kind in FILES.items() for file in run_dir.glob(name)]
    assert sorted(file.relative_to(run_dir).as_posix() for file, _ in found) == sorted(expected)
    for file, kind in found:
        again = json.dumps(to_plain(read_record(file, kind)), indent=1) + "\n"
        assert again == file.read_text(), file


def test_files_of_a_run(train_net, tiny, tmp_path):
    """The run is scaled, resumed and evaluated."""
    metric = "balloon_val/coco/segm/AP"
    options = ["--work-dir", tmp_path, *tiny, "train.reference_world_size=2", "train.eval_period=2"]
    options += [f"train.best.metric={metric}"]
    done = train_net("--auto-scale-lr", *options)
    assert done.status == 0, done.stderr
    data = ["overview/balloon_train.json", "overview/balloon_val.json", "analysis/balloon_val.json"]
    expected = ["run.json", "results.json", "scaling.json", *data]
    check_files(tmp_path, expected)
    info = read_run_info(tmp_path)
    assert info.datasets["balloon_val"].images == 2 and info.datasets["balloon_val"].masks
    assert info.reproduce and info.train_seconds and info.resumed_from is UNSET
    results = read_record(tmp_path / "results.json", ResultsRecord)
    assert results.best.metric == metric and [i for i, _ in results.scores] == [4, 8]
    assert read_record(tmp_path / "scaling.json", ScalingReport).changes

    done = train_net("--auto-scale-lr", "--resume", *options, "train.max_iter=5")
    assert done.status == 0, done.stderr
    check_files(tmp_path, expected)
    resumed = read_run_info(tmp_path)
    assert (resumed.command, resumed.started) == (info.command, info.started)
    assert resumed.train_seconds >= info.train_seconds and resumed.seconds_before is UNSET
    assert "--resume" in resumed.resumed_by

    done = train_net("--eval-only", "--weights", "last", *options)
    assert done.status == 0, done.stderr
    check_files(tmp_path / "eval", ["run.json", "results.json", "analysis/balloon_val.json"])
    evaluated = read_run_info(tmp_path / "eval")
    assert evaluated.max_iter is None and evaluated.reproduce is UNSET


def test_files_of_version_0_1(repo, tmp_path):
    run = shutil.copytree(repo / "tests/data/run_0_1/run", tmp_path / "run")
    info = (run / "run.json").read_text()
    (run / "run.json").write_text(info.replace('   "synthetic": false,\n', ""))  # a former key
    data = ["overview/custom_train.json", "overview/custom_val.json", "analysis/custom_val.json"]
    check_files(run, ["run.json", "results.json", *data])


RECORDS = [
    DatasetInfo(1, 2, True),
    RunInfo(name="a", datasets={"d": DatasetInfo(1, 2)}, ended_by="气球"),
    ResultsRecord(),
    ResultsRecord(
        last=EvaluationRecord(iteration=4, results={"k": None}),
        best=EvaluationRecord(iteration=2, metric="k", mode="max", results={"k": 0.1}),
        scores=[(2, 0.1), (4, None)],
    ),
    DatasetOverview(1, 2, [("a", 2, 1)], (3, 4, 5), None, {"small": 2}, 1),
    RankFailure(1, "host", 1.5, "user", "no such file \udcff", ""),
    Submission("7", "slurm", "log"),
    Submission("7", "local", "log", "host", None),
    AttemptsRecord([Attempt(number=0, started=1.5, nodes="n1", checkpoint=None)]),
    AttemptsRecord(
        [Attempt(number=1, started=1.5, nodes="n", checkpoint=2**62, ended=2.5, why="killed")],
        JobOutcome(1, "killed"),
    ),
    ScalingReport(8, 16, 1, 2, "linear", 0.125, 0.125, (Change("a.b", [1], None),), ("w",)),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_round_trip(record, tmp_path):
    write_record(tmp_path / "x.json", record)
    assert read_record(tmp_path / "x.json", type(record)) == record
    content = json.loads((tmp_path / "x.json").read_text())
    (tmp_path / "x.json").write_text(json.dumps({**content, "unknown": {"key": [1]}}))
    assert read_record(tmp_path / "x.json", type(record)) == record


def test_markers_are_arrays(tmp_path):
    """The format is that of version 0.1."""
    for record, content in (
        (Rendezvous("n1", "29500"), ["n1", "29500"]),
        (MachineFailure(-9, "machine n2: killed"), [-9, "machine n2: killed"]),
    ):
        write_record(tmp_path / "x", record)
        assert json.loads((tmp_path / "x").read_text()) == content
        assert read_record(tmp_path / "x", type(record)) == record


def test_unknown_values_are_omitted():
    assert to_plain(ResultsRecord()) == {"last": None}
    assert list(to_plain(RunInfo())) == [
        *("name", "config_file", "command", "started", "versions", "machine", "device", "classes"),
        *("datasets", "weights", "max_iter", "batch_size"),
    ]
    attempts = AttemptsRecord([Attempt(number=0, started=1.5, nodes="n", checkpoint=None)])
    assert to_plain(attempts) == {
        "attempts": [{"number": 0, "started": 1.5, "nodes": "n", "checkpoint": None}]
    }


def test_results_of_custom_metrics_may_be_numpy_numbers():
    record = EvaluationRecord(iteration=1, results={"a": np.float64(0.1), "b": 3})
    assert json.dumps(to_plain(record)["results"]) == '{"a": 0.1, "b": 3}'
    with pytest.raises(TypeError, match="ndarray is not JSON serializable"):
        to_plain(EvaluationRecord(results={"a": np.zeros(2)}))


def test_run_info_over_several_starts(tmp_path):
    write_run_info(tmp_path, RunInfo(name="a", command="first", max_iter=4))
    write_repro_command(tmp_path, ["python", "x.py"])
    finish_run_info(tmp_path, 0.0, "SIGTERM")
    first = read_run_info(tmp_path)
    assert list(json.loads((tmp_path / "run.json").read_text()))[-3:] == [
        *("reproduce", "train_seconds", "stopped_by")
    ]
    again = RunInfo(name="a", command="second", resumed_from="x.pth", resumed_by="second")
    write_run_info(tmp_path, again)
    info = read_run_info(tmp_path)
    assert (info.command, info.started, info.resumed_by) == ("first", first.started, "second")
    assert info.seconds_before == first.train_seconds and info.train_seconds is UNSET
    assert info.stopped_by is UNSET and "torch" in info.versions
    write_run_info(tmp_path, again)  # killed and resumed again
    assert read_run_info(tmp_path).seconds_before == first.train_seconds
    update_run_info(tmp_path, ended_by="the disk is full")
    assert read_run_info(tmp_path).ended_by == "the disk is full"
    write_run_info(tmp_path, RunInfo(command="third"))  # a new run
    assert (read_run_info(tmp_path).command, read_run_info(tmp_path).seconds_before) == (
        "third",
        UNSET,
    )


def test_updates_keep_the_rest_of_the_file(tmp_path):
    """Unknown keys and invalid values are kept."""
    before = {"name": "a", "note": {"by": "me"}, "max_iter": -1, "seconds_before": 5.0}
    (tmp_path / "run.json").write_text(json.dumps(before))
    write_repro_command(tmp_path, ["python", "x.py"])
    finish_run_info(tmp_path, time.monotonic() - 2, None)
    content = json.loads((tmp_path / "run.json").read_text())
    assert content.pop("train_seconds") == pytest.approx(7, abs=0.5)
    assert content.pop("reproduce").startswith("python x.py --config-file ")
    assert content == {"name": "a", "note": {"by": "me"}, "max_iter": -1}
    update_run_info(tmp_path / "absent", ended_by="x")
    assert json.loads((tmp_path / "absent/run.json").read_text()) == {"ended_by": "x"}


@pytest.mark.parametrize("text", ["", '{"name": "a", "comm', "[]"])
def test_a_damaged_file_is_not_replaced(tmp_path, caplog, text):
    """An update reports what is lost; a resume writes a new file and reports what it lacks."""
    (tmp_path / "run.json").write_text(text)
    finish_run_info(tmp_path, time.monotonic(), "SIGTERM")
    update_run_info(tmp_path, ended_by="the disk is full")
    assert (tmp_path / "run.json").read_text() == text
    said = [record.getMessage() for record in caplog.records]
    words = f"{tmp_path}/run.json is damaged, so this is not recorded: "
    assert said == [
        f"{words}train_seconds=0.0, stopped_by=SIGTERM",
        f"{words}ended_by=the disk is full",
    ]
    write_run_info(tmp_path, RunInfo(command="second", resumed_from="x.pth"))
    assert "run.json is damaged and has been replaced: the command, start" in caplog.text
    assert read_run_info(tmp_path).command == "second"


def test_files_of_older_versions_and_damaged_ones(tmp_path):
    info = {
        "name": "old",
        "datasets": {"val": {"images": 13, "instances": "?", "synthetic": True}, "b": 5},
        "versions": {"torch": "2", "numpy": 1},
        "max_iter": -1,
        "batch_size": True,
        "resumed_from": None,
        "\ud800": 1,
    }
    (tmp_path / "run.json").write_text(json.dumps(info))
    assert read_run_info(tmp_path) == RunInfo(
        name="old", datasets={"val": DatasetInfo(13)}, versions={"torch": "2"}
    )
    for text in ("", "[", "5", "[]", "[" * 100_000, "\udcff"):
        (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
        assert read_run_info(tmp_path) == RunInfo()
    assert read_valid_part(tmp_path / "absent.json", RunInfo) == RunInfo()
    content = {"last": {"results": {"a": 10**400, "b": 2}}, "best": {"iteration": 1}}
    assert valid_part(content, ResultsRecord) == ResultsRecord(
        last=EvaluationRecord(results={"a": None, "b": 2.0})
    )
    assert valid_part({"last": 5}, ResultsRecord) == ResultsRecord()
    with pytest.raises(ValueError, match="Expected"):
        valid_part([], ResultsRecord)
