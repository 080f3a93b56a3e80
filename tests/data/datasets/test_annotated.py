"""Datasets whose format is detected, and classes matched by name."""

import json

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf

from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.data.datasets.declare import Dataset, annotated_dataset, coco_dataset, middle_dataset
from d2ext.data.datasets.register import register_datasets, unregister_datasets, use_classes
from d2ext.data.formats.detect_format import detect_format
from d2ext.errors import UserError
from d2ext.evaluation.dataset_file import read_dataset
from d2ext.evaluation.instances import detection_columns, ground_truth_columns
from d2ext.evaluation.predictions import write_predictions
from d2ext.evaluation.results_file import read_results, to_detections


def _coco(names, objects, **more):
    """Return an image with an object of each named class; ids are 10, 20, ... in their order."""
    ids = {name: 10 * (i + 1) for i, name in enumerate(names)}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}],
        "categories": [{"id": id_, "name": name} for name, id_ in ids.items()],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": ids[name], "bbox": [i, 1, 4, 4]}
            for i, name in enumerate(objects)
        ],
        **more,
    }


def _middle(names, objects):
    instances = [
        {"bbox": [i, 1, i + 4, 5], "bbox_label": names.index(name), "ignore_flag": 0}
        for i, name in enumerate(objects)
    ]
    image = {"img_path": "a.jpg", "height": 8, "width": 8, "instances": instances}
    return {"metainfo": {"classes": names}, "data_list": [image]}


@pytest.fixture
def write(tmp_path):
    def run(name, content):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path / name)

    yield run
    unregister_datasets()


VIA_1 = {"a.jpg": {"filename": "a.jpg", "size": 1, "regions": {}, "file_attributes": {}}}
CSV = (
    "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
    'region_attributes\na.jpg,1,"{}",0,0,"{}","{}"\n'
)


@pytest.mark.parametrize(
    ("content", "name", "known"),
    [
        (_coco(["x"], []), "a.json", "coco"),
        ({**_coco(["x"], []), "odd": float("nan")}, "a.json", "coco"),
        (_middle(["x"], []), "a.json", "middle"),
        (VIA_1, "a.json", "via"),
        ({"_via_settings": {}, "_via_img_metadata": VIA_1, "_via_attributes": {}}, "p.json", "via"),
        (CSV, "a.csv", "via"),
    ],
)
def test_formats_are_detected(write, content, name, known):
    assert detect_format(write(name, content)) == known


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ({}, "a.json", "none of the formats that training reads: COCO .* VIA .* MMDetection"),
        ([1], "a.json", "none of the formats that training reads"),
        ({"shapes": [], "imagePath": "a.jpg"}, "a.json", "`d2ext convert labelme "),
        ({"a": {}, "b": {}}, "a.json", "none of the formats"),
        ("class,x,y\n", "a.csv", "none of the formats"),
        ("", "a.csv", "none of the formats"),
        ("{", "a.json", "not valid JSON"),
    ],
)
def test_other_files_are_refused(write, tmp_path, content, name, message):
    with pytest.raises(UserError, match=message):
        detect_format(write(name, content))
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        detect_format(tmp_path / "none.csv")


def test_one_declaration_reads_any_format(write):
    names = ["dog", "cat"]
    files = {
        "any_coco": write("c.json", _coco(names, ["cat", "dog"])),
        "any_middle": write("m.json", _middle(names, ["cat", "dog"])),
    }
    for file in files.values():
        whole = annotated_dataset(file, "/photos", palette=[[1, 2, 3], [4, 5, 6]])
        assert whole.classes == ("dog", "cat")
        (record,) = whole.load()
        assert [a["category_id"] for a in record["annotations"]] == [1, 0]
        assert [a["bbox"] for a in record["annotations"]] == [[0, 1, 4, 5], [1, 1, 5, 5]]
        part = annotated_dataset(file, "/photos", classes=["cat"], palette=[[1, 2, 3]])
        (record,) = part.load()
        assert [a["category_id"] for a in record["annotations"]] == [0]
        assert part.metadata["thing_colors"] == [(1, 2, 3)]
        with pytest.raises(UserError, match=r"'cats'; did you mean 'cat'\?"):
            annotated_dataset(file, "/photos", classes=["cats"]).load()
        valid = annotated_dataset(file, "/photos", classes=["bird", "cat"], missing_ok=True)
        (record,) = valid.load()
        assert [a["category_id"] for a in record["annotations"]] == [1]
        assert set(valid.metadata.get("thing_dataset_id_to_contiguous_id", {0: 1}).values()) >= {1}
    assert middle_dataset(files["any_middle"], "/p").classes == ("dog", "cat")


