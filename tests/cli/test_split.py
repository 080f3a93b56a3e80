"""Split COCO files with d2ext split and d2ext convert --val."""

import json
import re
import shlex
import shutil

import pytest
from PIL import Image

from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.via import read_via


@pytest.fixture
def photos(real_balloon, tmp_path):
    """Write 24 balloon photos to imgs/, and a.json with fields of its own; return the folder."""
    source = real_balloon / "train"
    records = read_via(source / "via_region_data.json", source, ["balloon"])[:24]
    content = to_coco(records, ["balloon"], source)
    (tmp_path / "imgs").mkdir()
    for i, image in enumerate(content["images"]):
        shutil.copy(source / image["file_name"], tmp_path / "imgs")
        image["date_captured"] = f"day {i}"
    content |= {"info": {"year": 2026}, "licenses": [{"id": 1}], "extra": [1.50, None, "é"]}
    (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False))
    return tmp_path


def _content(file):
    return json.loads(file.read_text())


def _add_copy(photos, name, new, change):
    """Add a changed copy of a photo, with its annotations, to the dataset."""
    content = _content(photos / "a.json")
    image = next(image for image in content["images"] if image["file_name"] == name)
    with Image.open(photos / "imgs" / name) as photo:
        change(photo).save(photos / "imgs" / new, quality=50)
    content["images"].append({**image, "id": 1000 + len(content["images"]), "file_name": new})
    (photos / "a.json").write_text(json.dumps(content))


def test_nothing_is_lost_or_changed(d2ext_command, photos):
    arguments = ("split", "a.json", "--val", "0.25", "--seed", "1")
    for name in ("one", "two"):
        done = d2ext_command(*arguments, "--output", name)
        assert done.status == 0, done.stderr
    assert "not searched for, because --images DIR is not given" in done.stdout
    assert re.search(r"images +18 +6\n", done.stdout), done.stdout
    whole = _content(photos / "a.json")
    parts = [_content(photos / "one" / f"{side}.json") for side in ("train", "val")]
    for key in ("images", "annotations"):
        both = [entry for part in parts for entry in part[key]]
        assert sorted(both, key=lambda entry: entry["id"]) == whole[key]
    for part in parts:
        kept = {key: value for key, value in part.items() if key not in ("images", "annotations")}
        assert kept == {key: whole[key] for key in ("info", "categories", "licenses", "extra")}
        ids = {image["id"] for image in part["images"]}
        assert {a["image_id"] for a in part["annotations"]} <= ids
    for side in ("train.json", "val.json"):
        assert (photos / "one" / side).read_bytes() == (photos / "two" / side).read_bytes()
    d2ext_command("split", "a.json", "--val", "0.25", "--seed", "2", "--output", "three")
    assert (photos / "one/val.json").read_bytes() != (photos / "three/val.json").read_bytes()


def test_each_image_is_in_one_validation_set_of_the_folds(d2ext_command, photos):
    done = d2ext_command("split", "a.json", "--folds", "4", "--output", "folds")
    assert done.status == 0, done.stderr
    whole = {image["id"] for image in _content(photos / "a.json")["images"]}
    seen = []
    for k in range(1, 5):
        train, val = (
            [image["id"] for image in _content(photos / f"folds/fold_{k}/{side}.json")["images"]]
            for side in ("train", "val")
        )
        assert len(val) == 6 and set(train) == whole - set(val)
        seen += val
    assert sorted(seen) == sorted(whole)
    assert re.search(r"images +6 +6 +6 +6\n", done.stdout)


