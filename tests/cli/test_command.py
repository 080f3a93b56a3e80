"""The `d2ext` command: its commands and their arguments, as the user types them."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import d2ext
from d2ext.cli import COMMANDS, browse, evaluate, predict, print_config, submit, train
from d2ext.config.recipes import RECIPES
from d2ext.errors import INSTALL_DETECTRON2
from tests.conftest import LITE0, REPO, SCRIPT, checkout_env

CUSTOM = "custom/mask_rcnn_lite0_fpn.py"


@pytest.fixture
def script(tmp_path) -> Path:
    """The `d2ext` command as pip installs it, in a folder of its own."""
    (tmp_path / "bin").mkdir()
    path = tmp_path / "bin" / "d2ext"
    path.write_text(SCRIPT)
    return path


def _run(*command, **kwargs):
    env = checkout_env() | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, env=env, capture_output=True, text=True, **kwargs)


def test_help_version_and_an_unknown_command(d2ext_command):
    done = d2ext_command("--help")
    assert done.status == 0 and done.stdout.startswith("usage: d2ext COMMAND ...\n")
    assert d2ext_command().stdout == done.stdout
    width = max(map(len, COMMANDS))
    for name, text in COMMANDS.items():
        assert f"  {name:{width}}  {text}\n" in done.stdout
    assert d2ext_command("--version").stdout == f"d2ext {d2ext.__version__}\n"
    done = d2ext_command("trian", "mine.py")
    assert (done.status, done.stderr) == (
        2,
        "error: d2ext has no command 'trian'; did you mean 'train'?\n",
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command(d2ext_command, name):
    done = d2ext_command(name, "--help")
    assert done.status == 0 and done.stdout.startswith(f"usage: d2ext {name} ")
    assert f"\nd2ext {name}" in done.stdout  # an example


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (["tools/check_dataset.py"], "python tools/{}"),
        (["-m", "d2ext", "check"], "python -m d2ext {}"),
        (["bin/d2ext", "check"], "d2ext {}"),
    ],
    ids=["tool", "module", "command"],
)
def test_messages_show_the_command_as_it_was_run(script, start, words):
    """In a checkout by its tool; a command without a tool is that of `d2ext` there."""
    Path("tools").symlink_to(REPO / "tools")
    tool = words.startswith("python tools")
    prepare = words.format("prepare_data.py" if tool else "prepare")
    done = _run(*start, "balloon/train/via_region_data.json")
    assert done.returncode == 2 and f"or run {prepare} balloon --root DIR and" in done.stderr
    usage = _run(*start, "--help").stdout
    check = words.format("check_dataset.py" if tool else "check")
    assert usage.startswith(f"usage: {check} [-h]") and f"\n{check} train.json\n" in usage
    start = ["tools/print_config.py"] if tool else [*start[:-1], "print-config"]
    recipes = "d2ext recipes" if tool else words.format("recipes")
    assert f"`{recipes}` lists the recipes\n" in _run(*start, "zzz.py").stderr


FORMS = [
    ["mine.py", "--no-validate", "a=b", "train.max_iter=3"],
    ["--no-validate", "mine.py", "a=b", "train.max_iter=3"],
    ["--work-dir", "out", "mine.py", "--no-validate", "a=b", "train.max_iter=3"],
    ["--config-file", "mine.py", "--no-validate", "a=b", "train.max_iter=3"],
    ["--no-validate", "--config-file=mine.py", "a=b", "train.max_iter=3"],
]


@pytest.mark.parametrize("words", FORMS, ids=" ".join)
def test_the_config_may_precede_or_follow_the_flags(words):
    Path("mine.py").touch()
    args = train.parse(words)
    assert (args.config_file, args.validate, args.eval_only) == ("mine.py", False, False)
    assert args.overrides == ["a=b", "train.max_iter=3"] and args.arguments == words
    given = submit.parse(["--partition", "dev", *words, "--wait"])
    assert (given.config_file, given.partition, given.wait) == ("mine.py", "dev", True)
    assert given.rest == ["--no-validate", "a=b", "train.max_iter=3"]


@pytest.mark.parametrize(
    "words",
    [
        ["--options", "data.val.json=b.json", "--config-file", "mine.py"],
        ["--config-file", "mine.py", "--weights", "a.json"],
        ["--config-file=mine.py", "--expect", "a.json"],
    ],
)
def test_the_evaluation_of_a_config_with_json_files(words):
    Path("mine.py").touch()
    assert evaluate.parse(words).config_file == "mine.py"


def test_a_run_with_an_equals_sign_in_its_path():
    Path("lr=0.1").mkdir()
    Path("lr=0.1/config.yaml").touch()
    args = train.parse(["lr=0.1", "--no-validate", "optimizer.lr=0.1"])
    assert (args.config_file, args.overrides) == ("lr=0.1/config.yaml", ["optimizer.lr=0.1"])
    assert submit.parse(["lr=0.1"]).config_file == "lr=0.1/config.yaml"


def test_the_config_is_found_among_the_flags_of_other_commands():
    Path("mine.py").touch()
    words = ["--resume", "--", "mine.py", "a=b"]
    args, given = train.parse(words), submit.parse(words)
    assert (args.config_file, args.resume, args.overrides) == ("mine.py", True, ["a=b"])
    assert (given.config_file, given.resume, given.rest) == ("mine.py", True, ["a=b"])
    args = train.parse(["--expect", "a>=1", "mine.py", "--expect", "b>=2", "--options", "a=b"])
    assert (args.expect, args.options, args.overrides) == (["a>=1", "b>=2"], ["a=b"], [])
    for words in (["mine.py", "--docs", "a=b"], ["--docs", "a=b", "--config-file", "mine.py"]):
        args = print_config.parse(words)
        assert (args.config_file, args.docs, args.overrides) == ("mine.py", True, ["a=b"])
    args = browse.parse(["mine.py", "--html", "--count", "3", "a=b"])
    assert (args.config_file, args.html, args.count) == ("mine.py", True, 3)
    assert args.overrides == ["a=b"]
    for words in (
        ["mine.py", "photos", "a.jpg", "--weights", "last"],
        ["--weights", "last", "mine.py", "photos", "a.jpg"],
        ["mine.py", "--weights", "last", "photos", "a.jpg"],
        ["photos", "--config-file", "mine.py", "--weights", "last", "a.jpg"],
    ):
        args = predict.parse(words)
        assert (args.config_file, args.weights) == ("mine.py", "last")
        assert args.inputs == ["photos", "a.jpg"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--resume"], "d2ext train: error: the following arguments are required: CONFIG"),
        (["train", "a=b"], "d2ext train: error: the following arguments are required: CONFIG"),
        (["train", CUSTOM, "--config-file", "x.py"], "two configs"),
        (["train", CUSTOM, "optimizer.lr=1", "--resume"], "must come before the first key=value"),
        (["train", "mine.py"], "error: the config file mine.py does not exist"),
        (["train", ""], "d2ext train: error: the following arguments are required: CONFIG"),
        (["train", CUSTOM, "mine.py"], f"error: two configs: {CUSTOM} and mine.py"),
        (["submit", "--config-file", CUSTOM, "b.py", "a=b"], f"two configs: {CUSTOM} and b.py"),
        (["submit", "--resume", "a=b"], "arguments are required: CONFIG"),
        (["predict", CUSTOM], "arguments are required: INPUT"),
        (["browse", "--html"], "arguments are required: CONFIG"),
        (["predict"], "arguments are required: RUN"),
        (["print-config", CUSTOM, "--diff", "x.py"], "error: the config file x.py does not exist"),
        (["recipes", "zzz"], "error: no recipe has 'zzz' in its name or description"),
        (["copy", "zzz", "mine.py"], "error: there is no recipe 'zzz'; `d2ext recipes` lists them"),
        (["evaluate", "a.json"], "the following arguments are required: --dataset"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_invalid_command_lines_are_errors(d2ext_command, words, message):
    done = d2ext_command(*words)
    assert done.status == 2 and message in done.stderr.splitlines()[-1]
    assert done.stdout == "" and list(Path().iterdir()) == []


def test_recipes_are_listed_and_copied(d2ext_command):
    lines = d2ext_command("recipes").stdout.splitlines()
    assert len(lines) == len(list(RECIPES.glob("*/*.py"))) - len(list(RECIPES.glob("common/*.py")))
    assert any(line.startswith(f"{CUSTOM}  ") and "masks, on a laptop" in line for line in lines)
    few = d2ext_command("recipes", "CUSTOM/mask").stdout.splitlines()
    found = {f"custom/{file.name}" for file in (RECIPES / "custom").glob("mask_*.py")}
    assert CUSTOM in found and {line.split()[0] for line in few} == found
    done = d2ext_command("copy", CUSTOM, "my config.py")
    assert done.status == 0
    assert done.stdout == (
        f"wrote my config.py, a copy of {CUSTOM}; train it with: d2ext train 'my config.py'\n"
    )
    shown = d2ext_command("print-config", "my config.py", "--diff", CUSTOM).stdout
    assert shown == f"nothing differs from {CUSTOM}\n"
    keys = [d2ext_command("print-config", file, "--docs") for file in ("my config.py", CUSTOM)]
    assert keys[0].stdout == keys[1].stdout  # the defaults are found as well
    before = Path("my config.py").read_text()
    done = d2ext_command("copy", CUSTOM, "my config.py")
    assert (done.status, done.stderr) == (
        2,
        "error: my config.py already exists; give another file name\n",
    )
    assert Path("my config.py").read_text() == before


def test_a_module_in_the_current_folder_is_found(script, d2ext_command):
    """As with `python -m`; installed modules come first."""
    Path("my_rates.py").write_text("RATE = 0.125\n")
    Path("torch.py").write_text("raise SystemExit('not this one')\n")
    Path("mine.py").write_text(
        f"import d2ext\nfrom my_rates import RATE\n_cfg = d2ext.get_config({CUSTOM!r})\n"
        + "".join(f"{name} = _cfg.{name}\n" for name in d2ext.get_config(CUSTOM))
        + "optimizer.lr = RATE\n"
    )
    done = _run(script, "print-config", "mine.py", "--diff", CUSTOM)
    assert done.stdout == "optimizer.lr: 0.125, was 0.0005\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "predict", "print-config", "submit"])
def test_without_detectron2(script, name):
    """The wheel cannot require it, so the error has the command that installs it."""
    Path("detectron2").mkdir()
    error = "ModuleNotFoundError(\"No module named 'detectron2'\", name='detectron2')"
    Path("detectron2/__init__.py").write_text(f"raise {error}\n")
    env = checkout_env() | {"PYTHONPATH": f"{Path.cwd()}:{REPO}"}
    more = {"predict": ["photo.jpg"], "submit": ["--cluster", "local"]}.get(name, [])
    command = [sys.executable, script, name, CUSTOM, *more]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: Detectron2 is not installed; install it with: {INSTALL_DETECTRON2}\n",
    )


@pytest.fixture
def moved(trained, tmp_path):
    """A run that lies elsewhere than where it was trained."""
    return shutil.copytree(trained, tmp_path / "my runs" / "moved")


def test_a_moved_run_resumes_in_its_new_place(d2ext_command, moved, trained, tiny):
    """Its folder is a config, and its usual weights are the best ones."""
    before = {file.name for file in trained.iterdir()}
    done = d2ext_command("train", moved, "--resume", "--no-validate", *tiny, "train.max_iter=5")
    assert done.status == 0, done.stderr
    assert "continues at iteration 4" in done.stdout
    steps = [json.loads(x)["iteration"] for x in (moved / "metrics.json").read_text().splitlines()]
    assert steps[-1] == 4
    command = json.loads((moved / "run.json").read_text())["resumed_by"]
    assert command.startswith(f"d2ext train '{moved}' --resume --no-validate data.root=")
    assert f"predict: d2ext predict '{moved}' IMAGES" in done.stdout
    # Without --resume it is refused, and nothing is trained elsewhere.
    done = d2ext_command("train", moved, *tiny)
    assert done.status == 2 and f"{moved}" in done.stderr

    done = d2ext_command("evaluate", moved, *tiny)
    assert done.status == 0, done.stderr
    assert f"weights     {moved / 'model_final.pth'}" in done.stdout
    assert (moved / "eval" / "results.json").is_file()
    for suffix in ("", ".sha256"):
        shutil.copy(moved / f"model_final.pth{suffix}", moved / f"model_best.pth{suffix}")
    done = d2ext_command("evaluate", moved, "--dry-run", *tiny)
    assert f"weights     {moved / 'model_best.pth'}" in done.stdout
    done = d2ext_command("evaluate", moved, "--dry-run", "--weights", "last", *tiny)
    assert f"weights     {moved / 'model_final.pth'}" in done.stdout
    assert {file.name for file in trained.iterdir()} == before
    assert {file.name for file in Path().iterdir()} == {"my runs"}


def test_a_config_beside_a_run_is_not_that_run(d2ext_command, moved, tiny, tiny_root):
    """Such a config has its own run directory, and the best or last weights there."""
    config, photos = moved / "mine.py", tiny_root / "balloon/val"
    d2ext_command("copy", "balloon/mask_rcnn_lite0_fpn_balloon.py", config)
    done = d2ext_command("train", config, "--dry-run", *tiny)
    assert done.status == 0 and "output      work_dirs/mine\n" in done.stdout, done.stderr
    done = d2ext_command("predict", config, photos, "--options", *tiny)
    assert done.status == 2 and "work_dirs/mine has no checkpoint" in done.stderr
    done = d2ext_command("evaluate", config, "--dry-run", *tiny)
    assert ".pth (train.init_checkpoint)\n" in done.stdout
    shutil.copytree(moved, "work_dirs/mine")
    done = d2ext_command("evaluate", config, "--dry-run", *tiny)
    assert "weights     work_dirs/mine/model_final.pth\n" in done.stdout, done.stderr
    done = d2ext_command("predict", config, photos, "--no-overlays", "--options", *tiny)
    assert done.status == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_is_overwritten_by_its_own_config(d2ext_command, moved, tiny, processes):
    """The config is read before the run is moved aside."""
    flags = ["--overwrite", "--no-validate", "--num-gpus", processes]
    overrides = [*tiny, "train.reference_world_size=2", "train.max_iter=1"]
    done = d2ext_command("train", moved, *flags, *overrides)
    assert done.status == 0, done.stderr
    assert (moved / "config.yaml").is_file() and len(list(moved.parent.iterdir())) == 2


def test_predict_takes_the_run(d2ext_command, moved, tiny_root):
    """Its last weights, since it has no best ones."""
    done = d2ext_command("predict", moved, tiny_root / "balloon/val", "--no-overlays")
    assert done.status == 0, done.stderr
    assert Path("work_dirs/predict/predictions.json").is_file()
    done = d2ext_command("predict", moved, tiny_root / "balloon/val", "--weights", "best")
    assert done.status == 2 and "model_best.pth does not exist" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        pytest.param(["bin/d2ext", "train"], id="command"),
        pytest.param(["-m", "d2ext", "train"], id="module", marks=pytest.mark.nightly),
        pytest.param(
            "-m torch.distributed.run --standalone --nproc-per-node=2 -m d2ext train".split(),
            id="torchrun",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_two_processes(script, start, tiny, tmp_path):
    """Quiet but for rank 0; the command to resume and the one to reproduce work."""
    processes = [] if "--standalone" in start else ["--num-gpus", "2"]
    small = [*tiny, "train.reference_world_size=2", "train.max_iter=2"]
    work = tmp_path / "run"
    flags = ["--no-validate", "--work-dir", work]
    done = _run(*start, REPO / LITE0, *processes, *flags, *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("report: ") == 1
    info = json.loads((work / "run.json").read_text())
    words = {"bin/d2ext": "d2ext train", "-m": "python -m d2ext train"}[start[0]]
    if not processes:
        words = "torchrun --standalone --nproc-per-node=2 -m d2ext train"
    assert info["command"].startswith(f"{words} {shlex.quote(str(REPO / LITE0))} ")
    assert info["reproduce"].startswith(f"{words} ")
    more = ["--resume", *flags, *small, "train.max_iter=3"]
    done = _run(*start, REPO / LITE0, *processes, *more)
    assert done.returncode == 0 and "continues at iteration 2" in done.stdout, done.stderr


def test_a_user_s_program_is_not_a_command_of_ours(tmp_path):
    """Its messages name the `d2ext` command, also where it is called like a tool."""
    (tmp_path / "tools").mkdir()
    program = tmp_path / "tools" / "train_net.py"
    program.write_text("from d2ext.invocation import command\nprint(command('predict'))\n")
    assert _run(program).stdout == "d2ext predict\n"
    tool = shlex.quote(f"{REPO}/tools/predict.py")
    assert _run("-c", _AS_TOOL).stdout == f"python {tool}\n"
    link = tmp_path / "train"
    link.symlink_to(REPO / "tools/train_net.py")
    recipes = _run(link, "--help").stdout
    tool = shlex.quote(f"{REPO}/tools/train_net.py")
    assert " ".join(recipes.split()).startswith(f"usage: python {tool} CONFIG ")


_AS_TOOL = f"""
import sys
sys.argv[0] = {str(REPO / "tools/train_net.py")!r}
from d2ext.invocation import command
print(command("predict"))
"""