def test_via_with_given_or_detected_classes(tiny_root, tmp_path, write):
    folder = tiny_root / "balloon" / "val"
    file = folder / "via_region_data.json"
    dataset = annotated_dataset(str(file), str(folder), classes=["balloon"])
    objects = [a for r in dataset.load() for a in r["annotations"]]
    assert objects and {a["category_id"] for a in objects} == {0}
    content = json.loads(file.read_text())
    for i, entry in enumerate(content.values()):
        regions = entry["regions"]
        for region in regions.values() if isinstance(regions, dict) else regions:
            region["region_attributes"] = {"name": ["red", "blue"][i % 2]}
    found = annotated_dataset(write("named.json", content), str(folder))
    assert found.classes == ("blue", "red")
    assert {a["category_id"] for r in found.load() for a in r["annotations"]} == {0, 1}


@pytest.mark.parametrize("palette", [[[1, 2, 3]], [[1, 2, 3], [1, 2, 256]], [[1, 2], [3, 4]]])
def test_a_palette_has_a_color_for_each_class(write, palette):
    with pytest.raises(UserError, match=r"palette=.*each of the 2 classes \(dog, cat\)"):
        coco_dataset(write("a.json", _coco(["dog", "cat"], [])), "/photos", palette=palette)


def _config(train, val, **datasets):
    return OmegaConf.create(
        {
            "datasets": {
                name: L(annotated_dataset)(json_file=file, image_root="/photos", **more)
                for name, (file, more) in datasets.items()
            },
            "dataloader": {
                "train": {"dataset": {"names": train}},
                "val": {"dataset": {"names": val}},
                "test": None,
            },
        },
        flags={"allow_objects": True},
    )


def _labels(name):
    classes = MetadataCatalog.get(name).thing_classes
    return [classes[a["category_id"]] for a in DatasetCatalog.get(name)[0]["annotations"]]


def test_validation_classes_are_mapped_to_training_classes_by_name(write, tmp_path):
    train = write("train.json", _coco(["dog", "cat", "bird"], ["cat", "bird"]))
    val = write("val.json", _coco(["kite", "cat", "dogs", "dog"], ["dog", "kite", "cat", "kite"]))
    colors = [[i, i, i] for i in range(3)]
    cfg = _config("by_train", "by_val", by_train=(train, {"palette": colors}), by_val=(val, {}))
    notes = register_run_datasets(cfg)
    assert notes == [
        "by_val lacks 1 class of by_train: 'bird'",
        "by_val has 2 classes that by_train lacks, whose objects are dropped: 'kite', 'dogs'",
    ]
    for name in ("by_train", "by_val"):
        assert MetadataCatalog.get(name).thing_classes == ["dog", "cat", "bird"]
        assert MetadataCatalog.get(name).thing_colors == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    assert _labels("by_val") == ["dog", "cat"] == _labels("by_val")
    assert _labels("by_train") == ["cat", "bird"]
    assert register_run_datasets(cfg) == []  # again, as each process of a run does
    # Results use the file's ids, so that evaluate.py accepts them. A class that is not in the file
    # gets an id after them, for Detectron2's own evaluator, and no results.
    ids = MetadataCatalog.get("by_val").thing_dataset_id_to_contiguous_id
    assert {i: c for i, c in ids.items() if c < 2} == {40: 0, 20: 1} and len(ids) == 3
    found = [{"image_id": 1, "category_id": c, "bbox": [1, 1, 2, 2], "score": 1} for c in range(3)]
    ground_truth = ground_truth_columns(DatasetCatalog.get("by_val"), ["dog", "cat", "bird"])
    write_predictions(
        "by_val", detection_columns(ground_truth, found), ground_truth.image_ids, tmp_path
    )
    written = json.loads((tmp_path / "by_val.json").read_text())
    assert [p["category_id"] for p in written] == [40, 20]
    results = read_results(tmp_path / "by_val.json")
    theirs = read_dataset(tmp_path / "val.json", with_masks=False)
    offline = to_detections(tmp_path / "by_val.json", results, theirs)
    assert len(offline.scores) == 2


