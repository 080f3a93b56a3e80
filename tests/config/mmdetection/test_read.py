"""Configs are read without executing them."""

import random
import time

import pytest

from d2ext.config.mmdetection.read import read_config
from d2ext.errors import UserError

CONFIGS = "tests/config/mmdetection/configs"


@pytest.fixture
def read(tmp_path):
    """Return a function that writes files, by name, and reads the one called config.py."""

    def run(config, trust=False, **others):
        for name, text in {"config": config, **others}.items():
            (tmp_path / f"{name}.py").write_text(text)
        return read_config(tmp_path / "config.py", trust)

    return run


def _literal(random, depth):
    if depth == 0 or random.random() < 0.4:
        scalars = [None, True, False, random.randint(-(10**9), 10**9), random.uniform(-1e3, 1e3)]
        return random.choice([*scalars, "", "it's", 'a "b"', "ü\n", "a\\b", "{x}", "%d"])
    parts = [_literal(random, depth - 1) for _ in range(random.randint(0, 3))]
    names = random.sample(["type", "_x", "a b", "1", "class"], len(parts))
    return random.choice([parts, tuple(parts), dict(zip(names, parts, strict=True))])


def test_literals_are_read_as_python_reads_them(read):
    values = {f"x{i}": _literal(random.Random(i), 4) for i in range(200)}
    text = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    assert read(text) == values


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("dict(a=1, **dict(b=2))", {"a": 1, "b": 2}),
        ("[*range(3), -1]", [0, 1, 2, -1]),
        ("list((1, 2)) + [3]", [1, 2, 3]),
        ("dict(a=[dict(b=7)])['a'][0]['b']", 7),
        ("[1, 2, 3, 4][1:3]", [2, 3]),
        ("2 * 3 - 1 / 4", 5.75),
        ("7 // 2 + 7 % 4 + 2**3", 14),
        ("'data/' + 'coco'", "data/coco"),
        ("'%s_%d' % ('a', 2)", "a_2"),
        ("f'{1 + 1}x{0.5:.2f}'", "2x0.50"),
        ("[dict(n=i) for i in range(2)]", [{"n": 0}, {"n": 1}]),
        ("{f'k{i}': x for i, x in enumerate('ab')}", {"k0": "a", "k1": "b"}),
        ("[(a, b) for a in (1, 2) for b in 'x']", [(1, "x"), (2, "x")]),
        ("dict(a=1).get('b', 3)", 3),
        ("'a,b'.split(',')", ["a", "b"]),
        ("not True", False),
        ("[i for i in range(6) if i % 2 if i > 1]", [3, 5]),
        ("{k: v for k, v in dict(a=1, b=2).items() if k != 'b'}", {"a": 1}),
        ("[(a, b) for a in (1, 2) if a > 1 for b in 'xy' if b == 'y']", [(2, "y")]),
        (
            "[1 < 2 <= 2, 1 > 2, 3 >= 4, 1 == 1.0, 'a' in 'cab', 2 not in [2]]",
            [True, False, False, True, True, False],
        ),
        ("[None is None, [] is not None]", [True, True]),
        ("[0 or 'a', 1 and [], None or 0, 1 or [][3], 0 and [][3]]", ["a", [], 0, 1, 0]),
        ("1 if 'a' == 'b' else dict(b=2)", {"b": 2}),
        ("2 if True else [][3]", 2),
        ("sum([[1], [2, 3]], []) + [sum([4, 5])]", [1, 2, 3, 9]),
        ("round(2.567, 1) + round(1.4)", 3.6),
        ("'50 %% of %(name)s' % dict(name='a')", "50 % of a"),
        ("f'{3.14159:08.3f}|{5:>{2 + 1}}'", "0003.142|  5"),
        ("10**18 * 2**64", 10**18 * 2**64),
    ],
)
@pytest.mark.parametrize("trust", [False, True])
def test_expressions(read, expression, value, trust):
    assert read(f"x = {expression}", trust) == {"x": value}


