"""Every reader: hidden files, links, encodings, and image names from other machines and tools."""

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from d2ext.data.convert import convert_to_coco
from d2ext.errors import UserError

WIDTH, HEIGHT = 40, 30


def photo(path: Path) -> None:
    """Save an image and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def labelme(name: object, label: str = "cat") -> str:
    shape = {"label": label, "shape_type": "rectangle", "points": [[5, 5], [20, 20]]}
    return json.dumps({"imagePath": name, "shapes": [shape]}, ensure_ascii=False)


def voc(name: object, label: str = "cat") -> str:
    file_name = "" if name is None else f"<filename>{name}</filename>"
    corners = "<xmin>6</xmin><ymin>6</ymin><xmax>20</xmax><ymax>20</ymax>"
    return (
        f"<annotation>{file_name}<object><name>{label}</name><bndbox>{corners}</bndbox></object>"
        "</annotation>"
    )


def yolo(name: object, label: str = "cat") -> str:
    return "0 0.5 0.5 0.2 0.2\n"


def cvat(name: object, label: str = "cat") -> str:
    box = f'<box label="{label}" xtl="5" ytl="5" xbr="20" ybr="20"/>'
    return f'<annotations><image name="{name}">{box}</image></annotations>'


def createml(name: object, label: str = "cat") -> str:
    box = {"label": label, "coordinates": {"x": 12.5, "y": 12.5, "width": 15, "height": 15}}
    return json.dumps([{"image": name, "annotations": [box]}], ensure_ascii=False)


def via(name: object, label: str = "cat") -> str:
    shape = {"name": "rect", "x": 5, "y": 5, "width": 15, "height": 15}
    region = {"shape_attributes": shape, "region_attributes": {"name": label}}
    return json.dumps({"a": {"filename": name, "regions": [region]}}, ensure_ascii=False)


def open_images(name: object, label: str = "cat") -> str:
    head = "ImageID,LabelName,XMin,XMax,YMin,YMax\n"
    return f"{head}{Path(str(name)).stem},{label},0.1,0.5,0.1,0.5\n"


# Formats with one file per image: the suffix of the files, and the content of one.
FOLDERS: dict[str, tuple[str, Callable[..., str]]] = {
    "cvat": (".xml", cvat),
    "labelme": (".json", labelme),
    "voc": (".xml", voc),
    "yolo": (".txt", yolo),
}
NAMING = {"createml": createml, "cvat": cvat, "labelme": labelme, "via": via, "voc": voc}


def counts(tmp_path: Path, kind: str, source: Path, **options: str) -> tuple[list[str], int]:
    """Convert; return the names of the images and the number of objects."""
    classes = ["cat"] if kind == "yolo" else None
    out = tmp_path / "out.json"
    convert_to_coco(kind, source, tmp_path / "images", out, classes, **options)
    content = json.loads(out.read_text())
    names = sorted(image["file_name"] for image in content["images"])
    return names, len(content["annotations"])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with the images 1.jpg and 2.jpg."""
    for name in ("1.jpg", "2.jpg"):
        photo(tmp_path / "images" / name)
    return tmp_path / "images"


def write_labels(folder: Path, kind: str) -> None:
    suffix, content = FOLDERS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("1", "2"):
        (folder / f"{stem}{suffix}").write_text(content(f"{stem}.jpg"))


class TestHiddenFiles:
    @pytest.mark.parametrize("kind", FOLDERS)
    def test_files_of_operating_systems_are_ignored(
        self, tmp_path: Path, images: Path, kind: str
    ) -> None:
        write_labels(tmp_path / "labels", kind)
        junk = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02"
        for folder, suffix in ((images, ".jpg"), (tmp_path / "labels", FOLDERS[kind][0])):
            for name in ("Thumbs.db", "desktop.ini", ".DS_Store", f"._1{suffix}"):
                (folder / name).write_bytes(junk)
            for below in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
                (folder / below).mkdir()
                (folder / below / f"1{suffix}").write_bytes((folder / f"1{suffix}").read_bytes())
                (folder / below / f"3{suffix}").write_bytes(junk)
        assert counts(tmp_path, kind, tmp_path / "labels") == (["1.jpg", "2.jpg"], 2)

    def test_beside_open_images_boxes(self, tmp_path: Path, images: Path) -> None:
        (images / "._1.jpg").write_bytes(b"\0")
        (tmp_path / "boxes.csv").write_text(open_images("1"))
        (tmp_path / "._class-descriptions.csv").write_bytes(b"\0\xff")
        assert counts(tmp_path, "open_images", tmp_path / "boxes.csv") == (["1.jpg"], 1)


