"""Open Images' AP, compared with hand-worked examples, and with hotcoco if both match alike."""

import contextlib
import io
import json
import logging
import math
from pathlib import Path

import hotcoco
import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ext.errors import UserError
from d2ext.evaluation.open_images import OpenImagesMetric
from d2ext.evaluation.voc import VocMetric
from tests.evaluation.columns import detections, ground_truth, perfect

CROWD = (100, 100, 100, 100)  # the box of a group
IN_CROWD = [(110, 110, 10, 10), (150, 150, 10, 10), (180, 180, 15, 15)]
SINGLE = (0, 0, 10, 10)
FAR = (900, 900, 10, 10)
HELMETS = ("Football helmet", "Bicycle helmet", "Helmet", "Person")


def _ap(objects: list, found: list) -> float:
    return OpenImagesMetric()(ground_truth(objects), detections(found))["bbox/AP50"]


@pytest.fixture
def helmets(tmp_path: Path) -> Path:
    """Return a hierarchy of two kinds of helmets, below a root that is not a class."""
    kinds = [{"LabelName": name} for name in HELMETS[:2]]
    helmet = {"LabelName": "Helmet", "Subcategory": kinds, "Part": [{"LabelName": "Visor"}]}
    tree = {"LabelName": "Entity", "Subcategory": [helmet, {"LabelName": "Person"}]}
    (tmp_path / "hierarchy.json").write_text(json.dumps(tree))
    return tmp_path / "hierarchy.json"


@pytest.mark.parametrize("flags", [["group_of"], ["group_of", "crowd"]])
def test_a_group_is_one_object_regardless_of_the_detections_in_it(flags):
    objects = [(0, 0, SINGLE), (0, 0, CROWD, *flags)]
    single = (0, 0, SINGLE, 0.5)
    inside = [(0, 0, box, score) for box, score in zip(IN_CROWD, (0.6, 0.9, 0.8), strict=True)]
    assert _ap(objects, [single]) == 50  # the group is missed
    assert _ap(objects, [single, *inside]) == 100  # one hit, two are ignored
    # By score: the group at 0.9, a false positive, the single object: precisions 1 and 2/3.
    far = (0, 0, FAR, 0.7)
    assert _ap(objects, [single, *inside, far]) == pytest.approx(100 * (1 + 2 / 3) / 2, abs=1e-9)
    # The group has the score of its best detection, so the others make no difference.
    assert _ap(objects, [single, inside[1], far]) == _ap(objects, [single, *inside, far])


def test_half_the_detection_must_lie_in_the_group():
    group = [(0, 0, CROWD, "group_of")]
    assert _ap(group, [(0, 0, (95, 110, 10, 10), 0.5)]) == 100  # 5 of 10 columns
    assert _ap(group, [(0, 0, (94, 110, 10, 10), 0.5)]) == 0  # 4 of them
    # The whole group is in the detection, but less than half of the detection is in the group.
    assert _ap(group, [(0, 0, (50, 50, 200, 200), 0.5)]) == 0


def test_single_objects_are_matched_before_groups():
    """One detection is matched to the single object, and the other one to the group."""
    objects = [(0, 0, IN_CROWD[0]), (0, 0, CROWD, "group_of")]
    found = [(0, 0, IN_CROWD[0], 0.5), (0, 0, (110, 110, 10, 9), 0.9)]
    assert _ap(objects, found[:1]) == 50
    # The 10 x 9 one has the higher score, so it hits the object (IoU 0.9), the other the group.
    assert _ap(objects, found) == 100
    assert _ap([(0, 0, CROWD, "group_of"), *objects[:1]], found) == 100


def test_difficult_objects_are_neither_hit_nor_miss():
    objects = [(0, 0, SINGLE), (0, 0, FAR, "difficult"), (0, 0, CROWD, "difficult", "group_of")]
    found = [(0, 0, FAR, 0.9), (0, 0, IN_CROWD[0], 0.8), (0, 0, SINGLE, 0.5)]
    assert _ap(objects, found) == 100
    assert math.isnan(_ap(objects[1:], found))


def test_a_crowd_is_neither_hit_nor_miss():
    objects = [(0, 0, SINGLE), (0, 0, CROWD, "crowd")]
    single = (0, 0, SINGLE, 0.5)
    inside = [(0, 0, box, 0.9) for box in IN_CROWD]
    assert _ap(objects, [single]) == _ap(objects, [single, *inside]) == 100
    # If the crowd is also difficult, only detections with its shape are ignored, as in VOC.
    objects = [(0, 0, SINGLE), (0, 0, CROWD, "crowd", "difficult")]
    assert _ap(objects, [single, (0, 0, CROWD, 0.9)]) == 100
    assert _ap(objects, [single, *inside]) == 25


def test_a_second_hit_is_a_miss_even_if_another_object_is_free():
    """This is as in VOC, but unlike COCO; see test_voc.py."""
    objects = [(0, 0, (0, 0, 100, 100)), (0, 0, (0, 0, 100, 60))]
    assert _ap(objects, [(0, 0, (0, 0, 100, 100), 0.9), (0, 0, (0, 0, 100, 85), 0.8)]) == 50


