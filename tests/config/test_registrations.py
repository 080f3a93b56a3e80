import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2ext.config.load import execute_config
from d2ext.errors import UserError

TEXT = """
from detectron2.data.datasets import register_coco_instances
register_coco_instances({name!r}, {{}}, {file!r}, "photos")
"""
OWN = dict(name="registered_here", file="a.json")


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a config; its datasets are unknown before and after."""
    yield lambda file_name, **values: _write(tmp_path / file_name, **values)
    for name in ("registered_here", "registered_too"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _write(path, **values):
    path.write_text(TEXT.format(**values))
    return path


def test_a_config_that_registers_its_dataset_can_be_loaded_again(write):
    file = write("mine.py", name="registered_here", file="a.json")
    execute_config(file)
    execute_config(file)
    assert MetadataCatalog.get("registered_here").json_file == "a.json"
    write("mine.py", name="registered_here", file="b.json")  # edited
    execute_config(file)
    assert MetadataCatalog.get("registered_here").json_file == "b.json"


def test_datasets_of_other_configs_stay(write):
    execute_config(write("one.py", name="registered_here", file="a.json"))
    execute_config(write("two.py", name="registered_too", file="b.json"))
    assert {"registered_here", "registered_too"} <= set(DatasetCatalog)
    assert MetadataCatalog.get("registered_here").json_file == "a.json"


def test_two_configs_cannot_give_one_name_to_two_files(write):
    execute_config(write("one.py", name="registered_here", file="a.json"))
    message = r"two.py registers the dataset 'registered_here' for b.json, but .*one.py has"
    with pytest.raises(UserError, match=message):
        execute_config(write("two.py", name="registered_here", file="b.json"))


def test_a_name_that_detectron2_uses(write):
    message = "'coco_2017_train' is already registered; choose another name for the dataset"
    with pytest.raises(UserError, match=message):
        execute_config(write("mine.py", name="coco_2017_train", file="a.json"))


def test_a_module_registers_only_once(write, tmp_path, monkeypatch):
    _write(tmp_path / "module_with_photos.py", **OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "mine.py"
    config.write_text(
        "import module_with_photos\n"
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "known = dict(DatasetCatalog='registered_here' in DatasetCatalog)\n"
        "known['file'] = MetadataCatalog.get('registered_here').json_file\n"
    )
    for _ in range(2):
        cfg = execute_config(config)
        assert cfg.known == {"DatasetCatalog": True, "file": "a.json"}


def test_metadata_that_is_set_before_the_dataset_is_registered_stays(write):
    file = write("mine.py", **OWN)
    start = "from detectron2.data import MetadataCatalog\n"
    file.write_text(
        f"{start}MetadataCatalog.get('registered_here').colors = [1]\n{file.read_text()}"
    )
    for _ in range(2):
        execute_config(file)
        assert MetadataCatalog.get("registered_here").colors == [1]


def test_a_config_that_failed_can_be_corrected(write):
    file = write("mine.py", **OWN)
    text = file.read_text()
    file.write_text(f"{text}\n1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        execute_config(file)
    file.write_text(text.replace("a.json", "b.json"))
    execute_config(file)
    assert MetadataCatalog.get("registered_here").json_file == "b.json"


def test_a_config_that_fails_keeps_the_dataset_of_another(write):
    execute_config(write("one.py", **OWN))
    other = write("two.py", name="registered_here", file="b.json")
    with pytest.raises(UserError, match="rename one"):
        execute_config(other)
    other.write_text(f"{other.read_text()}\n1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        execute_config(other)
    assert MetadataCatalog.get("registered_here").json_file == "a.json"


def test_a_config_that_registers_a_name_twice(write):
    file = write("mine.py", **OWN)
    execute_config(file)
    file.write_text(file.read_text() * 2)
    with pytest.raises(UserError, match="already registered; choose another name"):
        execute_config(file)


def test_a_config_that_loads_another_one(write, tmp_path):
    inner = write("inner.py", **OWN)
    outer = tmp_path / "outer.py"
    text = TEXT.format(name="registered_too", file="b.json")
    load = (
        f"import pathlib, d2ext.config.load as d\nd.execute_config(pathlib.Path({str(inner)!r}))\n"
    )
    outer.write_text(f"{load}{text}")
    for _ in range(2):
        execute_config(outer)
    execute_config(inner)