class TestLinks:
    @pytest.mark.parametrize("kind", FOLDERS)
    def test_linked_folders_and_files(self, tmp_path: Path, images: Path, kind: str) -> None:
        write_labels(tmp_path / "store" / "l", kind)
        photo(tmp_path / "store" / "3.jpg")
        suffix, content = FOLDERS[kind]
        (tmp_path / "store" / f"3{suffix}").write_text(content("3.jpg"))
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "train").symlink_to(tmp_path / "store" / "l")
        images.rename(tmp_path / "store" / "i")
        images.mkdir()
        (images / "train").symlink_to(tmp_path / "store" / "i")
        (images / "3.jpg").symlink_to(tmp_path / "store" / "3.jpg")
        (tmp_path / "labels" / f"3{suffix}").symlink_to(tmp_path / "store" / f"3{suffix}")
        names = ["3.jpg", "train/1.jpg", "train/2.jpg"]
        assert counts(tmp_path, kind, tmp_path / "labels") == (names, 3)

    @pytest.mark.parametrize("kind", FOLDERS)
    @pytest.mark.parametrize("target", [".", ".."])
    def test_links_to_a_parent_folder_are_not_followed(
        self, tmp_path: Path, images: Path, kind: str, target: str
    ) -> None:
        write_labels(tmp_path / "labels", kind)
        for folder in (images, tmp_path / "labels"):
            (folder / "again").symlink_to(target)
        assert counts(tmp_path, kind, tmp_path / "labels") == (["1.jpg", "2.jpg"], 2)

    @pytest.mark.parametrize("kind", FOLDERS)
    def test_folders_that_link_to_each_other_are_read_once(
        self, tmp_path: Path, images: Path, kind: str
    ) -> None:
        write_labels(tmp_path / "labels", kind)
        for a, b in (("a", "b"), ("b", "a")):
            (tmp_path / "labels" / a).mkdir()
            (tmp_path / "labels" / a / b).symlink_to(tmp_path / "labels" / b)
        assert counts(tmp_path, kind, tmp_path / "labels") == (["1.jpg", "2.jpg"], 2)

    @pytest.mark.parametrize("kind", FOLDERS)
    def test_a_broken_link_is_reported(self, tmp_path: Path, images: Path, kind: str) -> None:
        write_labels(tmp_path / "labels", kind)
        (tmp_path / "labels" / "train").symlink_to(tmp_path / "gone")
        with pytest.raises(UserError, match=r"labels/train is a broken symbolic link to .*gone"):
            counts(tmp_path, kind, tmp_path / "labels")

    def test_a_photo_behind_a_broken_link_is_reported(self, tmp_path: Path, images: Path) -> None:
        write_labels(tmp_path / "labels", "yolo")
        (images / "1.jpg").unlink()
        (images / "1.jpg").symlink_to("gone.jpg")
        with pytest.raises(UserError, match=r"1\.jpg does not exist"):
            counts(tmp_path, "yolo", tmp_path / "labels")


