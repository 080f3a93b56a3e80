"""The comparison of several runs on one page."""

import json

import pytest

from d2ext.errors import UserError
from d2ext.report import write_comparison
from tests.report.test_report import Page, write_run


def _shown(runs, tmp_path):
    return Page(write_comparison(runs, tmp_path / "page.html").read_text(encoding="utf-8")).text


def test_results_curves_and_config_differences(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    (two / "config.yaml").write_text("train:\n  max_iter: 200\n  seed: 3\n")
    results = json.loads((two / "results.json").read_text())
    results["best"]["results"]["balloon_val/coco/segm/AP"] = 61.25
    (two / "results.json").write_text(json.dumps(results))
    text = _shown([one, two], tmp_path)
    for words in ("2 runs", "one", "two", "52.7", "61.2", "5 min 32 s"):
        assert words in text
    for title in ("total loss", "learning rate", "balloon_val/coco/segm/AP"):
        assert title in text
    assert "train.max_iter" in text and "train.seed" in text and "100" in text and "200" in text


def test_images_per_second_need_the_batch_size_of_the_run(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    info = json.loads((two / "run.json").read_text())
    for batch in (None, "8", 0, True):
        (two / "run.json").write_text(json.dumps({**info, "batch_size": batch}))
        # Iterations, seconds per step, images/s (8 images in half a second), duration.
        text = _shown([one, two], tmp_path)
        assert "960.5165 min 32 s" in text and "960.55 min 32 s" in text


def test_folders_with_the_same_name_are_distinguished(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    text = _shown([write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")], tmp_path)
    assert "a/run" in text and "b/run" in text and "Config differences" not in text


def test_run_that_has_just_started(tmp_path):
    young = tmp_path / "young"
    young.mkdir()
    (young / "run.json").write_text("{}")
    (young / "config.yaml").write_text("train: !!python/tuple [1, 2]\n: [")
    assert "young" in _shown([write_run(tmp_path / "old"), young], tmp_path)


def test_different_data_under_one_name(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("one", "two", "three")]
    assert "Different data" not in _shown(runs, tmp_path)
    info = json.loads((runs[1] / "run.json").read_text())
    info["datasets"]["balloon_val"]["instances"] = 51
    (runs[1] / "run.json").write_text(json.dumps(info))
    text = _shown(runs, tmp_path)
    assert (
        "Different data under the same name: balloon_val has 13 images, 50 objects in one, three;"
        " 13 images, 51 objects in two." in text
    )
    assert "balloon_val/coco/segm/AP different data" in text
    assert "Different data" not in _shown([runs[0], runs[2]], tmp_path)


def test_keys_that_are_not_shown_are_counted(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    for count, sentence in ((100, ""), (103, "3 more keys differ but are not shown.")):
        (two / "config.yaml").write_text("".join(f"k{i:03}: 1\n" for i in range(count - 1)))
        text = _shown([one, two], tmp_path)  # one more key differs, from the other run
        assert ("more keys differ" in text) is bool(sentence) and sentence in text
        assert "k098" in text and "k100" not in text


def test_lines_of_many_runs_are_distinguishable(tmp_path):
    runs = [write_run(tmp_path / f"run{i:02}") for i in range(17)]
    for count in (16, 17):
        page = Page(write_comparison(runs[:count], tmp_path / "page.html").read_text())
        styles = [(line["color"] % 8, line["dashed"]) for line in page.charts[0]["lines"]]
        assert len(set(styles)) == 16
        assert ("line styles, which repeat from run 17 on" in page.text) is (count == 17)


def test_missing_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        write_comparison([write_run(tmp_path / "one"), tmp_path / "none"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
