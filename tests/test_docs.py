"""README, docs/ and examples: their commands, keys, links and messages agree with the code."""

import argparse
import ast
import copy
import functools
import hashlib
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from d2ext.cli import COMMANDS
from d2ext.config.recipes import find_config
from d2ext.errors import UserError
from d2ext.invocation import ARGUMENTS, TOOLS
from tests.conftest import LITE0, REPO

PAGES = sorted(
    str(path.relative_to(REPO))
    for path in [*REPO.glob("*.md"), *REPO.glob("docs/*.md"), *REPO.glob("examples/**/*.md")]
)
CORNERNET = "configs/cornernet/cornernet_hourglass104_mstest_32x3_210e_coco.py"
SCNET = "configs/scnet/scnet_r50_fpn_1x_coco.py"
CUSTOM = "configs/custom/mask_rcnn_lite0_fpn.py"
OWN_RUN = f"work_dirs/{Path(CUSTOM).stem}"
RECIPE = "mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py"
_ZOO = importlib.util.find_spec("detectron2").submodule_search_locations[0] + "/model_zoo/configs/"
YACS = f"{_ZOO}COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
# Placeholders for a reader's own files: a recipe, a run's config, a config that a page shows.
STANDS_FOR = {
    "X": LITE0,
    **dict.fromkeys(
        ("Y", "balloon.py", "work_dirs/balloon"),
        "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py",
    ),
    "faster_rcnn_r50_fpn_1x_coco.py": "configs/faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco.py",
    "mine.py": CUSTOM,
    **dict.fromkeys(
        (
            "detectron2/configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
            "mask_rcnn_R_50_FPN_3x.yaml",
            "faster_rcnn_R_50_FPN_3x.yaml",
            "pointrend_rcnn_R_50_FPN_1x_coco.yaml",
        ),
        YACS,
    ),
    "detectron2/configs/COCO-Detection/fcos_R_50_FPN_1x.py": (
        f"{_ZOO}COCO-Detection/fcos_R_50_FPN_1x.py"
    ),
    "mask_rcnn_R_50_FPN_1x.py": f"{_ZOO}COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py",
    "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py": (
        "configs/vitdet/mask_rcnn_vitdet_b_100ep_coco.py"
    ),
    **{
        f"{run}{file}": recipe
        for run, recipe in (
            ("work_dirs/mine", LITE0),
            ("work_dirs/own_dataset", CUSTOM),
            (OWN_RUN, CUSTOM),
        )
        for file in ("", "/config.yaml")
    },
}
_BY_TOOL = {Path(file).stem: name for name, file in TOOLS.items()}
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)``(?!`)(.+?)``|(?<!`)`(?!`)([^`\n]+)`")


@dataclass
class Command:
    """A command of a page, parsed as by a shell.

    Attributes:
        page: Path of the page.
        words: Program and arguments, with variables that the page sets replaced.
        env: Variables that are set for this command.
    """

    page: str
    words: list[str]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str | None:
        """Return the name of the d2ext command that it runs, or None."""
        found = self._find()
        return found and found[1]

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of the d2ext command."""
        return self._find()[2]

    @property
    def text(self) -> str:
        """Return the command with `d2ext NAME` for each of the ways to run it."""
        if not (found := self._find()):
            return shlex.join(self.words)
        before, name, arguments = found
        before = [word for word in before if word not in ("python", "-m")]
        words = [word.removeprefix("configs/") for word in arguments if word != "--config-file"]
        return shlex.join([*before, "d2ext", name, *words])

    def _find(self) -> tuple[list[str], str, list[str]] | None:
        """Return the words before a d2ext command, its name, and its arguments."""
        for i, word in enumerate(self.words):
            if tool := re.fullmatch(r"tools/(\w+)\.py", word):
                return self.words[:i], _BY_TOOL[tool[1]], self.words[i + 1 :]
            if word == "d2ext":
                return self.words[:i], self.words[i + 1], self.words[i + 2 :]
        return None

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def _text(page: str) -> str:
    return (REPO / page).read_text(encoding="utf-8")


def _commands(page: str) -> Iterator[Command]:
    """Yield the commands in the ```bash blocks of a page, in order."""
    variables: dict[str, str] = {}
    arrays: dict[str, list[str]] = {}
    blocks = [text for _, language, text in _BLOCK.findall(_text(page)) if language == "bash"]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removesuffix(" &&")
            for name, value in variables.items():
                line = re.sub(rf"\${name}\b", value, line)
            for name, values in arrays.items():
                line = line.replace(f'"${{{name}[@]}}"', shlex.join(values))
            if array := re.fullmatch(r" *([A-Z]+)(\+?)=\((.*)\)", line):
                before = arrays.get(array[1], []) if array[2] else []
                arrays[array[1]] = before + shlex.split(array[3])
                continue
            if loop := re.fullmatch(r"for ([A-Z]+) in (\w+) .*; do", line):
                variables[loop[1]] = loop[2]  # a loop is run once
                continue
            if line == "done":
                continue
            words = shlex.split(line, comments=True)
            env = {}
            while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
                name, _, env[name] = words.pop(0).partition("=")
            if words:
                yield Command(page, words, env)
            else:
                variables |= env


# tests/test_extending.py runs those of the other page.
ALL = [command for page in PAGES if page != "docs/extending.md" for command in _commands(page)]


@functools.cache
def _base(file: str):
    from d2ext.config.load import load_config

    return load_config(REPO / STANDS_FOR.get(file, file))


def _config(file: str, overrides: Sequence[str] = ()):
    """Load a config like `load_config`, without running the file each time."""
    from d2ext.config.check import check_config
    from d2ext.config.load import load_config
    from d2ext.config.overrides import apply_overrides

    # Overrides in capitals, and your own data, are applied while the file is loaded.
    if file.startswith(_ZOO):
        return load_config(file, overrides)
    cfg = copy.deepcopy(_base(file))
    apply_overrides(cfg, overrides)
    check_config(cfg)
    return cfg


def _parse(name: str, arguments: list[str]) -> argparse.Namespace:
    """Parse arguments with a command's own parser, with files for STANDS_FOR."""
    module = importlib.import_module(f"d2ext.cli.{name.replace('-', '_')}")
    args = module.parse([_standing(word) for word in arguments])
    if "rest" in args:  # arguments of a training that is submitted
        _parse("train", ["--config-file", args.config_file, *args.rest])
    return args


def _standing(word: str) -> str:
    file = REPO / STANDS_FOR.get(word, word)
    return str(file) if file.is_file() else word


def _check_command(name: str, arguments: list[str]) -> None:
    args = vars(_parse(name, arguments))
    overrides = [*(args.get("options") or ()), *(args.get("overrides") or ())]
    for key in ("config_file", "diff", "weights"):
        file = args.get(key)
        if file and (key != "weights" or name == "prepare"):
            assert Path(find_config(file)).is_file(), file
    if args.get("config_file"):
        _config(args["config_file"], overrides)


@pytest.mark.parametrize("command", ALL, ids=str)
def test_commands_exist(command):
    """Program, flags, files and keys are checked without running the command."""
    program = command.words[0]
    if command.name:
        assert program in ("d2ext", "python", "torchrun", "srun")
        _check_command(command.name, command.arguments)
    elif program == "bash":
        script, *given = command.words[1:]
        assert (REPO / script).is_file()
        if script.endswith("dist_train.sh"):
            config, count, *given = given
            given = ["--config-file", config, "--num-gpus", count, *given]
            _check_command("train", given)
        else:
            partition, name, config, work_dir, *given = given
            flags = ["--partition", partition, "--job-name", name, "--work-dir", work_dir]
            _check_command("submit", [*flags, "--config-file", config, *given])
    elif program == "make":
        done = subprocess.run(
            ["make", "-C", REPO, "-n", *command.words[1:], "D2EXT_VENV=/x"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    elif command.words[:2] == ["python", "run_onnx.py"]:  # beside an exported model
        from d2ext.export.run_onnx import parse

        parse(command.words[2:])
    elif program in ("pip", "pre-commit"):
        assert command.words[1] == "install"
    else:
        assert command.words == [".", ".venv/bin/activate"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_in_bash_blocks(page):
    """Otherwise the tests here would not find them."""
    for _, language, block in _BLOCK.findall(_text(page)):
        if language != "bash":
            programs = "d2ext|python|pip|make|bash|torchrun|srun"
            assert not re.search(rf"^\s*({programs}) ", block, re.MULTILINE)


def _spans(page: str) -> list[str]:
    """Return the `code` in a page's text and tables, except what tables compare d2ext with."""
    text = _BLOCK.sub("", _text(page))
    if re.search("/(from_|troubleshooting|configs)", page):
        text = re.sub(r"^\| .*? \| ", "", text, flags=re.MULTILINE)
    return [a or b for a, b in _SPAN.findall(text)]


_KEY = re.compile(r"\+?(train|dataloader|data|optimizer|model)(\.\w+(\[\d+\])?)+")
_FILES = (".py", ".md", ".yaml", ".onnx", ".unverified")
_MODULES = {"data.formats", "data.validation"}  # of d2ext, in architecture.md
_MODULES |= {"model.json"}  # a file, in deploying.md
_ADDED = {"train.compile.mode"}  # with `+`, as in training.md


@pytest.mark.parametrize("page", [p for p in PAGES if p != "CHANGELOG.md"])
def test_keys_in_the_text_are_known(page):
    """`train.x=1` is a valid override of a recipe, and `train.x` an existing key."""
    from d2ext.config.overrides import apply_overrides

    for span in _spans(page):
        key, equals, value = span.partition("=")
        if not _KEY.fullmatch(key) or key.endswith(_FILES) or key in _MODULES:
            continue
        file = CUSTOM if key.startswith("data.") and key != "data.root" else LITE0
        file = YACS if key.startswith("model.config") else file
        file = CORNERNET if key == "model.activation_checkpointing" else file
        file = SCNET if key.startswith("model.roi_heads.semantic") else file
        stands_for_values = re.search(r"\.\.\.|\b[A-Z]+\b", value)
        if equals and not stands_for_values:
            _config(file, shlex.split(span))
        elif key.removeprefix("+") not in _ADDED:
            try:
                apply_overrides(copy.deepcopy(_base(file)), [f"{key}=null"])
            except UserError as e:  # a wrong type does not matter
                assert "unknown key" not in str(e), e


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page, capsys):
    """`d2ext x ...`, `python tools/x.py ...`; one may name a command without its arguments."""
    for span in _spans(page):
        if not re.match(r"(d2ext|python tools/\w+\.py)( [a-z]|$)", span) or "..." in span:
            continue
        command = Command(page, shlex.split(span))
        if command.words != ["d2ext"] and command.name in COMMANDS and "--help" not in span:
            try:
                _check_command(command.name, command.arguments)
            except SystemExit:
                absent = "the following arguments are required|name a dataset"
                assert re.search(absent, capsys.readouterr().err), span


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page):
    text = _BLOCK.sub("", _text(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        path = (REPO / page).parent / file if file else REPO / page
        assert path.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads]


def test_the_readme_links_to_each_page():
    for page in PAGES:
        if page.startswith(("docs/", "examples/")):
            assert f"]({page})" in _text("README.md"), page


def _rendered(node: ast.expr) -> str | None:
    """Return a text in the source, with NUL in place of values."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "\0" for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [_rendered(side) or "\0" for side in (node.left, node.right)]
        return "".join(sides)
    return None


_REPORTING = {"UserError", "print", "debug", "info", "warning", "error", "exception"}


def _reported(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that a file raises, logs or prints, and those that build their text."""
    reported: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            reported.append(node)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in _REPORTING:
                reported += [*node.args, *(k.value for k in node.keywords)]
    names = {n.id for part in reported for n in ast.walk(part) if isinstance(n, ast.Name)}
    yield from reported
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign):
            target = node.target if isinstance(node, ast.AugAssign) else node.targets[0]
            if getattr(target, "id", "") in names:
                yield node.value
        elif isinstance(node, ast.FunctionDef) and node.name in names:
            yield from (n for n in ast.walk(node) if isinstance(n, ast.Return))


@functools.cache
def _texts() -> set[str]:
    """Return the messages in the code."""
    files = [*REPO.glob("d2ext/**/*.py"), *REPO.glob("tools/*.py")]
    parts = (part for file in files for part in _reported(ast.parse(file.read_text())))
    nodes = (node for part in parts for node in ast.walk(part) if isinstance(node, ast.expr))
    return {text for node in nodes if (text := _rendered(node))}


def _messages() -> list[str]:
    rows = re.findall(r"^\| (`.*?`) \| ", _text("docs/troubleshooting.md"), re.MULTILINE)
    # A message names a command as the user runs it.
    command = rf"python tools/\w+\.py|d2ext ({'|'.join(COMMANDS)})\b"
    return [re.sub(command, "COMMAND", row.strip("`")) for row in rows]


@pytest.mark.parametrize("message", _messages())
def test_messages_of_the_troubleshooting_page_are_in_the_code(message):
    """A message in the code has the same words in order, with values for words in capitals."""
    flags = rf"(?:{'|'.join(ARGUMENTS)})(?![-\w])"  # values, too: arguments in Python
    parts = re.split(rf"('?\b[A-Z]+\b'?|{flags})", message)
    assert any(re.search(r"\w", part) for part in parts[::2]), "only words in capitals"
    # Words in capitals may also be literal (JSON, --dist-url tcp://HOST:PORT).
    values = [rf"(?:{re.escape(part)}|[^\0%]*(?:\0|%\w).*?)" for part in parts[1::2]]
    fixed = [re.escape(part) for part in parts[::2]]
    pairs = itertools.zip_longest(fixed, values, fillvalue="")
    pattern = re.compile("".join(itertools.chain.from_iterable(pairs)), re.DOTALL)
    assert any(pattern.search(text) for text in _texts()), message


def test_no_page_has_a_placeholder():
    """A line of capitals, such as TABLE, stands for something that is not written yet."""
    for page in PAGES:
        assert not re.findall(r"^[A-Z]+$", _text(page), re.MULTILINE), page


def test_the_troubleshooting_page_is_long_enough():
    assert len(_messages()) >= 40


def test_the_worked_examples_of_scaling():
    """The rows of the table and the report on the page are correct."""
    from d2ext.config.lr_scaling import scale_config

    text, on = _text("docs/scaling.md"), "+train.auto_scale_lr.enabled=True"
    rows = re.findall(r"^\| (\d+) \| (.*?) ?\| (\d+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for workers, override, batch, factor, rate in rows:
        more = [override.strip("`")] if override else []
        cfg = _config("configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py", (on, *more))
        scaled, report = scale_config(cfg, int(workers))
        over, _, under = factor.partition("/")
        assert report.batch_size == int(batch)
        assert report.scale == int(over) / int(under or 1)
        assert scaled.optimizer.lr == pytest.approx(float(rate))
    cfg = _config("configs/faster_rcnn/faster_rcnn_r50_caffe_fpn_90k_coco.py", (on,))
    assert "\n".join(scale_config(cfg, 2)[1].lines()) in text


# Commands that are not run as on the page: why, and the test that runs them or a smaller version.
_SEVERAL = "tests/cli/test_several_processes.py"
_PREDICTED = f"{_SEVERAL}::test_two_processes_predict_the_same_files_as_one"
_PACKAGES = "installs packages", "tests/test_docs.py::test_the_commands_that_make_an_environment"
_CHECKED = "tests/cli/test_prepare_data.py::test_coco_and_cityscapes_are_checked_without_torch"
_DOWNLOADED = "tests/data/prepare/test_balloon.py::test_download_is_unpacked_and_checked"
_FETCHED = "tests/cli/test_prepare_data.py::test_initial_weights_are_fetched_with_a_dataset"
_MMDETECTION = (
    "needs MMDetection's checkpoint",
    "tests/mmdetection/test_commands.py"
    "::test_training_evaluation_and_prediction_start_from_a_checkpoint",
)
_PROJECT = (
    "needs a project of MMDetection",
    "tests/cli/test_mmdetection_project.py::test_a_project_of_mmdetection_moves_as_the_page_says",
)
_GUIDE = "mask-rcnn_r50-caffe_fpn_ms-poly-1x_balloon"
_STANDARD = "tests/cli/test_standard_datasets.py"
_YACS = "tests/cli/test_yacs.py::test_yacs_config_"
_LAZY = "tests/cli/test_detectron2_configs.py::test_a_config_trains_"
ELSEWHERE = {
    "d2ext evaluate 'runs/*/predictions/custom_val.json' --dataset a.json": (
        "needs the runs of all folds",
        "tests/cli/test_own_split.py::test_folds_are_evaluated_together",
    ),
    "d2ext train custom/mask_rcnn_lite0_fpn.py data.train.json=a.json data.train.images=imgs"
    " data.val.json=b.json data.val.images=imgs 'train.budget=10 min'": (
        "needs its own length",
        "tests/cli/test_auto.py::test_a_run_ends_within_its_budget",
    ),
    "d2ext train X train.budget=1h30m": (
        "needs its own length",
        "tests/cli/test_auto.py::test_a_run_ends_within_its_budget",
    ),
    **{
        f"d2ext export work_dirs/mine{flags}": ("takes a minute", test)
        for flags, test in {
            "": "tests/export/test_onnx.py::test_the_proof_is_beside_the_file_and_in_the_run",
            " --images photos": (
                "tests/export/test_onnx.py::test_a_file_that_differs_is_kept_as_unverified"
            ),
            " --half": "tests/export/test_onnx.py::test_half_precision_and_the_page",
            " --html page.html": "tests/export/test_onnx.py::test_half_precision_and_the_page",
        }.items()
    },
    "d2ext predict work_dirs/mine/export/model.onnx photos": (
        "needs an exported model",
        "tests/export/test_runners.py::test_all_three_find_the_same",
    ),
    "make env": _PACKAGES,
    "make demo": _PACKAGES,
    "make test": _PACKAGES,
    ". .venv/bin/activate": _PACKAGES,
    "d2ext doctor": _PACKAGES,
    "d2ext prepare balloon --full": ("needs the network", _DOWNLOADED),
    "d2ext prepare coco --stuff": (
        "needs the network",
        "tests/data/prepare/test_coco2017.py::test_label_maps_are_fetched_with_one_download",
    ),
    "d2ext prepare voc": (
        "needs the network",
        "tests/data/prepare/test_voc.py::test_all_image_sets_are_fetched_and_then_kept",
    ),
    "d2ext prepare open_images": (
        "needs photos of half a terabyte",
        "tests/data/prepare/test_open_images.py::test_photos_are_counted",
    ),
    "d2ext train faster_rcnn/faster_rcnn_r50_fpn_1x_voc0712.py --auto-scale-lr": (
        "needs Pascal VOC",
        f"{_STANDARD}::test_voc_with_its_own_metric_and_coco_s",
    ),
    "d2ext train faster_rcnn/faster_rcnn_r50_fpn_1x_voc0712.py"
    " '+evaluators.coco={_target_: d2ext.evaluation.coco.CocoMetric}'": (
        "needs Pascal VOC",
        f"{_STANDARD}::test_voc_with_its_own_metric_and_coco_s",
    ),
    "d2ext train faster_rcnn/faster_rcnn_r50_fpn_32x2_1x_openimages.py --auto-scale-lr": (
        "needs Open Images",
        f"{_STANDARD}::test_open_images_with_its_own_metric_coco_s_and_voc_s",
    ),
    "d2ext prepare cityscapes": ("needs photos that require an account", _CHECKED),
    f"d2ext prepare --weights {RECIPE}": ("needs the network", _FETCHED),
    "d2ext predict X photos --num-gpus 8": ("needs 8 GPUs", _PREDICTED),
    "d2ext predict work_dirs/mine photos --num-gpus 2": ("starts processes", _PREDICTED),
    "torchrun --nproc-per-node 8 d2ext train X": (
        "needs 8 GPUs",
        f"{_SEVERAL}::test_torchrun_starts_a_training",
    ),
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:PORT"
    " d2ext train X": (
        "needs 16 GPUs",
        f"{_SEVERAL}::test_torchrun_starts_a_training_on_two_machines",
    ),
    "d2ext train X '+evaluators.sem_seg={_target_: detectron2.evaluation.SemSegEvaluator}'": (
        "needs a dataset with label maps",
        f"{_LAZY}resumes_exactly_and_evaluates",  # panoptic_fpn
    ),
    "d2ext train detectron2/configs/COCO-Detection/fcos_R_50_FPN_1x.py --num-gpus 8": (
        "needs COCO",
        f"{_LAZY}resumes_exactly_and_evaluates",
    ),
    "d2ext train projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py --num-gpus 8 --resume": (
        "needs COCO",
        f"{_LAZY}resumes_exactly_and_evaluates",
    ),
    "d2ext train detectron2/configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml": (
        "needs COCO",
        f"{_YACS}unchanged",
    ),
    "d2ext train mask_rcnn_R_50_FPN_1x.py data.train.json=a.json data.train.images=imgs"
    " data.val.json=b.json data.val.images=imgs train.max_epochs=24": (
        "needs the network",
        f"{_LAZY}on_your_own_photos",
    ),
    "d2ext train mask_rcnn_R_50_FPN_3x.yaml --num-gpus 8": ("needs COCO", f"{_YACS}unchanged"),
    "d2ext train mask_rcnn_R_50_FPN_3x.yaml SOLVER.BASE_LR=0.01 train.max_epochs=12": (
        "needs COCO",
        f"{_YACS}unchanged",
    ),
    "d2ext train mask_rcnn_R_50_FPN_3x.yaml SOLVER.IMS_PER_BATCH 8 'DATASETS.TRAIN=[my_train]'": (
        "needs registered data",
        f"{_YACS}unchanged",
    ),
    "d2ext train faster_rcnn_R_50_FPN_3x.yaml data.train.json=a.json data.train.images=imgs"
    " data.val.json=b.json data.val.images=imgs": ("needs the network", f"{_YACS}own_data"),
    "d2ext train pointrend_rcnn_R_50_FPN_1x_coco.yaml"
    " 'train.yacs_setup=[detectron2.projects.point_rend.add_pointrend_config]'": (
        "needs COCO",
        f"{_YACS}own_data",
    ),
    "d2ext train mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py"
    " train.init_checkpoint=mask_rcnn_r50_fpn_1x_coco.pth": _MMDETECTION,
    "d2ext evaluate mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py"
    " --weights mask_rcnn_r50_fpn_1x_coco.pth": _MMDETECTION,
    f"d2ext import-mmdet balloon/{_GUIDE}.py work_dirs/{_GUIDE}/epoch_12.pth"
    " --output balloon.py": _PROJECT,
    "d2ext train balloon.py --dry-run": _PROJECT,
    "d2ext evaluate balloon.py": _PROJECT,
    "d2ext train balloon.py --auto-scale-lr train.max_epochs=2": _PROJECT,
    "d2ext train balloon.py --auto-scale-lr --resume train.max_epochs=3": _PROJECT,
    "d2ext evaluate work_dirs/balloon --weights last": _PROJECT,
    "d2ext import-mmdet mask-rcnn_r50_fpn_1x_coco.py": _PROJECT,
    "d2ext train X train.init_checkpoint=epoch_12.pth": _MMDETECTION,
    "d2ext import-mmdet mmdetection/configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py": _PROJECT,
    "d2ext train faster_rcnn_r50_fpn_1x_coco.py --num-gpus 8": _PROJECT,
    "d2ext convert-weights mmdet mask_rcnn_r50_fpn_1x_coco.pth ours.pth": (
        "needs MMDetection's checkpoint",
        "tests/checkpoint/weights/test_mmdetection.py::test_the_command_converts_both_ways",
    ),
    "srun --ntasks-per-node 8 d2ext train X": (
        "needs Slurm",
        f"{_SEVERAL}::test_srun_tasks_train_together",
    ),
}
# Commands that are run with `--dry-run` here, and the tests that train with them.
TRAINED = {
    "--num-gpus": f"{_SEVERAL}::test_two_processes_equal_one_that_accumulates",
    "--num-machines": f"{_SEVERAL}::test_two_machines_with_two_processes_each",
    "--auto-scale-lr": f"{_SEVERAL}::test_two_machines_scale_the_learning_rate",
    "tools/dist_train.sh": f"{_SEVERAL}::test_two_runs_of_dist_train_sh_at_once",
    "submit": "tests/slurm/test_training.py::test_a_job_on_two_nodes_equals_a_run_without_slurm",
    "--seeds": "tests/slurm/test_training.py::test_seeds_run_in_their_own_directories",
    "tools/slurm_train.sh": "tests/slurm/test_training.py::test_slurm_train_sh_submits_a_job",
}
# Some of the files that the commands of a page create.
LEAVES = {
    "README.md": [f"{OWN_RUN}/report.html", "work_dirs/predict/overlays"],
    "docs/datasets.md": ["fixed.json", "report.html", f"{OWN_RUN}/eval/results.json"],
    "docs/from_mmdetection.md": ["data/balloon/train/annotation_coco.json"],
    "docs/install.md": ["datasets/coco/val2017"],
    "docs/large_photos.md": [f"{OWN_RUN}/model_final.pth", "work_dirs/predict/predictions.json"],
    "docs/labeling.md": ["work_dirs/predict/rank.txt", "work_dirs/next/labelme", "next.json"],
    "docs/metrics.md": ["results.json", "results_analysis.json"],
    "docs/splitting.md": ["split/val.json", f"{OWN_RUN}/split.json", "runs/1/model_final.pth"],
    "docs/resume.md": ["work_dirs/fresh/model_final.pth"],
    "docs/training.md": ["work_dirs/predict/predictions.json"],
    "examples/own_dataset/README.md": [
        "work_dirs/own_dataset/report.html",
        "work_dirs/predict/overlays/new.jpg",
    ],
}
# Overrides for quick runs of the recipes for custom data.
_QUICK = ["train.max_iter=2", "train.reference_batch_size=2", "train.init_checkpoint="]
_QUICK += ["dataloader.train.num_workers=0", "dataloader.val.num_workers=0"]
_QUICK += [
    "dataloader.train.mapper.augmentations[0].short_edge_length=96",
    "dataloader.val.mapper.augmentations[0].short_edge_length=96",
]


def test_commands_run_elsewhere_have_tests():
    """Each entry has a command of a page, and names an existing test."""
    assert set(ELSEWHERE) <= {command.text for command in ALL}
    words = [[*command.words, command.name] for command in ALL]
    assert all(any(what in each for each in words) for what in TRAINED)
    for test in {*TRAINED.values(), *(test for _, test in ELSEWHERE.values())}:
        file, _, name = test.partition("::")
        tree = ast.parse((REPO / file).read_text())
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, test


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a folder that looks like a checkout, after changing to it."""
    for name in ("tools", "configs", "examples"):
        (tmp_path / name).symlink_to(REPO / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def readers_files(tmp_path_factory):
    """Return a folder for the files of `readers_folder`, which the first test writes."""
    return tmp_path_factory.mktemp("reader") / "files"


@pytest.fixture
def readers_folder(readers_files, checkout, tiny_root, tiny, d2ext_command, train_net, monkeypatch):
    """Add everything that the commands of the pages use: photos, annotations, runs, Slurm."""
    monkeypatch.setenv("DETECTRON2_DATASETS", "datasets")
    if not readers_files.exists():
        written = readers_files.with_name("written")
        written.mkdir()
        monkeypatch.chdir(written)
        _write_readers_files(tiny_root / "balloon", tiny, d2ext_command, train_net)
        written.rename(readers_files)
        monkeypatch.chdir(checkout)
    shutil.copytree(readers_files, checkout, dirs_exist_ok=True)
    _fake_slurm(monkeypatch)
    _fake_coco(monkeypatch)


def _write_readers_files(balloon: Path, tiny: list[str], d2ext_command, train_net) -> None:
    shutil.copytree(balloon, "data/balloon")
    for split, name in (("train", "a"), ("val", "b")):
        shutil.copytree(balloon / split, "imgs", dirs_exist_ok=True)
        shutil.copytree(balloon / split, split)
        photos = ["--images", split, "--classes", "balloon", "--output", f"{name}.json"]
        _do(d2ext_command, "convert", "via", f"{split}/via_region_data.json", *photos)
        Path(split, "via_region_data.json").unlink()
        back = {"labelme": "labelme", "yolo": "labels", "voc": "Annotations"}
        back["cvat"] = "annotations.xml"
        back["open_images"] = "boxes.csv"
        for kind, output in back.items():
            to = ["--to", kind, "--output", f"{split}_{output}"]
            _do(d2ext_command, "convert", "coco", f"{name}.json", *to)
        for file in Path(f"{split}_labelme").rglob("*.json"):
            shutil.copy(file, split)
    for output in back.values():
        os.rename(f"train_{output}", output)
    shutil.copy("data/balloon/train/via_region_data.json", "via.json")
    shutil.copy("b.json", "instances_val.json")
    shutil.copytree(balloon / "val", "photos", ignore=shutil.ignore_patterns("*.json"))
    shutil.copytree("photos", "next")
    photo = next(Path("photos").glob("*.jpg"))
    shutil.copy(photo, "a.jpg")
    _film("film.mp4", photo)
    done = train_net("--work-dir", "work_dirs/mine", *_short(tiny))
    assert done.status == 0, done.stderr
    for copied in ("work_dirs/other", f"work_dirs/{Path(LITE0).stem}"):
        shutil.copytree("work_dirs/mine", copied)
    for suffix in ("", ".sha256"):
        shutil.copy(f"work_dirs/mine/model_final.pth{suffix}", f"a.pth{suffix}")
    for file in ("predictions.json", "others.json"):
        shutil.copy("work_dirs/mine/predictions/balloon_val.json", file)


def _short(tiny: list[str]) -> list[str]:
    return [*tiny, "train.max_iter=2", "train.eval_period=2", "train.checkpointer.period=1"]


def _film(file: str, photo: Path) -> None:
    import cv2

    image = cv2.imread(str(photo))
    film = cv2.VideoWriter(file, cv2.VideoWriter_fourcc(*"mp4v"), 5, image.shape[1::-1])
    for _ in range(2):
        film.write(image)
    film.release()


def _fake_slurm(monkeypatch) -> None:
    """Create commands that answer like those of a login node, and DIR, a run that has ended."""
    from d2ext.run_dir.schema import Submission
    from d2ext.slurm.record import new_record

    answers = {"sbatch": "", "srun": "", "squeue": "", "sinfo": "dev*|1:00:00|1:00:00"}
    Path("bin").mkdir()
    for name, answer in answers.items():
        Path("bin", name).write_text(f"#!/bin/sh\nprintf '%s' '{answer}'\n")
        Path("bin", name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:{os.environ['PATH']}")
    Path("DIR").mkdir()
    Path("DIR", "log").write_text("iteration 1\n")
    record = new_record(Path("DIR"), "1")
    record.submitted(Submission(job="7", cluster="slurm", log="DIR/log"))
    record.begin(0, "node1", None)
    record.end("finished", 0)


def _fake_coco(monkeypatch) -> None:
    """Create archives of a few bytes in place of the manually downloaded ones."""
    import dataclasses

    from d2ext.data.prepare import coco2017

    parts, folder = [], Path("datasets/coco")
    folder.mkdir(parents=True)
    for part in coco2017.PARTS:
        with zipfile.ZipFile(folder / part.archive, "w") as archive:
            for name in part.files or ["1.jpg"]:
                archive.writestr(f"{part.name}/{name}", "{}")
        data = (folder / part.archive).read_bytes()
        few = dict(size=len(data), unpacked=len(data), images=int(part.images > 0))
        few["md5"] = hashlib.md5(data).hexdigest()
        parts.append(dataclasses.replace(part, **few))
    monkeypatch.setattr(coco2017, "PARTS", tuple(parts))


def _do(d2ext_command, name: str, *arguments: str):
    done = d2ext_command(name, *arguments)
    assert done.status == 0, f"{name} {shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done


def _runs_here(command: Command) -> bool:
    return (command.name or command.words[0] == "bash") and command.text not in ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({c.page for c in ALL if _runs_here(c)}))
def test_the_commands_of_a_page(d2ext_command, readers_folder, tiny, page):
    """They run in order, except those in ELSEWHERE; those in TRAINED run with --dry-run.

    `make` and `pip` install packages: test_the_commands_that_make_an_environment.
    """
    for command in _commands(page):
        if _runs_here(command):
            _run_command(d2ext_command, command, tiny)
    for file in LEAVES.get(page, ()):
        assert Path(file).exists(), file


def _run_command(d2ext_command, command: Command, tiny: list[str]) -> None:
    """Run a command in the reader's folder, with as little work as possible."""
    name = command.name
    arguments = command.arguments if name else command.words[2:]
    of_x = {"X", LITE0, LITE0.removeprefix("configs/")} & set(command.words)
    arguments = [STANDS_FOR[w] if w in ("X", "Y") else w for w in arguments]
    arguments = [w.replace("HOST:PORT", "127.0.0.1:29999") for w in arguments]
    offline = name == "evaluate" and "--dataset" in arguments
    asks = name == "submit" and arguments[0] in ("status", "logs", "cancel")
    trains = name in ("train", "submit") and not asks or command.words[0] == "bash"
    if trains and any(what in [*command.words, name] for what in TRAINED):
        less = [*tiny, "train.reference_batch_size=16"]  # an image for each of the workers
        if command.words[0] == "bash":
            done = subprocess.run(
                [*command.words[:2], *arguments, "--overwrite", "--dry-run", *less],
                env={**os.environ, "PYTHON": sys.executable, **command.env},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{command}\n{done.stderr}"
        else:
            _do(d2ext_command, name, "--dry-run", "--overwrite", *arguments, *less)
    elif name == "train" or name == "evaluate" and not offline:
        less = _short(tiny) if of_x else _QUICK
        typed = " ".join(arguments)
        less = [k for k in less if k.partition("=")[0] not in typed]
        if "train.max_epochs=24" in arguments:
            arguments[arguments.index("train.max_epochs=24")] = "train.max_epochs=1"
            less = [k for k in less if not k.startswith("train.max_iter=")]
        if "--expect" in arguments:  # two steps reach no AP
            arguments[arguments.index("--expect") + 1] = "balloon_val/coco/segm/AP>=0"
        if "--tta" in arguments:
            less.append("dataloader.tta.min_sizes=[96]")
        fresh = name == "train" and not {"--resume", "--eval-only"} & set(arguments)
        flags = ["--overwrite"] if fresh else []
        _do(d2ext_command, name, *flags, *arguments, *less)
    elif name == "predict" and of_x:
        root = next(k for k in tiny if k.startswith("data.root="))
        _do(d2ext_command, name, *arguments, "--options", root)
    else:
        if name == "convert" and arguments[0] in ("voc", "open_images"):
            arguments[-1] = "other.json"  # has only boxes; the input is needed to train masks
        _do(d2ext_command, name, *arguments)


_OF_AN_ENVIRONMENT = ("DETECTRON2", "D2EXT_VENV", "PYTHON", "PYTHONPATH", "VIRTUAL_ENV")


@pytest.mark.slow
def test_the_commands_that_make_an_environment(checkout, tiny):
    """A shell runs them in order, with the packages installed already."""
    for name in ("Makefile", "requirements", "setup.py", "pyproject.toml", "d2ext", "tests"):
        (checkout / name).symlink_to(REPO / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], check=True)
    (site,) = Path(".venv/lib").glob("python3*/site-packages")
    paths = [str(checkout), *{sysconfig.get_path(name) for name in ("purelib", "platlib")}]
    (site / "here.pth").write_text("".join(f"{path}\n" for path in paths))
    command = Path(".venv/bin/d2ext")
    command.write_text(
        f"#!{checkout}/.venv/bin/python\nfrom d2ext.__main__ import main\n\nmain()\n"
    )
    command.chmod(0o755)
    # The file that requirements/install.sh writes after installing everything.
    stamp = re.search(r"^want=\$\((.*)\)$", _text("requirements/install.sh"), re.MULTILINE)[1]
    more = {
        "make demo": f"ARGS={shlex.quote(' '.join([*tiny, 'train.max_iter=2']))}",
        "make test": "ARGS='tests/config/test_schedule.py --numprocesses 0'",
    }
    steps = [text for text, entry in ELSEWHERE.items() if entry is _PACKAGES]
    script = "\n".join(f"{text} {more.get(text, '')}" for text in steps)
    done = subprocess.run(
        ["bash", "-e", "-c", f"mode=pypi; ({stamp}) >.venv/d2ext-stamp\n{script}"],
        env={k: v for k, v in os.environ.items() if k not in _OF_AN_ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training works" in done.stdout and " passed" in done.stdout
    (recipe,) = re.findall(r"^DEMO = (.*)$", _text("Makefile"), re.MULTILINE)
    assert (checkout / "work_dirs" / recipe / "report.html").is_file()


def test_the_config_that_changes_another(tmp_path):
    """The config in docs/from_mmdetection.md works in any folder."""
    from d2ext.config.load import load_config

    text = _text("docs/from_mmdetection.md")
    (code,) = (block for _, language, block in _BLOCK.findall(text) if language == "python")
    (tmp_path / "mine.py").write_text(code)
    cfg = load_config(tmp_path / "mine.py")
    assert (cfg.optimizer.lr, cfg.train.max_epochs) == (0.01, 24)
    assert cfg.model.roi_heads.box_predictor.test_score_thresh == 0.3


def test_the_coco_file_that_a_page_shows(tmp_path):
    """The file can be read, also without the keys that the page calls optional."""
    from d2ext.data.formats.coco import read_coco

    (shown,) = (
        text
        for _, language, text in _BLOCK.findall(_text("docs/datasets.md"))
        if language == "json"
    )
    content = json.loads(shown)
    (annotation,) = content["annotations"]
    for absent, area in (((), 5000), (("area", "iscrowd"), 5000), (("area", "segmentation"), 5000)):
        fewer = {key: value for key, value in annotation.items() if key not in absent}
        file = tmp_path / "coco.json"
        file.write_text(json.dumps(content | {"annotations": [fewer]}))
        ((record,), _) = read_coco(file, tmp_path)
        (read,) = record["annotations"]
        assert (read["area"], read["iscrowd"], read["bbox"]) == (area, 0, [10, 20, 110, 70])