def test_an_unreadable_folder_is_reported(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labels(tmp_path / "labels", "voc")
    (tmp_path / "labels" / "a").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:  # chmod would not keep root out
        if str(path).endswith("labels/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot read the folder .*labels/a"):
        counts(tmp_path, "voc", tmp_path / "labels")


class TestNames:
    @pytest.mark.parametrize("kind", NAMING)
    @pytest.mark.parametrize(
        "name",
        [
            "sub/x y.jpg",
            "./sub/x y.jpg",
            "/home/u/set/sub/x y.jpg",
            "C:\\set\\sub\\x y.jpg",
            "sub\\x y.jpg",
            "../images/sub/x y.jpg",
            "sub/x%20y.jpg",
            "https://host/set/sub/x%20y.jpg?size=1",
            "file:///home/u/sub/x%20y.jpg",
            "sub/x y.png",
            "sub/x y",
            "sub/X Y.JPG",
            "x y.jpg",
        ],
    )
    def test_names_from_other_machines(
        self, tmp_path: Path, images: Path, kind: str, name: str
    ) -> None:
        photo(images / "sub" / "x y.jpg")
        file = tmp_path / "labels" / f"a.{'xml' if kind in ('cvat', 'voc') else 'json'}"
        file.parent.mkdir()
        file.write_text(NAMING[kind](name))
        assert counts(tmp_path, kind, file) == (["sub/x y.jpg"], 1)

    @pytest.mark.parametrize("kind", NAMING)
    @pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
    def test_both_unicode_forms(
        self, tmp_path: Path, images: Path, kind: str, forms: tuple[str, str]
    ) -> None:
        name, there = (unicodedata.normalize(form, "ä.jpg") for form in forms)
        photo(images / there)
        file = tmp_path / f"a.{'xml' if kind in ('cvat', 'voc') else 'json'}"
        file.write_text(NAMING[kind](name), encoding="utf-8")
        assert counts(tmp_path, kind, file) == ([there], 1)

    @pytest.mark.parametrize("kind", NAMING)
    def test_an_ambiguous_name_is_refused(self, tmp_path: Path, images: Path, kind: str) -> None:
        for name in ("x.png", "x.jpg"):
            photo(images / name)
        file = tmp_path / f"a.{'xml' if kind in ('cvat', 'voc') else 'json'}"
        file.write_text(NAMING[kind]("x.tif"))
        with pytest.raises(UserError, match=r"'x\.tif' could be x\.(jpg|png) or x\.(png|jpg)"):
            counts(tmp_path, kind, file)

    @pytest.mark.parametrize("kind", ["labelme", "voc", "cvat"])
    def test_an_image_in_a_sibling_folder_does_not_match(self, tmp_path: Path, kind: str) -> None:
        """A file that describes the validation's 1.jpg does not match the training's 1.jpg."""
        for split in ("train", "val"):
            photo(tmp_path / "all" / split / "1.jpg")
        (tmp_path / "images").symlink_to(tmp_path / "all" / "train")
        file = tmp_path / f"a.{'json' if kind == 'labelme' else 'xml'}"
        file.write_text(NAMING[kind]("C:\\all\\val\\1.jpg"))
        with pytest.raises(UserError, match="is not in the image folder"):
            convert_to_coco(kind, file, tmp_path / "all" / "train", tmp_path / "out.json")

    def test_two_names_for_one_image_are_refused(self, tmp_path: Path, images: Path) -> None:
        """If a.png is missing, its objects must not go to a.jpg."""
        entries = json.loads(via("1.jpg")) | {"b": json.loads(via("1.png"))["a"]}
        (tmp_path / "via.json").write_text(json.dumps(entries))
        with pytest.raises(UserError, match=r"'1\.png' and '1\.jpg' both match .*1\.jpg"):
            counts(tmp_path, "via", tmp_path / "via.json")

    def test_voc_without_a_file_name(self, tmp_path: Path, images: Path) -> None:
        (tmp_path / "v" / "sub").mkdir(parents=True)
        (tmp_path / "v" / "sub" / "1.xml").write_text(voc(None))
        photo(images / "sub" / "1.png")
        assert counts(tmp_path, "voc", tmp_path / "v") == (["sub/1.png"], 1)


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
    @pytest.mark.parametrize("kind", ["cvat", "createml", "labelme", "open_images", "via", "voc"])
    def test_a_byte_order_mark(
        self, tmp_path: Path, images: Path, kind: str, encoding: str
    ) -> None:
        make = {**NAMING, "open_images": open_images}[kind]
        suffix = {"cvat": ".xml", "voc": ".xml", "open_images": ".csv"}.get(kind, ".json")
        (tmp_path / f"a{suffix}").write_text(make("1.jpg", "kœr"), encoding=encoding)
        assert counts(tmp_path, kind, tmp_path / f"a{suffix}") == (["1.jpg"], 1)
        (category,) = json.loads((tmp_path / "out.json").read_text())["categories"]
        assert category["name"] == "kœr"

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_yolo_labels_and_names(self, tmp_path: Path, images: Path, encoding: str) -> None:
        (tmp_path / "labels").mkdir()
        text = "0 0.5\t0.5 0.2 0.2  \r\n\r\n"
        (tmp_path / "labels" / "1.txt").write_text(text, encoding=encoding)
        (tmp_path / "labels" / "classes.txt").write_text("kœr\r\n\r\n", encoding=encoding)
        convert_to_coco("yolo", tmp_path / "labels", images, tmp_path / "out.json")
        content = json.loads((tmp_path / "out.json").read_text())
        assert [c["name"] for c in content["categories"]] == ["kœr"]
        assert len(content["annotations"]) == 1

    @pytest.mark.parametrize("encoding", ["cp1252", "gbk", "shift_jis", "iso-8859-1"])
    @pytest.mark.parametrize("kind", ["cvat", "voc"])
    def test_xml_in_the_encoding_it_declares(
        self, tmp_path: Path, images: Path, kind: str, encoding: str
    ) -> None:
        label = "猫" if encoding in ("gbk", "shift_jis") else "Kühe"
        text = f'<?xml version="1.0" encoding="{encoding}"?>\n{NAMING[kind]("1.jpg", label)}'
        (tmp_path / "a.xml").write_bytes(text.encode(encoding))
        counts(tmp_path, kind, tmp_path / "a.xml")
        (category,) = json.loads((tmp_path / "out.json").read_text())["categories"]
        assert category["name"] == label

    def test_xml_that_declares_utf_16_and_is_utf_8(self, tmp_path: Path, images: Path) -> None:
        text = f'<?xml version="1.0" encoding="utf-16"?>{voc("1.jpg", "Kühe")}'
        (tmp_path / "a.xml").write_bytes(text.encode())
        assert counts(tmp_path, "voc", tmp_path / "a.xml") == (["1.jpg"], 1)

    def test_xml_with_a_namespace(self, tmp_path: Path, images: Path) -> None:
        text = voc("1.jpg").replace("<annotation>", '<annotation xmlns="http://a/b">')
        (tmp_path / "a.xml").write_text(f"\n{text}")
        assert counts(tmp_path, "voc", tmp_path / "a.xml") == (["1.jpg"], 1)

    @pytest.mark.parametrize("kind", ["createml", "labelme", "open_images", "via", "voc"])
    def test_other_encodings_are_reported(self, tmp_path: Path, images: Path, kind: str) -> None:
        make = {**NAMING, "open_images": open_images}[kind]
        suffix = {"voc": ".xml", "open_images": ".csv"}.get(kind, ".json")
        file = tmp_path / f"a{suffix}"
        file.write_bytes(make("1.jpg", "Kühe").encode("cp1252"))
        with pytest.raises(UserError, match=r"a\.\w+ is not valid UTF-8 \(byte .*save it as UTF-8"):
            counts(tmp_path, kind, file)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"0 0,5 0,5 0,2 0,2\n", "are not numbers; correct the label"),
            ("0 0.5 0.5 0.2 0.2\n".encode("utf-16-le"), "NUL characters"),
            (b"0 0.5 0.5 0.2 0.2 \xfc\n", "not valid UTF-8"),
        ],
    )
    def test_unreadable_labels_are_reported(
        self, tmp_path: Path, images: Path, content: bytes, words: str
    ) -> None:
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "1.txt").write_bytes(content)
        with pytest.raises(UserError, match=rf"1\.txt.*{words}"):
            counts(tmp_path, "yolo", tmp_path / "labels")

    @pytest.mark.parametrize("separator", [";", "\t"])
    def test_a_csv_saved_by_a_spreadsheet(
        self, tmp_path: Path, images: Path, separator: str
    ) -> None:
        text = open_images("1").replace(",", separator)
        (tmp_path / "boxes.csv").write_text(text, encoding="utf-16")
        assert counts(tmp_path, "open_images", tmp_path / "boxes.csv") == (["1.jpg"], 1)


