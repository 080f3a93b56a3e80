"""The check for people with a GPU: its rehearsals without one, and its guards.

Nothing here says anything about a GPU.
"""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPO, checkout_env

pytestmark = pytest.mark.slow
CHECK = [sys.executable, "-W", "ignore", str(REPO / "benchmarks/gpu_check.py")]
NEEDS_GPU = {
    *("TF32", "float16", "out of memory is one line", "float16 trains"),
    "two processes on one GPU are refused",
    *(f"{n} images, {d}, against Detectron2" for n in (2, 8) for d in ("float16", "bfloat16")),
}
BROKEN = """
import os, sys, time
import gpu_check
from gpu_check import Section
from gpu_outcome import NotRun, passes

def fails(target):
    raise ValueError("no kernel")

def works(target):
    return passes(True, "fine")

def wrong(target):
    return passes(False, "0.5 of 0.1")

def elsewhere(target):
    raise NotRun("needs a GPU")

gpu_check.SECTIONS = {
    "raises": Section(60, {"first": fails, "second": works}),
    "dies": Section(60, {"first": works, "second": lambda target: os.abort(), "third": works}),
    "hangs": Section(0.5, {"first": lambda target: time.sleep(600), "second": works}),
    "threads": Section(60, {"first": elsewhere, "second": wrong, "third": works}, at_once=2),
}
sys.exit(gpu_check.main(["--cpu", "--tiny", "--folder", sys.argv[1]]))
"""


def _results(folder):
    content = json.loads((folder / "results.json").read_text())
    return content["title"], content["sections"]


@pytest.mark.parametrize(
    ("flags", "sections", "not_run"),
    [
        pytest.param(["--cpu", "--tiny"], "install runs", NEEDS_GPU, marks=pytest.mark.nightly),
        pytest.param(
            ["--cpu", "--tiny"], "train export feed inference", set(), marks=pytest.mark.nightly
        ),
        (
            ["--cpu", "--tiny"],
            "equal overflow layout ddp step phases compile",
            NEEDS_GPU | {"synchronizations per step"},
        ),
        (
            ["--fake"],
            "equal step phases inference",
            NEEDS_GPU | {"bfloat16", "evaluation against COCOEvaluator"},
        ),
    ],
)
def test_a_rehearsal_runs_every_check_that_needs_no_gpu(tmp_path, flags, sections, not_run):
    command = [*CHECK, *flags, "--folder", tmp_path, "--only", *sections.split()]
    run = subprocess.run(command, env=checkout_env(), capture_output=True, text=True)
    title, found = _results(tmp_path)
    assert list(found) == sections.split()
    rows = {check: o["status"] for outcomes in found.values() for check, o in outcomes.items()}
    assert run.returncode == 0, run.stdout
    assert {check for check, status in rows.items() if status == "NOT RUN"} == not_run & set(rows)
    assert set(rows.values()) <= {"PASS", "RAN", "NOT RUN"}
    assert title.startswith("REHEARSAL, which says nothing about a GPU; ")
    assert run.stdout.count("\n| ") == len(rows) + 2  # the table


def test_a_broken_section_is_reported_and_the_others_run(tmp_path):
    environment = {**checkout_env(), "PYTHONPATH": f"{REPO}:{REPO / 'benchmarks'}"}
    command = [sys.executable, "-W", "ignore", "-c", BROKEN, tmp_path]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert _results(tmp_path)[1] == {
        "raises": {
            "first": {"status": "FAIL", "found": "ValueError: no kernel"},
            "second": {"status": "PASS", "found": "fine"},
        },
        "dies": {
            "first": {"status": "PASS", "found": "fine"},
            "second": {
                "status": "FAIL",
                "found": f"the process ended with status -6, see {tmp_path}/dies.log",
            },
            "third": {"status": "NOT RUN", "found": "the section ended early"},
        },
        "hangs": {
            "first": {
                "status": "FAIL",
                "found": f"not finished within 2 s, see {tmp_path}/hangs.log",
            },
            "second": {"status": "NOT RUN", "found": "the section ended early"},
        },
        "threads": {
            "first": {"status": "NOT RUN", "found": "needs a GPU"},
            "second": {"status": "FAIL", "found": "0.5 of 0.1"},
            "third": {"status": "PASS", "found": "fine"},
        },
    }
    assert "ValueError: no kernel" in (tmp_path / "raises.log").read_text()
    assert "| hangs | first | FAIL | not finished within 2 s" in run.stdout


def test_the_table_of_all_sections_fits_into_40_lines(monkeypatch):
    monkeypatch.syspath_prepend(REPO / "benchmarks")
    from gpu_check import SECTIONS

    head = 2
    assert head + sum(len(section.checks) for section in SECTIONS.values()) <= 40


def test_without_a_gpu_the_error_is_one_line(tmp_path):
    run = subprocess.run(
        [*CHECK, "--folder", tmp_path / "check"],
        env=checkout_env(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr == "error: torch finds no GPU; --cpu --tiny and --fake rehearse the check\n"
