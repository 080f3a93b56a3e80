"""The comparison of several runs on one page."""

import json

import numpy as np
import pytest

from d2ext.errors import UserError
from d2ext.evaluation.bootstrap.intervals import intervals
from d2ext.evaluation.bootstrap.resampling import Samples, draw_images, write_samples
from d2ext.report import write_comparison
from d2ext.run_dir.names import digest_of
from tests.report.test_report import Page, write_run

KEY = "coco/segm/AP"


def write_drawn(
    run, scores, seed=None, config="", ground_truth="photos", folder=".", dataset="balloon_val"
):
    """Give a run an evaluation whose AP is the mean of a score of each photo, with its draws."""
    folder = run / folder
    scores = np.asarray(scores, np.float64)
    values = draw_images(len(scores)) @ scores / len(scores)
    samples = Samples(len(scores), ground_truth, {KEY: scores.mean()}, {KEY: values})
    new = folder / "resamples" / "new.npz"
    write_samples(new, {dataset: samples})
    file = new.rename(new.with_name(f"{digest_of(new)}.npz"))
    evaluation = {
        "iteration": 100,
        "results": {f"{dataset}/{KEY}": scores.mean()},
        "intervals": {f"{dataset}/{KEY}": intervals(samples)[KEY]},
        "samples": file.name,
    }
    (folder / "results.json").write_text(json.dumps({"last": evaluation}))
    if seed is not None:
        lines = f"train:\n  seed: {seed}\n  output_dir: {run}\n  max_iter: 100\n{config}"
        (run / "config.yaml").write_text(lines)
    return file


def _scores(mean, spread=20.0, photos=40, order=7):
    """Return scores of photos with this mean."""
    return mean + spread * np.cos(order * np.arange(photos) + 0.5)


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


def _runs(tmp_path, scores):
    runs = [write_run(tmp_path / name) for name in scores]
    for run, values in zip(runs, scores.values(), strict=True):
        write_drawn(run, values)
    return runs


def _compared(runs, tmp_path):
    """Return the comparison as it is printed, and the page."""
    lines = []
    page = write_comparison(runs, tmp_path / "page.html", show=lines.append)
    return "\n".join(lines), Page(page.read_text(encoding="utf-8"))


def test_difference_of_two_runs(tmp_path):
    scores = {"one": _scores(50), "better": _scores(53), "unclear": _scores(51, order=3)}
    printed, page = _compared(_runs(tmp_path, scores), tmp_path)
    assert "balloon_val/coco/segm/AP: better is better than one by 3.0 AP [3.0, 3.0]" in printed
    assert ("AP: unclear is " in printed) and "not distinguishable on these 40 photos" in printed
    key = f"balloon_val/{KEY}"
    assert f"\nbetter, {key}: The choice of photos does not explain the difference" in printed
    assert f"\nunclear, {key}: The choice of photos alone can make" in printed
    assert "one and better are single trainings" in printed
    assert "| marks no difference" in printed
    for row in printed.splitlines():
        if " is better than one by " in row:
            assert row.split(": ", 1)[1] in page.text
    assert page.attributes.count(("class", "whisker")) == 2
    low, high = json.loads((tmp_path / "one" / "results.json").read_text())["last"]["intervals"][
        f"balloon_val/{KEY}"
    ]
    assert f"{_scores(50).mean():.1f}[{low:.1f}, {high:.1f}]" in page.text