class TestNamesakes:
    @pytest.mark.parametrize("kind", ["labelme", "voc"])
    def test_the_name_of_the_file_wins_over_the_name_of_another_image(
        self, tmp_path: Path, images: Path, kind: str, caplog
    ) -> None:
        suffix, content = FOLDERS[kind]
        (tmp_path / "labels").mkdir()
        for stem in ("1", "2"):
            (tmp_path / "labels" / f"{stem}{suffix}").write_text(content("1.jpg"))
        assert counts(tmp_path, kind, tmp_path / "labels") == (["1.jpg", "2.jpg"], 2)
        assert "1 annotation files name the image of another file" in caplog.text
        (images / "2.jpg").unlink()
        with pytest.raises(UserError, match="describe the same image .*1.jpg; remove one"):
            counts(tmp_path, kind, tmp_path / "labels")


class TestYoloSplits:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """Write six images behind a link, labels beside it, train and val lists, and data.yaml."""
        for i in range(1, 7):
            photo(tmp_path / "store" / f"{i}.jpg")
            (tmp_path / "labels").mkdir(exist_ok=True)
            (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        (tmp_path / "images").symlink_to(tmp_path / "store")
        lines = "".join(f"./images/{i}.jpg\n" for i in (1, 2, 3, 4))
        (tmp_path / "train.txt").write_text(f"# drawn at random\n\n{lines}")
        lines = f"{tmp_path}/images/5.jpg\nimages\\6.jpg\n"
        (tmp_path / "val.txt").write_text(lines)
        self.describe(tmp_path, train="train.txt", val="val.txt")
        return tmp_path

    def describe(self, root: Path, **splits: object) -> None:
        content = {"path": ".", "names": ["cat"], **splits}
        (root / "data.yaml").write_text(json.dumps(content))

    def test_a_split_of_list_files(self, root: Path) -> None:
        train = counts(root, "yolo", root / "data.yaml", split="train")
        assert train == (["1.jpg", "2.jpg", "3.jpg", "4.jpg"], 4)
        assert counts(root, "yolo", root / "data.yaml", split="val") == (["5.jpg", "6.jpg"], 2)

    def test_without_a_split_all_images_are_read_with_a_warning(self, root: Path, caplog) -> None:
        assert counts(root, "yolo", root / "data.yaml")[1] == 6
        assert "all 6 images" in caplog.text and "(train 4, val 2); --split NAME" in caplog.text

    def test_lists_from_another_machine(self, root: Path) -> None:
        lines = "/content/d/images/5.jpg\nD:\\d\\images\\6.jpg\r\n"
        (root / "val.txt").write_text(lines)
        assert counts(root, "yolo", root / "data.yaml", split="val") == (["5.jpg", "6.jpg"], 2)

    def test_a_split_of_several_folders(self, tmp_path: Path, caplog) -> None:
        for part in ("a", "b", "c"):
            photo(tmp_path / "images" / part / "1.jpg")
            (tmp_path / "labels" / part).mkdir(parents=True)
            (tmp_path / "labels" / part / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        self.describe(tmp_path, train=["images/a", "../images/b"], val="images\\c")
        train = counts(tmp_path, "yolo", tmp_path / "data.yaml", split="train")
        assert train == (["a/1.jpg", "b/1.jpg"], 2) and not caplog.text
        val = counts(tmp_path, "yolo", tmp_path / "data.yaml", split="val")
        assert val == (["c/1.jpg"], 1)
        convert_to_coco(
            "yolo", tmp_path / "data.yaml", tmp_path / "images" / "c", tmp_path / "out.json"
        )
        assert not caplog.text  # only the images of one split

    @pytest.mark.parametrize(
        ("split", "words"),
        [
            ("vall", "has no split 'vall'; did you mean 'val'"),
            ("test", "1 images or folders of the split test are not in .*the first is gone"),
            ("valid", r"1 images or folders .* the first is './images/9.jpg' \(.*valid.txt:1\)"),
        ],
    )
    def test_missing_splits_and_images_are_reported(
        self, root: Path, split: str, words: str
    ) -> None:
        (root / "valid.txt").write_text("./images/9.jpg\n")
        self.describe(root, train="train.txt", val="val.txt", valid="valid.txt", test="gone")
        with pytest.raises(UserError, match=words):
            counts(root, "yolo", root / "data.yaml", split=split)

    def test_images_without_labels_are_counted(self, root: Path, caplog) -> None:
        (root / "labels" / "1.txt").unlink()
        (root / "labels" / "2.txt").write_text("")
        assert counts(root, "yolo", root / "labels") == ([f"{i}.jpg" for i in range(1, 7)], 4)
        assert "1 of 6 images have no label file" in caplog.text

    def test_two_label_files_for_one_image_are_refused(self, root: Path) -> None:
        (root / "labels" / "1.TXT").write_text("")
        with pytest.raises(UserError, match=r"1\.txt and 1\.TXT belong to the same image"):
            counts(root, "yolo", root / "labels")

    def test_labels_in_another_unicode_form_or_case(self, tmp_path: Path) -> None:
        for name, form in (("\xe9.jpg", "NFD"), ("A.jpg", "NFC")):
            photo(tmp_path / "images" / name)
            label = unicodedata.normalize(form, name).lower().replace("jpg", "txt")
            (tmp_path / "labels").mkdir(exist_ok=True)
            (tmp_path / "labels" / label).write_text("0 0.5 0.5 0.2 0.2\n")
        self.describe(tmp_path)
        assert counts(tmp_path, "yolo", tmp_path / "data.yaml") == (["A.jpg", "\xe9.jpg"], 2)

    def test_a_label_that_matches_two_images_is_refused(self, root: Path) -> None:
        for name in ("a.jpg", "A.jpg"):
            photo(root / "store" / name)
        (root / "labels" / "a.txt").write_text("")
        assert len(counts(root, "yolo", root / "labels")[0]) == 8
        (root / "labels" / "a.txt").unlink()
        for name in ("\xe9.jpg", "\xc9.jpg"):
            photo(root / "store" / name)
        (root / "labels" / "e\u0301.txt").write_text("")
        with pytest.raises(UserError, match="1 label files have no image"):
            counts(root, "yolo", root / "labels")

    @pytest.mark.parametrize("layout", ["{0}/{1}", "{1}/{0}"], ids=["Roboflow", "Ultralytics"])
    def test_splits_with_images_beside_labels(self, tmp_path: Path, layout: str) -> None:
        root = tmp_path / "root"
        for i, split in enumerate(("train", "train", "valid")):
            photo(root / layout.format(split, "images") / f"{i}.jpg")
            label = root / layout.format(split, "labels") / f"{i}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.2 0.2\n")
        for name in ("README.dataset.txt", "README.roboflow.txt"):
            (root / name).write_text("https://universe.roboflow.com\n")
        self.describe(
            root,
            train="../" + layout.format("train", "images"),
            val="../" + layout.format("valid", "images"),
        )
        for split, number in ((None, 3), ("train", 2), ("val", 1)):
            convert_to_coco("yolo", root / "data.yaml", root, tmp_path / "a.json", split=split)
            made = json.loads((tmp_path / "a.json").read_text())
            assert (len(made["images"]), len(made["annotations"])) == (number, number)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"classes = 2\ntrain = train.txt\n", "it is not a mapping"),
            (b"train: a\n", "it lacks `names`"),
            ("names: [caf\xe9]\n".encode("cp1252"), "is not valid UTF-8 .*iconv"),
            (b"names: [a, null]\n", "a name is not text"),
        ],
    )
    def test_errors_in_data_yaml_are_reported(self, root: Path, content: bytes, words: str) -> None:
        (root / "obj.data").write_bytes(content)
        with pytest.raises(UserError, match=words):
            counts(root, "yolo", root / "obj.data")

    def test_names_in_data_yaml_are_strings(self, root: Path) -> None:
        names = "yes, no, 1.10, 007, on, 2024-01-01"
        (root / "data.yaml").write_text(f"names: [{names}]\nval: ~\n")
        convert_to_coco("yolo", root / "data.yaml", root / "images", root / "a.json")
        made = json.loads((root / "a.json").read_text())
        assert ", ".join(c["name"] for c in made["categories"]) == names

    def test_a_list_beside_the_labels_folder(self, root: Path) -> None:
        (root / "classes.txt").write_text("cat\n")
        (root / "data.yaml").unlink()
        assert counts(root, "yolo", root)[1] == 6
