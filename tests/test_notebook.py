"""Training in a real Jupyter kernel: its output, and what an interruption leaves."""

import asyncio
import json
import threading
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import LITE0, REPO


@pytest.fixture
def notebook(tmp_path, tiny, monkeypatch):
    """Yield a function that runs a cell in a kernel of its own, and returns the cell's outputs."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    overrides = [*tiny, "dataloader.train.num_workers=2", "dataloader.val.num_workers=1"]
    setup = f"import d2ext\ncfg = d2ext.load_config({str(REPO / LITE0)!r}, {overrides!r})"
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=120, allow_errors=True)
    client.create_kernel_manager()
    with client.setup_kernel(cwd=str(tmp_path)):

        def run(source):
            client.nb.cells.append(nbformat.v4.new_code_cell(source))
            client.execute_cell(client.nb.cells[-1], len(client.nb.cells) - 1)
            return client.nb.cells[-1].outputs

        run.interrupt = lambda: asyncio.run(client.km.interrupt_kernel())
        run(setup)
        yield run


def _text(outputs):
    return "".join(o["text"] for o in outputs if o["output_type"] == "stream")


def _errors(outputs):
    return [o["ename"] for o in outputs if o["output_type"] == "error"]


def test_the_cell_shows_the_training(notebook, tmp_path):
    """With loader workers; a second run prints to its own cell, each line once."""
    for folder in ("a", "b"):
        outputs = notebook(f"run = d2ext.train(cfg, {folder!r})\nrun.results")
        assert not _errors(outputs), outputs
        text = _text(outputs)
        assert text.count(" iter: 3 ") == 1 and text.count(f"report: {folder}/report.html") == 1
        assert "balloon_val/coco/segm/AP" in text
        (shown,) = [o for o in outputs if o["output_type"] == "execute_result"]
        assert "'balloon_val/coco/segm/AP'" in shown["data"]["text/plain"]
        assert {o["output_type"] for o in outputs} == {"stream", "execute_result"}
    info = json.loads((tmp_path / "b" / "run.json").read_text())
    assert info["command"] == "d2ext.train(cfg, 'b')"
    outputs = notebook("prediction = d2ext.Predictor(run.evaluated, run.cfg)('absent.jpg')")
    assert _errors(outputs) == ["UserError"]
    (line,) = outputs[-1]["traceback"]  # no trace of a mistake that the user can fix
    assert line.startswith("UserError: absent.jpg cannot be read")


def test_an_interrupted_cell_continues(notebook, tmp_path):
    def interrupt():
        metrics = tmp_path / "a" / "metrics.json"
        while not metrics.is_file() or not metrics.read_text():
            time.sleep(0.1)
        notebook.interrupt()

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    outputs = notebook("cfg.train.max_iter = 1000\nd2ext.train(cfg, 'a')")
    thread.join()
    assert _errors(outputs) == ["KeyboardInterrupt"]
    assert "d2ext.train(cfg, 'a', resume=True)" in _text(outputs)
    saved = Path(tmp_path / "a", (tmp_path / "a" / "last_checkpoint").read_text())
    done = int(saved.stem.removeprefix("model_")) + 1
    assert 0 < done < 1000
    outputs = notebook(
        f"cfg.train.max_iter = {done + 1}\n"
        "run = d2ext.train(cfg, 'a', resume=True, validate=False)\n"
        "print('from', run.trainer.start_iter, 'to', run.trainer.iter)"
    )
    assert not _errors(outputs), outputs
    assert f"from {done} to {done + 1}" in _text(outputs)