def test_near_duplicates_are_on_the_same_side(d2ext_command, photos):
    names = sorted(path.name for path in (photos / "imgs").iterdir())[:6]
    for name in names:
        _add_copy(photos, name, f"half_{name}", lambda p: p.resize((p.width // 2, p.height // 2)))
    (photos / "imgs" / sorted(names)[-1]).with_name("text.jpg").write_text("no photo")
    content = _content(photos / "a.json")
    first = content["images"][0]
    content["images"] += [
        {**first, "id": 2000, "file_name": "text.jpg"},
        {**first, "id": 2001, "file_name": "absent.jpg"},
    ]
    (photos / "a.json").write_text(json.dumps(content))
    for seed in range(3):  # the second and third from the cache
        done = d2ext_command(
            *("split", "a.json", "--images", "imgs", "--val", "0.4", "--seed", seed),
            *("--output", f"out{seed}"),
        )
        assert done.status == 0, done.stderr
        assert "near-duplicates: 6 groups of 12 photos, of 30, never on both sides" in done.stdout
        words = "2 of 32 photos not compared, such as imgs/absent.jpg: it does not exist"
        assert words in done.stdout
        val = {i["file_name"] for i in _content(photos / f"out{seed}/val.json")["images"]}
        assert all((name in val) == (f"half_{name}" in val) for name in names)


def test_images_of_a_group_are_on_the_same_side(d2ext_command, photos):
    content = _content(photos / "a.json")
    for i, image in enumerate(content["images"]):
        image["file_name"] = f"clip{i % 6}/{i}.jpg" if i < 23 else "other.jpg"
    (photos / "a.json").write_text(json.dumps(content))
    done = d2ext_command("split", "a.json", "--group-by", r"clip\d", "--output", "out")
    assert done.status == 0, done.stderr
    assert "--group-by: 6 groups of 23 images; 1 image does not match" in done.stdout
    train, val = (
        {i["file_name"].split("/")[0] for i in _content(photos / f"out/{side}.json")["images"]}
        for side in ("train", "val")
    )
    assert not train & val and val


def test_a_class_on_one_side_only_is_a_warning(d2ext_command, photos):
    content = _content(photos / "a.json")
    content["categories"] += [{"id": 7, "name": "kite"}, {"id": 8, "name": "unused"}]
    content["annotations"][0]["category_id"] = 7
    (photos / "a.json").write_text(json.dumps(content))
    done = d2ext_command("split", "a.json", "--output", "out")
    assert re.search(r"warning: (train|val).json has no object of kite\n", done.stdout)
    assert "no object of unused" in done.stdout and done.status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--val", "1"], "--val 1: give the share"),
        (["--val", "nan"], "--val nan: give the share"),
        (["--folds", "1"], "--folds 1: give at least 2"),
        (
            ["--folds", "25"],
            "24 images cannot be split into 25 parts; give more images or fewer folds",
        ),
        (["--seed", "-1"], "the seed -1 is negative"),
        (["--group-by", "^x"], "--group-by '^x' matches no file name"),
        (["--images", "nowhere"], "the image folder nowhere does not exist"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(d2ext_command, photos, arguments, words):
    done = d2ext_command("split", "a.json", *arguments, "--output", "out")
    assert done.status == 2 and done.stderr.startswith("error: ")
    assert words in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in photos.iterdir()) == ["a.json", "imgs"]


def test_a_single_image_cannot_be_split(d2ext_command, photos):
    content = _content(photos / "a.json")
    content["images"] = content["images"][:1]
    first = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == first]
    (photos / "a.json").write_text(json.dumps(content))
    done = d2ext_command("split", "a.json", "--images", "imgs", "--output", "out")
    words = "1 image cannot be split into 2 parts; give more images"
    assert done.status == 2 and done.stderr.strip() == f"error: {words}"


def test_missing_photos_are_counted(d2ext_command, photos):
    (photos / "none").mkdir()
    done = d2ext_command("split", "a.json", "--images", "none", "--output", "out")
    assert done.status == 0, done.stderr
    assert "24 of 24 photos not compared" in done.stdout and "none among" not in done.stdout


def test_the_output_may_be_a_link_to_an_empty_folder(d2ext_command, photos):
    (photos / "place").mkdir()
    (photos / "out").symlink_to("place")
    done = d2ext_command("split", "a.json", "--output", "out")
    assert done.status == 0, done.stderr
    assert (photos / "out").is_symlink() and (photos / "place/val.json").is_file()
    done = d2ext_command("split", "a.json", "--output", "a.json/out")
    assert done.status == 2
    assert done.stderr.startswith("error: cannot write a.json/out: ")
    assert done.stderr.endswith("; choose another --output\n")


def test_an_existing_folder_is_not_overwritten(d2ext_command, photos):
    (photos / "out").mkdir()
    assert d2ext_command("split", "a.json", "--output", "out").status == 0
    before = (photos / "out/val.json").read_bytes()
    done = d2ext_command("split", "a.json", "--seed", "5", "--output", "out")
    assert done.status == 2 and "the folder out is not empty" in done.stderr
    assert (photos / "out/val.json").read_bytes() == before


def test_damaged_files_name_their_error(d2ext_command, photos, real_balloon):
    content = _content(photos / "a.json")
    content["annotations"][2]["image_id"] = 999
    (photos / "b.json").write_text(json.dumps(content))
    done = d2ext_command("split", "b.json", "--output", "out")
    assert done.status == 2 and "annotations[2] has the unknown image_id 999" in done.stderr
    assert "d2ext check b.json" in done.stderr
    content = _content(photos / "a.json")
    content["categories"] *= 2
    (photos / "b.json").write_text(json.dumps(content))
    done = d2ext_command("split", "b.json", "--output", "out")
    assert done.status == 2 and "b.json: two categories have the same id" in done.stderr
    via = real_balloon / "train" / "via_region_data.json"
    done = d2ext_command("split", via, "--output", "out")
    assert done.status == 2 and f"d2ext convert via {shlex.quote(str(via))}" in done.stderr


def test_other_encodings_are_read(d2ext_command, photos):
    text = (photos / "a.json").read_text()
    (photos / "b.json").write_text(text, encoding="utf-16")
    for name in ("a", "b"):
        assert d2ext_command("split", f"{name}.json", "--output", name).status == 0
    assert _content(photos / "a/val.json") == _content(photos / "b/val.json")


@pytest.mark.parametrize(
    ("kind", "written", "source", "more"),
    [
        ("via", "via", "", []),
        ("labelme", "labelme", "", []),
        ("yolo", "yolo", "", []),
        ("yolo", "yolo_seg", "data.yaml", ["--split", "train"]),
        ("voc", "voc", "", []),
        ("cvat", "cvat", "", []),
        ("createml", None, "", []),
        ("open_images", "open_images", "", []),
    ],
)
def test_convert_splits_what_it_reads(d2ext_command, photos, kind, written, source, more):
    if written:
        done = d2ext_command(
            *("convert", "coco", "a.json", "--to", written, "--images", "imgs", "--output", "b")
        )
        assert done.status == 0, done.stderr
    else:
        _write_createml(photos / "b", _content(photos / "a.json"))
    if source == "data.yaml":
        shutil.copytree(photos / "b", photos / "imgs", dirs_exist_ok=True)  # labels beside photos
        (photos / "b" / source).write_text("train: ../imgs\nval: ../imgs\nnames: [balloon]\n")
    arguments = ("convert", kind, f"b/{source}".rstrip("/"), "--images", "imgs", *more)
    done = d2ext_command(*arguments, "--output", "whole.json")
    assert done.status == 0, done.stderr
    done = d2ext_command(*arguments, "--val", "0.25", "--seed", "3", "--output", "split")
    assert done.status == 0 and re.search(r"images +18 +6\n", done.stdout), done.stderr
    done = d2ext_command(
        *("split", "whole.json", "--images", "imgs", "--val", "0.25", "--seed", "3"),
        *("--output", "again"),
    )
    assert done.status == 0, done.stderr
    for side in ("train.json", "val.json"):
        assert (photos / "split" / side).read_bytes() == (photos / "again" / side).read_bytes()


def _write_createml(file, content):
    names = {image["id"]: image["file_name"] for image in content["images"]}
    entries = {i: {"image": name, "annotations": []} for i, name in names.items()}
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        box = {"x": x + w / 2, "y": y + h / 2, "width": w, "height": h}
        entries[annotation["image_id"]]["annotations"].append(
            {"label": "balloon", "coordinates": box}
        )
    file.write_text(json.dumps(list(entries.values())))


def test_mistakes_of_convert_are_one_line(d2ext_command, photos):
    done = d2ext_command(
        "convert", "coco", "a.json", "--to", "via", "--images", "imgs", "--output", "via.json"
    )
    assert done.status == 0, done.stderr
    arguments = ("convert", "via", "via.json", "--images", "imgs", "--output", "a.json")
    before = (photos / "a.json").read_bytes()
    done = d2ext_command(*arguments, "--val", "0.25")
    assert done.status == 2 and "a.json is a file" in done.stderr
    done = d2ext_command(*arguments, "--seed", "4")
    assert done.status == 2 and "--seed 4 needs --val, which is not given" in done.stderr
    assert (photos / "a.json").read_bytes() == before
