"""README, docs/ and examples: their commands, keys, links and messages are those of the code."""

import argparse
import ast
import copy
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from d2ext.errors import UserError
from tests.conftest import LITE0, REPO

PAGES = sorted(
    str(path.relative_to(REPO))
    for path in [*REPO.glob("*.md"), *REPO.glob("docs/*.md"), *REPO.glob("examples/**/*.md")]
)
CUSTOM = "configs/custom/mask_rcnn_lite0_fpn.py"
# What stands for a reader's own: a recipe, a run's config, a config that a page shows.
STANDS_FOR = {
    "X": LITE0,
    "Y": "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py",
    "work_dirs/mine/config.yaml": LITE0,
    "work_dirs/own_dataset/config.yaml": CUSTOM,
    "configs/custom/mine.py": CUSTOM,
}
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)``(?!`)(.+?)``|(?<!`)`(?!`)([^`\n]+)`")


@dataclass
class Command:
    """A line of a page, as a shell would take it.

    Attributes:
        page: where it stands.
        words: program and arguments; variables that the page sets are put in.
        env: variables set for this command.
    """

    page: str
    words: list[str]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def tool(self) -> str | None:
        """Name of the Python tool that runs, if one does."""
        found = [Path(w).stem for w in self.words if re.fullmatch(r"tools/\w+\.py", w)]
        return found[0] if found else None

    @property
    def arguments(self) -> list[str]:
        """What the tool or script gets."""
        at = next(i for i, w in enumerate(self.words) if w.startswith("tools/"))
        return self.words[at + 1 :]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def _text(page: str) -> str:
    return (REPO / page).read_text(encoding="utf-8")


def _commands(page: str) -> Iterator[Command]:
    """The commands of a page's ```bash blocks, in their order."""
    variables: dict[str, str] = {}
    blocks = [text for _, language, text in _BLOCK.findall(_text(page)) if language == "bash"]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = re.sub(rf"\${name}\b", value, line)
            words = shlex.split(line, comments=True)
            env = {}
            while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
                name, _, env[name] = words.pop(0).partition("=")
            if words:
                yield Command(page, words, env)
            else:
                variables |= env


ALL = [command for page in PAGES for command in _commands(page)]


@functools.cache
def _tool(name: str):
    spec = importlib.util.spec_from_file_location(name, REPO / "tools" / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@functools.cache
def _base(file: str):
    from d2ext.config.load import load_config

    return load_config(REPO / STANDS_FOR.get(file, file))


def _config(file: str, overrides: Sequence[str] = ()):
    """As load_config, which would run the file each time."""
    from d2ext.config.check import check_config
    from d2ext.config.overrides import apply_overrides

    cfg = copy.deepcopy(_base(file))
    apply_overrides(cfg, overrides)
    check_config(cfg)
    return cfg


def _parse(tool: str, arguments: list[str], monkeypatch) -> argparse.Namespace | None:
    """What a tool's own parser makes of arguments; None for a tool that takes none."""
    module = _tool(tool)
    if tool == "doctor":
        assert not arguments
        return None
    if tool == "submit":
        if arguments[0] in module.COMMANDS:
            monkeypatch.setattr(sys, "argv", ["submit.py", *arguments])
            return module._read_command(arguments[0])
        args, rest = module._parser().parse_known_args(arguments)
        return _parse("train_net", ["--config-file", args.config_file, *rest], monkeypatch)
    parser = module._parser()
    positional_last = tool in ("browse_dataset", "print_config")
    return (parser.parse_intermixed_args if positional_last else parser.parse_args)(arguments)


def _check_tool(tool: str, arguments: list[str], monkeypatch) -> None:
    args = vars(_parse(tool, arguments, monkeypatch) or argparse.Namespace())
    overrides = [*(args.get("options") or ()), *(args.get("overrides") or ())]
    for key in ("config_file", "diff", "weights"):
        file = args.get(key)
        if file and (key != "weights" or tool == "prepare_data"):
            assert (REPO / STANDS_FOR.get(file, file)).is_file(), file
    if args.get("config_file"):
        _config(args["config_file"], overrides)


@pytest.mark.parametrize("command", ALL, ids=str)
def test_a_command_is_one_that_there_is(command, monkeypatch):
    """Program, flags, files and keys, without running it."""
    program = command.words[0]
    if command.tool:
        assert program in ("python", "torchrun", "srun")
        _check_tool(command.tool, command.arguments, monkeypatch)
    elif program == "bash":
        script, *given = command.words[1:]
        assert (REPO / script).is_file()
        if script.endswith("dist_train.sh"):
            config, count, *given = given
            given = ["--config-file", config, "--num-gpus", count, *given]
            _check_tool("train_net", given, monkeypatch)
        else:
            partition, name, config, work_dir, *given = given
            flags = ["--partition", partition, "--job-name", name, "--work-dir", work_dir]
            _check_tool("submit", [*flags, "--config-file", config, *given], monkeypatch)
    elif program == "make":
        done = subprocess.run(
            ["make", "-n", *command.words[1:], "D2EXT_VENV=/x"],
            cwd=REPO,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    else:
        assert command.words == [".", ".venv/bin/activate"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_bash_blocks(page):
    """Where this file finds them."""
    for _, language, block in _BLOCK.findall(_text(page)):
        if language != "bash":
            assert not re.search(r"^\s*(python|make|bash|torchrun|srun) ", block, re.MULTILINE)


def _spans(page: str) -> list[str]:
    """The `code` of a page's running text and tables, but what a table compares ours with."""
    text = _BLOCK.sub("", _text(page))
    if "/from_" in page or "/troubleshooting" in page:
        text = re.sub(r"^\| .*? \| ", "", text, flags=re.MULTILINE)
    return [a or b for a, b in _SPAN.findall(text)]


_KEY = re.compile(r"\+?(train|dataloader|data|optimizer|model)(\.\w+(\[\d+\])?)+")
_FILES = (".py", ".md", ".yaml")
_MODULES = {"data.formats", "data.check"}  # of d2ext, in architecture.md
_ADDED = {"train.compile.mode"}  # by `+`, as training.md says


@pytest.mark.parametrize("page", [p for p in PAGES if p != "CHANGELOG.md"])
def test_keys_in_the_text_are_known(page):
    """`train.x=1` is an override that a recipe takes, `train.x` a key that there is."""
    from d2ext.config.overrides import apply_overrides

    for span in _spans(page):
        key, equals, value = span.partition("=")
        if not _KEY.fullmatch(key) or key.endswith(_FILES) or key in _MODULES:
            continue
        file = CUSTOM if key.startswith("data.") else LITE0
        stands_for_values = re.search(r"\.\.\.|\b[A-Z]+\b", value)
        if equals and not stands_for_values:
            _config(file, shlex.split(span))
        elif key.removeprefix("+") not in _ADDED:
            try:
                apply_overrides(copy.deepcopy(_base(file)), [f"{key}=null"])
            except UserError as e:  # of another type is all right
                assert "unknown key" not in str(e), e


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_are_ones_that_there_are(page, monkeypatch, capsys):
    """`python tools/x.py ...`; one that only names a tool may leave out what it needs."""
    for span in _spans(page):
        match = re.fullmatch(r"python tools/(\w+)\.py(.*)", span)
        if match and "..." not in span:
            try:
                _check_tool(match[1], shlex.split(match[2]), monkeypatch)
            except SystemExit:
                assert "the following arguments are required" in capsys.readouterr().err, span


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
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


def test_each_page_is_named_in_the_readme():
    for page in PAGES:
        if page.startswith(("docs/", "examples/")):
            assert f"]({page})" in _text("README.md"), page


def _rendered(node: ast.expr) -> str | None:
    """A text of the source, with a blank where a value goes in."""
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


@functools.cache
def _texts() -> list[str]:
    files = [*REPO.glob("d2ext/**/*.py"), *REPO.glob("tools/*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return [text for node in nodes if isinstance(node, ast.expr) and (text := _rendered(node))]


def _messages() -> list[str]:
    rows = re.findall(r"^\| (`.*?`) \| ", _text("docs/troubleshooting.md"), re.MULTILINE)
    return [row.strip("`") for row in rows]


@pytest.mark.parametrize("message", _messages())
def test_a_message_of_the_troubleshooting_page_is_the_code_s(message):
    """Its words but those in capitals stand in one text of the source, in this order."""
    parts = re.split(r"'?\b[A-Z]+\b'?", message)
    fixed = [p for p in parts if re.search(r"\w", p)]
    assert fixed, "capitals alone"
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    assert any(pattern.search(text) for text in _texts()), message


def test_the_troubleshooting_page_is_long_enough():
    assert len(_messages()) >= 40


def test_the_worked_examples_of_scaling():
    """The rows of the table, and the report that the page shows."""
    from d2ext.config.scaling import scale_config

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


# Run as they stand, in their order, but with less to do.
_QUICK = ["train.max_iter=2", "train.reference_batch_size=2"]
_QUICK += ["dataloader.train.num_workers=0", "dataloader.val.num_workers=0"]
_SMALL = [
    "dataloader.train.mapper.augmentations[0].short_edge_length=96",
    "dataloader.val.mapper.augmentations[0].short_edge_length=96",
]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty folder that looks like a checkout, as the current one."""
    for name in ("tools", "configs", "examples"):
        (tmp_path / name).symlink_to(REPO / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(run_tool, command: Command, *more: str) -> None:
    """Runs a page's command; overrides in `more` go where its tool takes them."""
    arguments = command.arguments
    if more and command.tool in ("train_net", "browse_dataset", "print_config"):
        arguments = [*arguments, *more]
    elif more and command.tool == "predict":
        arguments = [*arguments, "--options", *more]
    done = run_tool(command.tool, *arguments)
    assert done.status == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def _coco(folder: Path, to: str | Path, run_tool) -> None:
    photos = ["--images", folder, "--classes", "balloon", "--output", to]
    done = run_tool("convert_dataset", "via", folder / "via_region_data.json", *photos)
    assert done.status == 0, done.stderr


@pytest.mark.slow
def test_the_tutorial_as_typed(run_tool, checkout):
    commands = list(_commands("examples/own_dataset/README.md"))
    assert {c.tool for c in commands} >= {
        *("convert_dataset", "check_dataset", "browse_dataset"),
        *("train_net", "report", "predict"),
    }
    for command in commands:
        _run(run_tool, command, *(_QUICK if command.tool == "train_net" else ()))
    out = checkout / "work_dirs" / "own_dataset"
    assert (out / "report.html").is_file()
    assert json.loads((out / "results.json").read_text())["last"]["results"]


@pytest.mark.slow
def test_the_readme_s_three_steps(run_tool, checkout, tiny_root):
    """With the tiny balloons, as LabelMe's files."""
    for split in ("train", "val"):
        shutil.copytree(tiny_root / "balloon" / split, split)
        _coco(Path(split), "coco.json", run_tool)
        back = ["coco", "coco.json", "--to", "labelme", "--output", "labelme"]
        assert run_tool("convert_dataset", *back).status == 0
        (Path(split) / "via_region_data.json").unlink()
        for file in Path("labelme").rglob("*.json"):
            shutil.copy(file, split)
        shutil.rmtree("labelme")
    commands = [c for c in _commands("README.md") if "X" not in c.words and c.tool]
    assert [c.tool for c in commands] == [
        *("convert_dataset", "convert_dataset", "check_dataset", "browse_dataset", "train_net")
    ]
    for command in commands:
        trains = command.tool == "train_net"
        _run(run_tool, command, *(_QUICK + _SMALL + ["train.init_checkpoint="] if trains else ()))
    assert Path("work_dirs/mask_rcnn_lite0_fpn/report.html").is_file()


@pytest.mark.slow
def test_the_page_on_data_sets(run_tool, checkout, tiny_root):
    for split, name in (("train", "a"), ("val", "b")):
        shutil.copytree(tiny_root / "balloon" / split, "imgs", dirs_exist_ok=True)
        _coco(tiny_root / "balloon" / split, f"{name}.json", run_tool)
    shutil.copy(tiny_root / "balloon" / "train" / "via_region_data.json", "via.json")
    outputs = {"yolo": "labels", "voc": "Annotations", "open_images": "boxes.csv"}
    outputs["labelme"] = "labelme"
    for kind, output in outputs.items():
        done = run_tool("convert_dataset", "coco", "a.json", "--to", kind, "--output", output)
        assert done.status == 0, done.stderr
    for command in _commands("docs/datasets.md"):
        if "configs/custom/mine.py" in command.words:
            continue  # tests/cli/test_own_data.py
        if command.tool == "convert_dataset" and command.arguments[0] in ("voc", "open_images"):
            command.words[-1] = "other.json"  # boxes alone: not to train masks on
        trains = command.tool == "train_net"
        _run(run_tool, command, *(_QUICK + _SMALL + ["train.init_checkpoint="] if trains else ()))
    assert Path("mended.json").is_file() and Path("report.html").is_file()
    assert Path("work_dirs/mask_rcnn_lite0_fpn/eval/results.json").is_file()


@pytest.fixture
def a_run(train_net, checkout, tiny):
    """work_dirs/mine, a run of X, with what the pages name beside it."""
    short = [*tiny, "train.max_iter=2", "train.eval_period=1", "train.checkpointer.period=1"]
    done = train_net("--work-dir", "work_dirs/mine", *short)
    assert done.status == 0, done.stderr
    shutil.copytree("work_dirs/mine", "work_dirs/other")
    shutil.copytree("work_dirs/mine", f"work_dirs/{Path(LITE0).stem}")
    shutil.copy("work_dirs/mine/model_final.pth", "a.pth")
    shutil.copy("work_dirs/mine/model_final.pth.sha256", "a.pth.sha256")
    root = Path(next(o for o in tiny if o.startswith("data.root=")).partition("=")[2])
    shutil.copytree(root / "balloon" / "val", "photos")
    (Path("photos") / "via_region_data.json").unlink()
    photo = next(Path("photos").glob("*.jpg"))
    shutil.copy(photo, "a.jpg")
    _film("film.mp4", photo)
    shutil.copy("work_dirs/mine/predictions/balloon_val.json", "predictions.json")
    return root, short


def _film(file: str, photo: Path) -> None:
    import cv2

    image = cv2.imread(str(photo))
    film = cv2.VideoWriter(file, cv2.VideoWriter_fourcc(*"mp4v"), 5, image.shape[1::-1])
    for _ in range(2):
        film.write(image)
    film.release()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["docs/training.md", "docs/resume.md", "docs/metrics.md", "docs/scaling.md"]
)
def test_the_commands_of_a_page(run_tool, a_run, page):
    """What needs no cluster; commands for several workers as far as --dry-run goes."""
    root, short = a_run
    _coco(root / "balloon" / "val", "instances_val.json", run_tool)
    for command in _commands(page):
        if command.words[0] in ("torchrun", "srun"):  # tests/cli/test_several_processes.py
            continue
        words = command.words = [STANDS_FOR["X"] if w == "X" else w for w in command.words]
        words[:] = [STANDS_FOR["Y"] if w == "Y" else w for w in words]
        words[:] = [w.replace("HOST:PORT", "127.0.0.1:29999") for w in words]
        fresh = not {"--resume", "--eval-only"} & set(words)
        if words[0] == "bash":
            words += ["--dry-run", "--work-dir", "work_dirs/new", *short]
            words += ["train.reference_batch_size=16"]
            env = {**os.environ, "PYTHON": sys.executable}
            done = subprocess.run(words, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            continue
        if command.tool == "train_net":
            several = "--num-gpus" in words
            at = words.index("--config-file")
            words[at:at] = ["--overwrite"] * fresh + ["--dry-run"] * several
            if "--expect" in words:  # two steps reach no AP
                words[words.index("--expect") + 1] = "balloon_val/coco/segm/AP>=0"
            own = [k for k in short if k.partition("=")[0] not in " ".join(words)]
            if "train.max_epochs=24" in words:
                own = [k for k in own if not k.startswith("train.max_iter")]
                words[words.index("train.max_epochs=24")] = "train.max_epochs=1"
            own += ["train.reference_batch_size=16"] * several
            own += ["dataloader.tta.min_sizes=[96]"] * ("--tta" in words)
            _run(run_tool, command, *own)
        elif command.tool == "predict":
            _run(run_tool, command, f"data.root={root}")
        else:
            _run(run_tool, command)


@pytest.mark.slow
def test_the_page_on_slurm(run_tool, a_run, monkeypatch):
    """What needs no cluster: plans, and the table of the runs."""
    import d2ext.slurm.plan

    monkeypatch.setattr(d2ext.slurm.plan, "has_slurm", lambda: False)
    root, _ = a_run
    for command in _commands("docs/slurm.md"):
        if command.tool == "submit" and "--dry-run" in command.words:
            more = ["--overwrite", f"data.root={root}", "train.device=cpu"]
            arguments = [STANDS_FOR.get(w, w) for w in command.arguments]
            done = run_tool("submit", *arguments, *more)
            assert done.status == 0 and "1 CPU process" in done.stdout, done.stderr
        elif command.arguments == ["status"]:
            _run(run_tool, command)
