import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2ext.config.load import execute_config
from d2ext.errors import UserError

TEXT = """
from detectron2.data.datasets import register_coco_instances
register_coco_instances({name!r}, {{}}, {file!r}, "photos")
"""


@pytest.fixture
def write(tmp_path):
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
    message = "'coco_2017_train' is already registered! choose another name"
    with pytest.raises(UserError, match=message):
        execute_config(write("mine.py", name="coco_2017_train", file="a.json"))
