"""The runner's options, errors and files, with a model whose objects are constants."""

import errno
import json
import os

import pytest
from PIL import Image

from d2ext.data.formats import images
from d2ext.export import run_onnx
from tests.export.pages import write_model

HEIC = {".heic", ".heif", ".hif"}  # need another package


def write_balls(file, scores=(0.9, 0.6, 0.3), more=()):
    """Write a model that finds the same balls in each photo, one for each score."""
    balls = [(0, score, (1, 1, 8, 6)) for score in scores]
    info = {"classes": ["ball"], "short_edge": 16, "max_size": 64, "mask_size": 4}
    write_model(file, balls, more, **info)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that calls the runner beside model.onnx; it returns status and stderr."""
    write_balls(tmp_path / "model.onnx")
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 16), "gray").save(tmp_path / "photos" / name)
    monkeypatch.setattr(run_onnx, "__file__", str(tmp_path / "run_onnx.py"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["run_onnx.py", *map(str, arguments)])
        try:
            status = run_onnx.main()
        except SystemExit as e:
            status = e.code
        error = capsys.readouterr().err
        return (1, status) if isinstance(status, str) else (status, error)

    return call


def rows(folder):
    return json.loads((folder / "predictions.json").read_text())


def test_model_onnx_is_the_model_beside_the_runner(run, tmp_path):
    """An export at half precision writes model_float16.onnx beside it."""
    (tmp_path / "model_float16.onnx").write_bytes(b"")
    assert run("photos", "--output", "out") == (0, "")
    assert [r["score"] for r in rows(tmp_path / "out")] == pytest.approx([0.9, 0.6] * 2)
    (tmp_path / "model.onnx").rename(tmp_path / "other.onnx")
    status, error = run("photos", "--output", "new")
    assert status == 1 and "2 .onnx files beside this program; give --model FILE" in error
    (tmp_path / "model_float16.onnx").unlink()
    assert run("photos", "--output", "new")[0] == 0


def test_results_replace_those_of_an_earlier_call(run, tmp_path):
    out = tmp_path / "out"
    assert run("photos", "--output", out)[0] == 0
    assert sorted(os.listdir(out)) == ["images.json", "overlays", "predictions.json"]
    (tmp_path / "photos" / "b.png").unlink()
    assert run("photos", "--output", out)[0] == 0
    assert os.listdir(out / "overlays") == ["a.jpg"] and len(rows(out)) == 2


@pytest.mark.parametrize("name", ["predictions.json", "images.json", "mine.txt"])
def test_other_folders_are_left_alone(run, tmp_path, name):
    file = tmp_path / "out" / name
    file.parent.mkdir()
    file.write_text("[1]")
    status, error = run("photos", "--output", "out")
    assert status == 1 and "out is not empty and does not hold earlier results" in error
    assert file.read_text() == "[1]" and os.listdir(file.parent) == [name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photos", "--output", "model.onnx"], "model.onnx: File exists; choose another --output"),
        (["photos", "--output", "photos"], "the input photos is in --output photos"),
        (["photos/a.png", "--output", "photos"], "photos/a.png is in --output photos"),
        (["absent", "--output", "out"], "absent does not exist; give images or folders"),
    ],
)
def test_bad_arguments_are_errors_of_one_line(run, tmp_path, arguments, words):
    before = (tmp_path / "model.onnx").read_bytes()
    status, error = run(*arguments)
    assert status == 1 and error.startswith("error: ") and words in error and "\n" not in error
    assert (tmp_path / "model.onnx").read_bytes() == before
    assert len(os.listdir(tmp_path / "photos")) == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["7", "-1", "nan", "high"])
def test_scores_are_from_0_to_1(run, value):
    status, error = run("photos", "--output", "out", f"--score-threshold={value}")
    assert status == 2 and f"--score-threshold: invalid score value: '{value}'" in error


def test_foreign_metadata_is_ignored_and_damage_named(run, tmp_path):
    write_balls(tmp_path / "model.onnx", more={"onnx.infer": "a tool"})
    assert run("photos", "--output", "out")[0] == 0
    write_balls(tmp_path / "model.onnx", more={"classes": "["})
    status, error = run("photos", "--output", "new")
    assert status == 1 and "model.onnx has damaged metadata" in error and "\n" not in error


def test_no_object(run, tmp_path):
    write_balls(tmp_path / "model.onnx", scores=())
    assert run("photos", "--output", "out", "--score-threshold=0") == (0, "")
    assert rows(tmp_path / "out") == [] and len(os.listdir(tmp_path / "out" / "overlays")) == 2


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_of_pixels_is_that_of_predict(run, monkeypatch):
    monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", "511")
    status, error = run("photos", "--output", "out")
    assert status == 1 and error.count("cannot be read and is skipped") == 2
    monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", "512")
    assert run("photos", "--output", "out") == (0, "")
    for value in ("many", "0"):
        monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", value)
        error = run("photos", "--output", "out")[1]
        assert f"D2EXT_MAX_IMAGE_PIXELS={value}: give a number" in error


def test_a_full_disk(run, tmp_path, monkeypatch):
    """The error is one line, and no temporary file is left."""

    def fail(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", fail)
    status, error = run("photos", "--output", "out")
    assert status == 1 and "images.json: No space left on device" in error and "\n" not in error
    assert os.listdir(tmp_path / "out") == []


def test_interrupted(run, tmp_path, monkeypatch):
    """Ctrl-C leaves no half-written file, and the next call may use the folder."""

    def stop(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_onnx, "read", stop)
        assert run("photos", "--output", "out") == (130, "interrupted\n")
    assert os.listdir(tmp_path / "out") == ["images.json"]
    assert run("photos", "--output", "out")[0] == 0


def test_suffixes_are_those_of_predict():
    assert run_onnx.SUFFIXES == images.SUFFIXES - HEIC