def test_seeds_of_one_config_are_averaged(tmp_path):
    for name, means in (("base", (49, 51, 53)), ("new", (54, 56))):
        for seed, mean in enumerate(means):
            run = write_run(tmp_path / f"{name}{seed}")
            write_drawn(run, _scores(mean), seed, f"model: {name}\n")
    runs = sorted(tmp_path.glob("base*")) + sorted(tmp_path.glob("new*"))
    printed, page = _compared(runs, tmp_path)
    words = "new0 (mean of 2 seeds) is better than base0 (mean of 3 seeds) by 4.0 AP [4.0, 4.0]"
    assert words in printed and words in page.text
    spread = _scores(0).mean()
    numbers = f"mean {51 + spread:.1f}, from {49 + spread:.1f} to {53 + spread:.1f}"
    seeds = f"of base0, base1, base2: 3 seeds, {numbers}, standard deviation 2.0"
    assert seeds in printed and seeds in page.text
    assert "differ by up to 4.0 from seed to seed, as much as" in printed
    assert "single training" not in printed


def test_seeds_alone_are_compared_with_the_first(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("s0", "s1")]
    for seed, run in enumerate(runs):
        write_drawn(run, _scores(50 + 2 * seed), seed)
    printed, _ = _compared(runs, tmp_path)
    assert "s1 is better than s0 by 2.0 AP" in printed and "only the seed makes" in printed
    assert "2 seeds, mean" in printed
    write_drawn(runs[1], _scores(52), seed=0)  # the same config and seed: not two seeds
    printed, _ = _compared(runs, tmp_path)
    assert "seeds, mean" not in printed and "s0 and s1 are single trainings" in printed


def test_other_photos_or_labels_are_not_compared(tmp_path):
    runs = _runs(tmp_path, {"one": _scores(50), "two": _scores(53), "three": _scores(52)})
    write_drawn(runs[1], _scores(53), ground_truth="other photos")
    printed, page = _compared(runs, tmp_path)
    note = "balloon_val of two is not compared: its photos or labels are not those of one"
    assert note in printed and note in page.text
    assert "two is" not in printed.replace(note, "") and "three is better than one" in printed


def test_test_sets_of_one_run_only_are_named(tmp_path):
    runs = _runs(tmp_path, {"one": _scores(50), "two": _scores(53)})
    write_drawn(runs[1], _scores(53), dataset="night")
    printed, _ = _compared(runs, tmp_path)
    assert "night of two is not compared: one was not evaluated on it." in printed
    assert "balloon_val of one is not compared: two was not evaluated on it." in printed


def test_different_evaluators_are_named(tmp_path):
    runs = _runs(tmp_path, {"one": _scores(50), "two": _scores(53)})
    for run, most in zip(runs, (100, 300), strict=True):
        write_drawn(run, _scores(50), 0, f"evaluators: {{coco: {{max_detections: {most}}}}}\n")
    printed, page = _compared(runs, tmp_path)
    note = "two and one may not be comparable: their evaluators differ (evaluators.coco.max_d"
    assert note in printed and note in page.text and "two and one do not differ" in printed
    write_drawn(runs[1], _scores(50), 0, "evaluators: {coco: {max_detections: 100}}\n")
    assert "may not be comparable" not in _compared(runs, tmp_path)[0]


def test_runs_without_draws_are_named_with_the_remedy(tmp_path):
    runs = _runs(tmp_path, {"one": _scores(50), "two": _scores(53)})
    old = write_run(tmp_path / "old")
    printed, page = _compared([*runs, old], tmp_path)
    assert "two is better than one" in printed
    assert "old is not compared: it has no draws of its images; make them" in printed
    assert f"{old} --intervals" in printed and "old is not compared" in page.text
    (old / "eval").mkdir()
    write_drawn(old, _scores(48), folder="eval")
    printed, _ = _compared([*runs, old], tmp_path)
    assert "those of old/eval are compared" in printed and "old is worse than one" in printed


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_draws_that_do_not_belong_to_the_results_are_not_used(tmp_path, damage):
    runs = _runs(tmp_path, {"one": _scores(50), "two": _scores(53)})
    (file,) = (runs[1] / "resamples").iterdir()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        (other,) = (runs[0] / "resamples").iterdir()
        file.write_bytes(other.read_bytes())
    printed, _ = _compared(runs, tmp_path)
    assert "two is not compared: it has no draws" in printed and "better than" not in printed