@pytest.mark.parametrize("trust", [False, True])
def test_statements_change_what_others_refer_to(read, trust):
    text = """
'''A config.'''
pipeline = [dict(type='A')]
train = dict(dataset=dict(pipeline=pipeline), lr=1)
pipeline += [dict(type='B')]
train['dataset']['root'] = 'x'
train.update(dict(lr=2))
a, b = 1, 2
del a, train['lr']
train.pop('missing', None)
"""
    pipeline = [{"type": "A"}, {"type": "B"}]
    dataset = {"pipeline": pipeline, "root": "x"}
    assert read(text, trust) == {"pipeline": pipeline, "train": {"dataset": dataset}, "b": 2}


BASE = "model = dict(type='M', head=dict(a=1, b=[1, 2]))\nroot = 'data/'\n"


@pytest.mark.parametrize("trust", [False, True])
def test_a_file_is_merged_over_its_bases(read, trust):
    config = """
_base_ = ['./base.py', 'other.py']
model = dict(head=dict(b=[3], c=_base_.extra.x))
root = {{_base_.root}}
path = '{{ _base_.root }}train'
copied = '{{_base_.model}}'
mine = _base_.model.head.a
"""
    bases = {"base": BASE, "other": "_base_ = 'third.py'", "third": "extra = dict(x=5)"}
    found = read(config, trust, **bases)
    assert found["model"] == {"type": "M", "head": {"a": 1, "b": [3], "c": 5}}
    assert found["root"] == "data/" and found["extra"] == {"x": 5} and found["mine"] == 1
    assert found["copied"] == {"type": "M", "head": {"a": 1, "b": [1, 2]}}
    if not trust:
        assert found["path"] == "data/train"


@pytest.mark.parametrize("trust", [False, True])
def test_delete_replaces_a_dict(read, trust):
    config = "_base_ = 'base.py'\nmodel = dict(head=dict(_delete_=True, z=1))"
    assert read(config, trust, base=BASE)["model"] == {"type": "M", "head": {"z": 1}}


@pytest.mark.parametrize("trust", [False, True])
def test_a_file_may_change_its_base(read, trust):
    config = "_base_ = 'base.py'\n_base_.model.head.a = 9\nhead = _base_.model.head\n"
    found = read(config + "del _base_.root", trust, base=BASE)
    assert found["model"]["head"]["a"] == 9 and found["head"]["a"] == 9 and "root" not in found


@pytest.mark.parametrize("trust", [False, True])
def test_new_style_files(read, trust):
    config = """
from mmengine.config import read_base
from mmengine.optim import AmpOptimWrapper
from torch.optim import SGD
import mmdet.models as models

with read_base():
    from .base import *
    from .third import lr as rate

model.update(dict(type=models.FasterRCNN))
model.head.merge(dict(b=[3]))
optim_wrapper = dict(type=AmpOptimWrapper, optimizer=dict(type=SGD, lr=rate))
"""
    if trust:
        config = config.replace("model.head.merge(dict(b=[3]))", "model['head']['b'] = [3]")
        config = config.replace("import SGD", "import AdamW as SGD")
    found = read(config, trust, base=BASE, third="lr = 0.5\nhidden = 1")
    assert found["model"] == {"type": "mmdet.models.FasterRCNN", "head": {"a": 1, "b": [3]}}
    assert found["optim_wrapper"]["type"] == "mmengine.optim.AmpOptimWrapper"
    assert found["optim_wrapper"]["optimizer"]["lr"] == 0.5
    assert set(found) == {"model", "root", "rate", "optim_wrapper"}