def test_the_number_of_detections_is_unlimited():
    """With 200 false positives before the hit, precision is 1/201."""
    found = [*((0, 0, FAR, 0.9) for _ in range(200)), (0, 0, SINGLE, 0.5)]
    assert _ap([(0, 0, SINGLE)], found) == pytest.approx(100 / 201, abs=1e-9)


def test_objects_count_for_the_ancestors_of_their_class(helmets):
    """A football helmet counts as a helmet, so one of two helmets is found."""
    t = ground_truth([(0, 0, SINGLE), (0, 2, FAR), (0, 3, CROWD)], HELMETS)
    d = detections([(0, 0, SINGLE, 0.5), (0, 3, CROWD, 0.9)])
    numbers = OpenImagesMetric(str(helmets))(t, d)
    assert math.isnan(numbers.pop("bbox/AP50-Bicycle helmet"))
    classes = {"Football helmet": 100, "Helmet": 50, "Person": 100}
    assert numbers == {f"bbox/AP50-{c}": ap for c, ap in classes.items()} | {
        "bbox/AP50": pytest.approx(250 / 3)
    }
    # As in the challenge, a detected football helmet does not count as a helmet.
    challenge = OpenImagesMetric(str(helmets), expand_detections=False)(t, d)
    assert challenge["bbox/AP50-Helmet"] == 0 and challenge["bbox/AP50-Football helmet"] == 100
    assert OpenImagesMetric()(t, d)["bbox/AP50-Helmet"] == 0
    assert OpenImagesMetric(str(helmets))(t, perfect(t))["bbox/AP50"] == 100


def test_a_group_is_also_a_group_of_its_ancestors(helmets):
    t = ground_truth([(0, 0, CROWD, "group_of"), (0, 2, SINGLE)], HELMETS)
    d = detections([(0, 2, SINGLE, 0.5), *((0, 1, box, 0.9) for box in IN_CROWD)])
    numbers = OpenImagesMetric(str(helmets))(t, d)
    assert numbers["bbox/AP50-Helmet"] == 100 and numbers["bbox/AP50-Football helmet"] == 0


def test_a_repeated_class_has_the_ancestors_of_all_places(tmp_path):
    """Levels that are not classes of the dataset are skipped."""
    ball = {"LabelName": "ball"}
    toys = {"LabelName": "toy", "Subcategory": [{"LabelName": "throwable", "Subcategory": [ball]}]}
    gear = {"LabelName": "gear", "Subcategory": [ball]}
    tree = {"LabelName": "thing", "Subcategory": [toys, gear]}
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    t = ground_truth([(0, 0, SINGLE)], ("ball", "gear", "toy", "kite"))
    numbers = OpenImagesMetric(str(tmp_path / "tree.json"))(t, perfect(t))
    assert numbers["bbox/AP50-gear"] == numbers["bbox/AP50-toy"] == 100
    assert math.isnan(numbers["bbox/AP50-kite"])


def test_codes_are_translated_by_the_descriptions_next_to_the_file(tmp_path):
    tree = {"LabelName": "/m/0zvk5", "Subcategory": [{"LabelName": "/m/02wg_p"}]}
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    t = ground_truth([(0, 0, SINGLE)], HELMETS)
    with pytest.raises(UserError, match=r"has none of the classes .*/m/0.*class-descriptions"):
        OpenImagesMetric(str(tmp_path / "tree.json"))(t, perfect(t))
    names = "/m/0zvk5,Helmet\n/m/02wg_p,Football helmet\n"
    (tmp_path / "class-descriptions-boxable.csv").write_text(names)
    numbers = OpenImagesMetric(str(tmp_path / "tree.json"))(t, perfect(t))
    assert numbers["bbox/AP50-Helmet"] == 100


place = st.tuples(st.integers(0, 1), st.integers(0, 7))  # image, cell; cells do not touch
jitter = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(4, 13), st.integers(4, 13))