def test_a_correction_is_suggested_for_a_misspelled_class(write):
    train = write("train.json", _coco(["dog", "cat"], []))
    val = write("val.json", _coco(["dogg", "cat"], []))
    notes = register_run_datasets(_config("g_train", "g_val", g_train=(train, {}), g_val=(val, {})))
    assert notes[-1].endswith("dropped: 'dogg' (did you mean 'dog'?)")


def test_joined_training_sets_have_the_union_of_classes(write):
    a = write("a.json", _coco(["dog", "cat"], ["dog", "cat"]))
    b = write("b.json", _middle(["kite", "cat"], ["kite", "cat"]))
    notes = register_run_datasets(_config(["u_a", "u_b"], "u_b", u_a=(a, {}), u_b=(b, {})))
    assert notes == [
        "u_a lacks 1 class of u_b: 'kite'",
        "u_b lacks 1 class of u_a: 'dog'",
    ]
    for name, labels in (("u_a", ["dog", "cat"]), ("u_b", ["kite", "cat"])):
        assert MetadataCatalog.get(name).thing_classes == ["dog", "cat", "kite"]
        assert _labels(name) == labels


def test_datasets_without_a_common_class_are_refused(write):
    a, b = write("a.json", _coco(["dog"], [])), write("b.json", _coco(["cat"], []))
    with pytest.raises(UserError, match="n_a and n_b have no class in common: 'dog' and 'cat'"):
        register_run_datasets(_config("n_a", "n_b", n_a=(a, {}), n_b=(b, {})))


def test_a_dataset_registered_elsewhere_is_mapped_too():
    records = [
        {"image_id": 1, "annotations": [{"category_id": 1, "bbox_mode": 0}]},
        {"image_id": 2},
    ]
    DatasetCatalog.register("theirs", lambda: records)
    MetadataCatalog.get("theirs").set(thing_classes=["a", "b"], evaluator_type="coco")
    try:
        use_classes("theirs", ["b", "a"])
        assert _labels("theirs") == ["b"]
        assert MetadataCatalog.get("theirs").evaluator_type == "coco"
        assert records[0]["annotations"][0]["category_id"] == 1
    finally:
        unregister_datasets()
        assert DatasetCatalog.get("theirs") == records  # as it was registered
        DatasetCatalog.remove("theirs")
        MetadataCatalog.remove("theirs")


def test_a_validation_set_with_chosen_classes_has_json_file(write, tmp_path):
    file = write("v.json", _coco(["cat"], ["cat"]))
    dataset = annotated_dataset(file, str(tmp_path), classes=["cat"], missing_ok=True)
    assert dataset.metadata["json_file"] == file  # used by the preflight checks


@pytest.mark.parametrize("name", ["data.yaml", "a.xml", "labels"])
def test_formats_that_need_conversion_are_reported(tmp_path, name):
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [a]")
    (tmp_path / "a.xml").write_text("<annotation/>")
    with pytest.raises(UserError, match="`d2ext convert[ `]"):
        detect_format(tmp_path / name)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (None, "returned a NoneType; return a list"),
        ((r for r in ()), "returned a generator; return a list"),
        ([{"file_name": "a.jpg", "annotations": [{"bbox": [0, 0, 1, 1]}]}], "needs a bbox of four"),
        ([{"file_name": "a", "annotations": [{"bbox": [0, 1], "bbox_mode": 0}]}], "annotations.0."),
    ],
)
def test_records_of_a_custom_function_are_checked(write, records, words):
    register_datasets({"own_a": L(_own)(records=7)})
    try:
        OWN["records"] = records
        with pytest.raises(UserError, match=f"datasets.own_a: .*{words}"):
            DatasetCatalog.get("own_a")
    finally:
        OWN.clear()


OWN = {}


def _own(records):
    return Dataset(lambda: OWN["records"], ["thing"])
