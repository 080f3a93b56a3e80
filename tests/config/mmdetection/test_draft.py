"""Written configs are readable Python that has the values."""

import random

import pytest
from omegaconf import OmegaConf

from d2ext.config.mmdetection.draft import Call, Code, Draft, Interpolation, literal
from d2ext.errors import UserError

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


def _written(path, value):
    """Return the value of a field as OmegaConf reads the written file."""
    draft = Draft()
    draft.set(path, value)
    names = {}
    exec(draft.text("A config."), names)
    made = OmegaConf.create({path: names[path]})
    return OmegaConf.to_container(made, resolve=True)[path]


def _their_value(random, depth=3):
    """Return a random value, which may look like code, a call or an interpolation."""
    if depth == 0 or random.random() < 0.4:
        parts = ["\\", "${", "}", "a", "'", '"', "${oc.env:HOME}", "${x}", " ", "\n", "{{", "$"]
        text = "".join(random.choices(parts, k=random.randint(0, 6)))
        return random.choice([None, True, -3, 1e-9, text, text, "__import__('os')"])
    values = [_their_value(random, depth - 1) for _ in range(random.randint(0, 3))]
    keys = ["a", "x=__import__('os')", "${oc.env:HOME}", "class", "_target_"]
    return random.choice([values, dict(zip(random.sample(keys, 3), values, strict=False))])


def _arguments(**arguments):
    return arguments


def _may_call(value):
    """Return whether a value has a `_target_`, or a `${` in a list."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_may_call, value.values()))
    if isinstance(value, list):
        return any("${" in v if isinstance(v, str) else _may_call(v) for v in value)
    return False


def test_values_of_theirs_stay_data():
    """Random values are read as they are; those that Detectron2 would call are refused."""
    written = 0
    for seed in range(300):
        value = _their_value(random.Random(seed))
        if _may_call(value):
            with pytest.raises(UserError, match="x cannot be written: "):
                Draft().set("x", value)
        else:
            assert _written("x", value) == value
            written += 1
    assert 150 < written < 300


def test_a_string_is_not_resolved_when_its_call_is_built():
    from detectron2.config import LazyCall, instantiate

    for seed in range(100):
        text = _their_value(random.Random(seed), 0)
        if isinstance(text, str):
            made = instantiate(LazyCall(_arguments)(a=literal(text), b={"c": literal(text)}))
            assert _written("x", text) == made["a"] == made["b"]["c"] == text


def test_interpolations_of_ours_are_resolved():
    for seed in range(200):
        text = _their_value(random.Random(seed), 0)
        if isinstance(text, str):
            draft = Draft()
            draft.set("data", {"root": "a", "x": Interpolation(f"${{data.root}}/{literal(text)}")})
            names = {}
            exec(draft.text("A config."), names)
            assert OmegaConf.create({"data": names["data"]}).data.x == f"a/{text}"


BAD_NAMES = ["a b", "a=1\nimport os\nb", "a.", "a[0", "a[i]", "a[0].b()", "", "lambda", "a..b"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_are_identifiers(name):
    draft = Draft()
    for write in (
        lambda: draft.set(name, 1),
        lambda: draft.delete(name),
        lambda: draft.start(name, "common/optim.py", "SGD"),
        lambda: draft.start("optimizer", "common/optim.py", name or "a b"),
        lambda: draft.start("optimizer", f'{name}.py")', "SGD"),
        lambda: Call(name),
        lambda: Call("torch.optim.SGD", {name: 1}),
    ):
        with pytest.raises(UserError):
            write()
    assert draft.lines == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [{"_target_": "os.system", "command": "touch ran"}]}, "x cannot be written: _targ"),
        (["${oc.env:HOME}"], r"x cannot be written: a string in a list contains `\$\{`"),
        ("???", r"x cannot be written: `\?\?\?` is a missing value of OmegaConf"),
        (object(), "x cannot be written: a object is not a plain value"),
        ({(1, 2): 3}, r"x cannot be written: the key \(1, 2\) of a dict is not a string"),
    ],
)
def test_values_are_plain(value, message):
    with pytest.raises(UserError, match=message):
        Draft().set("x", value)