def test_predefined_variables(read, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_DATA", "/data")
    config = "a = '{{ fileBasenameNoExtension }}'\nb = '{{fileDirname}}/x'\n"
    config += "c = '{{$MY_DATA:/none}}'\nd = '{{ $MY_OTHER: /none }}'"
    assert read(config) == {"a": "config", "b": f"{tmp_path}/x", "c": "/data", "d": "/none"}


def test_bases_of_the_package_are_found_above_the_file(tmp_path):
    (tmp_path / "configs" / "_base_").mkdir(parents=True)
    (tmp_path / "configs" / "_base_" / "a.py").write_text("x = 1")
    (tmp_path / "mine.py").write_text("_base_ = 'mmdet::_base_/a.py'")
    assert read_config(tmp_path / "mine.py") == {"x": 1}


@pytest.mark.parametrize(
    "attack",
    [
        "import os\nos.system('touch ran')",
        "x = __import__('os').system('touch ran')",
        "x = open('ran', 'w')",
        "x = eval(\"open('ran', 'w')\")",
        "x = (lambda: open('ran', 'w'))()",
        "x = [open('ran', 'w') for i in range(1)]",
        "x = ''.__class__.__mro__",
        "x = dict.fromkeys",
        'x = f\'{open("ran", "w")}\'',
        "def f():\n    open('ran', 'w')\n",
        "class A:\n    open('ran', 'w')\n",
        "if True:\n    x = 1\n",
        "for i in range(2):\n    x = i\n",
        "while True:\n    pass\n",
        "x = 'a' * 10**9",
        "x = 9 ** 9 ** 9",
        "x = list(range(10**12))",
        "dict = open\nx = dict('ran', 'w')",
        "x = [1 for i in range(2) if open('ran', 'w')]",
        "x = 1 if open('ran', 'w') else 2",
        "x = 0 or open('ran', 'w')",
        "x = 1 == open('ran', 'w')",
    ],
)
def test_other_code_is_not_executed(read, tmp_path, attack):
    with pytest.raises(UserError, match=r"config\.py:\d+: .*--trust") as error:
        read(attack)
    assert not (tmp_path / "ran").exists() and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "attack",
    [
        "x = 10\n" + "x = x**64\n" * 20,
        "x = 10\n" + "x **= 64\n" * 20,
        "x = 10**64\n" + "x *= x\n" * 50,
        "x = 'a'\n" + "x = x + x\n" * 50,
        "x = 'a'\n" + "x += x\n" * 50,
        "x = [1]\n" + "x.extend(x)\n" * 50,
        "x = [1]\n" + "x = [*x, *x]\n" * 50,
        "x = [1]\n" + "x = [x, x]\n" * 100,
        "x = dict(a=1)\n" + "x = dict(a=x, b=x)\n" * 100,
        "x = dict(a=1)\n" + "y = x\nx = dict()\nx['a'] = y\nx['b'] = y\n" * 100,
        "x = 'a' * 999\n" + "x *= 999999\n",
        "x = (1,)\nx *= 10**9",
        "x = 10**9 * [1]",
        "x = '%1000000000d' % 1",
        "x = '%.1000000000f' % 1",
        "x = '%*d' % (10**9, 1)",
        "x = '%(a(b))1000000000d' % {'a(b)': 1}",
        "x = '%d'\nx %= 1\ny = '%99999999d'\ny %= 1",
        "x = f'{1:1000000000}'",
        "x = f'{1:{10**9}}'",
        "x = f'{1:.1000000000f}'",
        "x = 'a' * 999999\nx = f'{x}" + "{x}" * 99 + "'",
        "x = 'a' * 9999\nx = x.replace('a', x)",
        "x = 'a' * 9999\nx = x.join(x)",
        "x = 'a' * 9999\ny = {i: i for i in range(9999)}\nx = x.join(y.keys())",
        "x = [0 for a in range(999999) for b in range(999999) if a < 0]",
        "x = [0] * 99999\ny = [x == x for a in range(99999)]",
        "x = []\nx.append(x)",
        "x = dict()\nx['a'] = x\ny = f'{x}'",
    ],
)
def test_large_values_are_not_computed(read, attack):
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"config\.py:\d+: .* too large for a config; .*--trust"):
        read(attack)
    assert time.perf_counter() - start < 10


def test_values_that_python_does_not_compute(read):
    for text in ("x = round(5, -10**9)", "x = round(5, ndigits=10**9)", "x = b'a' * 10**9"):
        with pytest.raises(UserError, match=r"config\.py:1: "):
            read(text)


