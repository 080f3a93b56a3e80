"""Written configs are readable Python that has the values."""

import pytest

from d2ext.config.mmdetection.draft import Call, Code, Draft

CLASSES = [f"class{i}" for i in range(30)]


@pytest.mark.parametrize(
    "value",
    [
        [],
        (),
        {},
        (1,),
        {"a b": [1, (2,)], "class": None},
        {"a": {"b": {"c": CLASSES}}},
        ["it's", 'a "b"', "a\\b\n", "ü"],
        [float("inf"), -1e-9, True, None],
        {"names": CLASSES, "palette": [(i, i, i) for i in range(30)]},
    ],
)
def test_a_value_is_written_so_that_python_reads_it(value):
    draft = Draft()
    draft.set("x", value)
    text = draft.text("A config.")
    names = {}
    exec(text, names)
    assert names["x"] == value and text.startswith('"""A config."""\n\n')
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_layout_of_a_config():
    draft = Draft()
    draft.start("model", "common/models/mask_rcnn_fpn.py")
    draft.set("model.roi_heads.num_classes", 1)
    draft.delete("model.x")
    draft.start("optimizer", "common/optim.py", "SGD")
    crop = Call(
        "detectron2.data.transforms.RandomCrop", {"crop_type": "absolute", "crop_size": [3]}
    )
    flip = Call("detectron2.data.transforms.RandomFlip", {"horizontal": True})
    draft.set("dataloader.train.mapper.augmentations", [crop, flip])
    draft.set("datasets", {"a": Call("d2ext.x.coco", {"classes": CLASSES, "root": Code("ROOT")})})
    draft.set("train.init_checkpoint", "https://example.com/" + "a" * 58)
    draft.use("mine", "ROOT")
    names = "".join(f'            "{name}",\n' for name in CLASSES)
    assert draft.text('A """config""".') == (
        '"""A \\"\\"\\"config\\"\\"\\"."""\n'
        "\n"
        "import d2ext\n"
        "from d2ext.x import coco\n"
        "from detectron2.config import LazyCall as L\n"
        "from detectron2.data.transforms import RandomCrop, RandomFlip\n"
        "from mine import ROOT\n"
        "\n"
        'model = d2ext.get_config("common/models/mask_rcnn_fpn.py").model\n'
        "model.roi_heads.num_classes = 1\n"
        "del model.x\n"
        "\n"
        'optimizer = d2ext.get_config("common/optim.py").SGD\n'
        "dataloader.train.mapper.augmentations = [\n"
        '    L(RandomCrop)(crop_type="absolute", crop_size=[3]),\n'
        "    L(RandomFlip)(horizontal=True),\n"
        "]\n"
        "\n"
        "datasets = dict(\n"
        "    a=L(coco)(\n"
        "        classes=[\n"
        f"{names}"
        "        ],\n"
        "        root=ROOT,\n"
        "    ),\n"
        ")\n"
        "train.init_checkpoint = (\n"
        f'    "https://example.com/{"a" * 58}"\n'
        ")\n"
    )
