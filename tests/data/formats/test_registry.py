"""The registry of formats: detection, reading and conversion need only an entry in it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from d2ext.data.convert import convert_from_coco, convert_to_coco
from d2ext.data.datasets.declare import annotated_dataset
from d2ext.data.formats.detect_format import detect_format
from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, ReadOption, convert_advice, formats
from d2ext.data.formats.geometry import LeftOut, add_box, new_record
from d2ext.data.formats.registry import BUILT_IN, converted_formats, writers
from d2ext.errors import UserError
from tests.conftest import Finished


def _read_toy(
    source: Path, image_root: Path, classes: Sequence[str] | None = None, zoom: str | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    content = json.loads(Path(source).read_text())
    names = tuple(classes or content["names"])
    records, left_out = [], LeftOut()
    for i, (name, boxes) in enumerate(content["toys"].items(), start=1):
        record = new_record(str(Path(image_root) / name), i, (40, 30))
        for box in boxes:
            add_box(record, 0, [c * int(zoom or 1) for c in box], left_out)
        records.append(record)
    return records, names


def _write_toy(
    records: Sequence[dict], classes: Sequence[str], made: Path, images: Path | None
) -> dict[str, int]:
    toys = {r["file_name"]: [a["bbox"] for a in r["annotations"]] for r in records}
    made.write_text(json.dumps({"toys": toys, "names": list(classes)}))
    return {"images": len(records)}


def _detect_toy(head: FileHead) -> bool:
    return isinstance(head.value, dict) and "toys" in head.value


TOY = Format(
    name="toy",
    title="Toys",
    advice=convert_advice("a file of toys", "toy"),
    detect=_detect_toy,
    read=_read_toy,
    source="Toys: a JSON",
    options={"zoom": ReadOption("--zoom", "a factor")},
    in_training=True,
    write={"toy": _write_toy},
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register a toy format and return a file in it."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(formats(), "toy", TOY)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    file = tmp_path / "toy.json"
    file.write_text(json.dumps({"toys": {"a.jpg": [[1, 2, 3, 5]]}, "names": ["bear"]}))
    return file


def test_a_format_needs_only_one_entry(toy: Path, tmp_path: Path) -> None:
    assert detect_format(toy) == "toy"
    for options, box in (({}, [1, 2, 3, 5]), ({"zoom": "2", "attribute": "x"}, [2, 4, 6, 10])):
        dataset = annotated_dataset(str(toy), str(tmp_path), palette=[[1, 2, 3]], **options)
        assert dataset.classes == ("bear",)
        assert dataset.metadata == {"thing_colors": [(1, 2, 3)], "image_root": str(tmp_path)}
        assert [a["bbox"] for a in dataset.load()[0]["annotations"]] == [box]
    named = annotated_dataset(str(toy), str(tmp_path), classes=["cub"], boxes_as_masks=True)
    assert named.classes == ("cub",)
    assert named.load()[0]["annotations"][0]["segmentation"] == [[1, 2, 3, 2, 3, 5, 1, 5]]
    with pytest.raises(TypeError, match="unexpected keyword argument 'zom'"):
        annotated_dataset(str(toy), str(tmp_path), zom="2")

    coco = tmp_path / "coco.json"
    assert "1 image, 1 object, classes: bear" in convert_to_coco("toy", toy, tmp_path, coco)
    assert json.loads(coco.read_text())["annotations"][0]["bbox"] == [1, 2, 2, 3]
    convert_to_coco("toy", toy, tmp_path, tmp_path / "zoomed.json", zoom="2")
    zoomed = json.loads((tmp_path / "zoomed.json").read_text())
    assert zoomed["annotations"][0]["bbox"] == [2, 4, 4, 6]

    convert_from_coco(coco, "toy", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(toy.read_text())


def test_every_writer_works_without_an_image_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = new_record("a/1.jpg", 1, (40, 30))
    add_box(record, 0, [1, 2, 3, 5], LeftOut())
    record["annotations"][0] |= {"iscrowd": 0, "area": 6.0}
    for name, write in writers().items():
        assert write([record], ("bear",), tmp_path / name, None)["images"] == 1, name
    (image,) = json.loads((tmp_path / "coco").read_text())["images"]
    assert image["file_name"] == "a/1.jpg"


@pytest.mark.parametrize(
    ("name", "content", "detect"),
    [
        ("toys.xml", "<?xml version='1.0'?><toys/>", lambda head: head.root == "toys"),
        ("toys.txt", "# toys, 1\na.jpg\n", lambda head: head.first_line.startswith("# toys")),
        ("toys.yml", "toys: 1\n", lambda head: head.first_line.startswith("toys:")),
    ],
)
def test_a_format_with_any_kind_of_text_is_detected(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str,
    detect: Callable[[FileHead], bool],
) -> None:
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError):
        detect_format(tmp_path / name)
    read = lambda *_: ([new_record(str(tmp_path / "a.jpg"), 1, (4, 3))], ("bear",))  # noqa: E731
    form = replace(TOY, detect=detect, read=read, options={})
    monkeypatch.setitem(formats(), "toy", form)
    assert detect_format(tmp_path / name) == "toy"
    dataset = annotated_dataset(str(tmp_path / name), str(tmp_path))
    assert dataset.classes == ("bear",) and len(dataset.load()) == 1


def test_other_readers_identify_an_added_format(toy: Path, tmp_path: Path) -> None:
    words = "it is a file of toys; convert it with `d2ext convert toy .*toy.json"
    with pytest.raises(UserError, match=words):
        convert_to_coco("labelme", toy, tmp_path, tmp_path / "out.json")
    with pytest.raises(UserError, match=words):
        convert_from_coco(toy, "yolo", tmp_path / "out")


def test_the_command_line_supports_an_added_format(
    toy: Path, tmp_path: Path, run_tool: Callable[..., Finished]
) -> None:
    out = tmp_path / "out.json"
    run_tool("convert_dataset", "toy", toy, "--images", tmp_path, "--output", out, "--zoom", "2")
    assert json.loads(out.read_text())["annotations"][0]["bbox"] == [2, 4, 4, 6]
    assert "Toys: a JSON" in run_tool("convert_dataset", "--help").stdout


def test_the_documentation_lists_the_formats(repo: Path) -> None:
    text = (repo / "docs" / "datasets.md").read_text()
    _, *rows = text.partition("| Format |")[2].partition("\n\n")[0].split("\n")[1:]
    converted = {form.name for form in converted_formats()} | {"coco"}
    expected = []
    for form in BUILT_IN:
        training = "read as it is" if form.in_training else "convert it to COCO"
        reads = f" `{form.name}`" if form.name in converted else ""
        writes = " " + ", ".join(f"`{name}`" for name in form.write) if form.write else ""
        expected.append(f"| {form.title} | {training} |{reads} |{writes} |")
    assert rows == expected, "docs/datasets.md: the rows must be\n" + "\n".join(expected)
    assert set(writers()) == {name for form in BUILT_IN for name in form.write}