@settings(max_examples=60, deadline=None)
@given(
    objects=st.dictionaries(place, st.tuples(st.integers(0, 3), st.booleans()), max_size=12),
    found=st.dictionaries(
        st.integers(1, 999), st.tuples(place, st.integers(0, 3), jitter), min_size=1, max_size=25
    ),
    expand=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:hotcoco")
def test_results_equal_those_of_hotcoco(tmp_path_factory, objects, found, expand):
    """Each detection overlaps at most one object, and there are at most 100 detections."""
    path = tmp_path_factory.mktemp("hierarchy") / "tree.json"
    kinds = [{"LabelName": name} for name in HELMETS[:2]]
    tree = {"LabelName": "Entity", "Subcategory": [{"LabelName": "Helmet", "Subcategory": kinds}]}
    path.write_text(json.dumps(tree))
    rows = [
        (image, label, (20 * cell, 0, 10, 10), "group_of" if group else "")
        for (image, cell), (label, group) in objects.items()
    ]
    guesses = [
        (image, label, (20 * cell + x, y, w, h), score / 1000)
        for score, ((image, cell), label, (x, y, w, h)) in found.items()
    ]
    ours = OpenImagesMetric(str(path), expand)(ground_truth(rows, HELMETS, 2), detections(guesses))
    theirs = _hotcoco(rows, guesses, expand)
    for name in HELMETS:
        mine = ours[f"bbox/AP50-{name}"]
        if math.isnan(mine):
            assert f"AP/{name}" not in theirs
        else:
            assert mine == pytest.approx(100 * theirs[f"AP/{name}"], abs=1e-9)


def _hotcoco(rows: list, guesses: list, expand: bool) -> dict[str, float]:
    gt = hotcoco.COCO(
        dict(
            images=[dict(id=i + 1, width=1000, height=1000) for i in range(2)],
            categories=[dict(id=i + 1, name=name) for i, name in enumerate(HELMETS)],
            annotations=[
                dict(id=n, image_id=i + 1, category_id=c + 1, bbox=box, area=100, iscrowd=0)
                | dict(is_group_of=bool(flag))
                for n, (i, c, box, flag) in enumerate(rows, start=1)
            ],
        )
    )
    dt = gt.load_res(
        [dict(image_id=i + 1, category_id=c + 1, bbox=b, score=s) for i, c, b, s in guesses]
    )
    hierarchy = hotcoco.Hierarchy.from_parent_map({1: 3, 2: 3})
    evaluation = hotcoco.COCOeval(gt, dt, "bbox", oid_style=True, hierarchy=hierarchy)
    evaluation.params.expand_dt = expand
    evaluation.evaluate()
    evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return evaluation.get_results(per_class=True)


def test_without_groups_and_hierarchy_results_equal_voc(caplog):
    caplog.set_level(logging.INFO, "d2ext")
    t = ground_truth([(i % 3, i % 2, (7 * i, 5, 20, 20)) for i in range(20)], ("cat", "dog"), 3)
    d = detections([(i % 3, i % 2, (6 * i, 4, 20, 20), i / 30) for i in range(20)])
    ours, voc = OpenImagesMetric()(t, d), VocMetric()(t, d)
    assert 0 < ours["bbox/AP50"] < 100
    assert ours == {key: value for key, value in voc.items() if "AP50" in key}
    assert "cat" in caplog.text and "all" in caplog.text


def test_no_objects_and_no_detections():
    empty = ground_truth([], ("cat", "dog"))
    assert all(map(math.isnan, OpenImagesMetric()(empty, detections([])).values()))
    assert math.isnan(OpenImagesMetric()(empty, detections([(0, 0, FAR, 0.5)]))["bbox/AP50"])
    assert _ap([(0, 0, SINGLE)], []) == 0
    assert _ap([(0, 0, CROWD, "group_of")], []) == 0


@pytest.mark.parametrize("per_class", [True, False])
def test_keys_equal_those_of_the_results(helmets, per_class):
    metric = OpenImagesMetric(str(helmets), per_class=per_class)
    results = metric(ground_truth([], HELMETS), detections([]))
    assert metric.keys(HELMETS, ["bbox"]) == set(results)
    with pytest.raises(UserError, match="hierarchy.json has none of the classes"):
        metric.keys(("cat",), ["bbox"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", r"is not an Open Images hierarchy: \[\] is not of the form"),
        ('{"LabelName": 3}', "is not an Open Images hierarchy"),
        ('{"LabelName": "a", "Subcategory": {}}', "is not an Open Images hierarchy"),
        ('{"LabelName": "a", "Subcategory": ["b"]}', "'b' is not of the form"),
        ('{"LabelName": "a", "Subcategory": null}', "is not an Open Images hierarchy"),
        ('{"Subcategory": []}', "is not an Open Images hierarchy"),
        ('{"LabelName": "a", "Subcategory": [' * 5000, "is not valid JSON"),
    ],
)
def test_an_invalid_hierarchy_gives_a_one_line_error(tmp_path, content, said):
    (tmp_path / "tree.json").write_text(content)
    with pytest.raises(UserError, match=rf"tree\.json {said}|tree\.json .*{said}") as e:
        OpenImagesMetric(str(tmp_path / "tree.json"))
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(hierarchy_file="/nowhere/tree.json"), "/nowhere/tree.json does not exist"),
        (dict(hierarchy_file=["a"]), r"hierarchy_file=\['a'\]; give a path"),
        (dict(expand_detections="yes"), "expand_detections='yes'; give true or false"),
        (dict(per_class=1), "per_class=1"),
    ],
)
def test_arguments_are_checked_on_creation(settings, said):
    with pytest.raises(UserError, match=f"^OpenImagesMetric: .*{said}"):
        OpenImagesMetric(**settings)


def test_a_metric_from_a_config(helmets):
    metric = instantiate(L(OpenImagesMetric)(hierarchy_file=str(helmets)))
    t = ground_truth([(0, 0, SINGLE)], HELMETS)
    assert metric(t, perfect(t))["bbox/AP50-Helmet"] == 100