def test_the_size_of_values_is_not_limited_in_practice(read):
    names = [f"a class with the number {i}" for i in range(2000)]
    text = f"names = {names}\n" + "".join(f"x{i} = dict(names=names)\n" for i in range(9))
    assert read(text)["x8"] == {"names": names}


def test_a_trusted_value_may_not_contain_itself(read):
    with pytest.raises(UserError, match=r"config\.py: a value contains itself"):
        read("x = []\nx.append(x)", trust=True)


def test_trusted_files_are_executed(read):
    config = """
import torch
from mmcv.ops import nms
import mmdet.models
def double(x):
    return 2 * x
x = double(4)
if x > 1:
    y = dict(type=nms, other=mmdet.models.X, kind=torch.nn.Linear)
"""
    kinds = {"type": "mmcv.ops.nms", "other": "mmdet.models.X"}
    kinds["kind"] = "torch.nn.modules.linear.Linear"
    assert read(config, trust=True) == {"x": 8, "y": kinds}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("x = (", r"config\.py:1: SyntaxError: .*only Python configs"),
        ("x = y", r"config\.py:1: y is not defined in the file or its bases; --trust"),
        ("a = 1\nx = {}['k']", r"config\.py:2: there is no key 'k'"),
        ("x = 1 / 0", r"config\.py:1: ZeroDivisionError"),
        ("x = [1][3]", r"config\.py:1: IndexError"),
        ("a, b = 1, 2, 3", r"config\.py:1: ValueError"),
        ("x = 'a' + 1", r"config\.py:1: TypeError"),
        ("x = " + "-" * 3000 + "1", r"config\.py"),
        ("_base_ = 'none.py'", r"config\.py:1: the base none\.py does not exist; copy MMDetection"),
        ("_base_ = 'config.py'", r"is a base of itself"),
        ("_base_ = ['base.py', 'base.py']", r"config\.py:1: two files in _base_ define model"),
        ("_base_ = 'base.py'\nroot = dict(a=1)", r"root is a dict, and 'data/' in its base; add"),
        ("_base_ = 'no_such_package::a.py'", r"in the package no_such_package, which is not inst"),
        ("with read_base():\n    from .none import *", r"config\.py:2: the base .*none\.py does"),
        ("with read_base():\n    from .base import y", r"config\.py:2: base does not define y"),
        ("with read_base():\n    from nopackage.a import y", r"config\.py:2: .* is not installed"),
        ("x = {1, 2}", r"does not execute `\{1, 2\}`"),
        ("x = [a async for a in 'a b'.split()]", r"does not execute `\[a async for a in 'a b'"),
    ],
)
def test_errors(read, config, message):
    with pytest.raises(UserError, match=message) as error:
        read(config, base=BASE)
    assert "\n" not in str(error.value)


def test_errors_of_files(tmp_path):
    with pytest.raises(UserError, match=r"the config file .*none\.py does not exist"):
        read_config(tmp_path / "none.py")
    (tmp_path / "a.py").write_bytes(b"x = '\xff'")
    with pytest.raises(UserError, match="cannot read the config file"):
        read_config(tmp_path / "a.py")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("x = object()", "x is <object object .*, which is not a plain value"),
    ],
)
def test_errors_of_trusted_files(read, config, message):
    with pytest.raises(UserError, match=rf"config\.py: {message}"):
        read(config, trust=True)


def test_mmdetections_own_config(repo):
    path = repo / CONFIGS / "mask_rcnn" / "mask-rcnn_r50-caffe_fpn_ms-poly-1x_coco.py"
    found = read_config(path)
    assert found == read_config(path, trust=True)
    assert found["model"]["backbone"]["norm_cfg"] == {"type": "BN", "requires_grad": False}
    pipeline = found["train_dataloader"]["dataset"]["pipeline"]
    assert pipeline == found["train_pipeline"] and pipeline[1]["poly2mask"] is False
    assert found["auto_scale_lr"] == {"enable": False, "base_batch_size": 16}
