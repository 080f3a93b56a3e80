"""Checks of gpu_check.py that run d2ext's commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import ROOT
from gpu_outcome import LITE0, R50, NotRun, Outcome, Target, calibrated, passes

_WAIT = 120  # seconds for a run to take its first steps
_AP, _LEAST_AP = "balloon_val/coco/segm/AP", 45.0  # three seeds on CPUs: 47.7 to 49.4 (RESULTS.md)
_LIMITED = """import sys, torch
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction(64e6 / total)
from d2ext.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def doctor(target: Target) -> Outcome:
    """Run d2ext doctor, whose last step trains on every device."""
    target.need_real_device()
    lines = _run(target, "doctor").splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines if line.startswith(("GPUs", "torch ")))
    devices = "cpu, cuda" if target.on_gpu else "cpu"
    good = any(line.endswith(f"step work on {devices}") for line in lines)
    return passes(good, f"torch {facts['torch']}; GPUs: {facts['GPUs']}")


def repeats(target: Target) -> Outcome:
    """Compare the weights of two deterministic runs."""
    target.need_real_device()
    found = [_weights(_train(target, f"repeat_{i}", "train.deterministic=True")) for i in "12"]
    return _equal(*found)


def resumes(target: Target) -> Outcome:
    """Compare the weights of a deterministic run with those of a resumed one."""
    target.need_real_device()
    options = ["train.deterministic=True", "train.checkpointer.period=2"]
    whole = _train(target, "whole", *options)
    flags = ["--resume-from", str(whole / "model_0000001.pth")]
    return _equal(_weights(whole), _weights(_train(target, "rest", *options, flags=flags)))


def stops(target: Target) -> Outcome:
    """Stop a run by SIGTERM, and continue it for two iterations."""
    target.need_real_device()
    folder = target.folder / "stopped"
    run = _start_long_run(target, folder)
    run.send_signal(signal.SIGTERM)
    status = run.wait()
    done = _content(folder / (folder / "last_checkpoint").read_text())["iterations_done"]
    _run(target, *_words(target, folder, ["--resume"], f"train.max_iter={done + 2}"))
    finished = _content(folder / "model_final.pth")["iterations_done"]
    found = f"status {status} after {done} iterations, resumed to {finished}"
    return passes(status == 75 and finished == done + 2, found)


def interrupted(target: Target) -> Outcome:
    """Interrupt a run until it ends."""
    target.need_real_device()
    run = _start_long_run(target, target.folder / "interrupted")
    start = time.monotonic()
    while run.poll() is None:  # during a long operation, Python counts several signals as one
        run.send_signal(signal.SIGINT)
        time.sleep(0.1)
    found = f"status {run.returncode} after {time.monotonic() - start:.1f} s"
    return passes(run.returncode == 130, found)


def out_of_memory(target: Target) -> Outcome:
    """Train with 64 MB of GPU memory."""
    target.need_gpu()
    words = _words(target, target.folder / "memory")
    run = _finished(target, [sys.executable, "-c", _LIMITED, *words])
    errors = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    good = run.returncode == 2 and len(errors) == 1 and "out of GPU memory" in errors[0]
    return passes(good and "Traceback" not in run.stderr, f"status {run.returncode}, {errors}")


def float16(target: Target) -> Outcome:
    """Train in float16."""
    target.need_gpu()
    return _mixed_precision(target, "float16")


def bfloat16(target: Target) -> Outcome:
    """Train in bfloat16."""
    target.need_real_device()
    return _mixed_precision(target, "bfloat16")


def torchrun(target: Target) -> Outcome:
    """Train in one process that torchrun starts."""
    target.need_real_device()
    folder = target.folder / "torchrun"
    run = _finished(target, [*_torchrun(1), *_words(target, folder)])
    group = "NCCL" if target.on_gpu else "gloo"
    good = run.returncode == 0 and _are_finite(_weights(folder))
    return passes(good, f"status {run.returncode}, {group} {_last_error(run)}".strip())


def shared_gpu(target: Target) -> Outcome:
    """Start two processes that see one GPU only."""
    target.need_gpu()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = [*_torchrun(2), *_words(target, target.folder / "shared")]
    run = _finished(target, command, {"CUDA_VISIBLE_DEVICES": first})
    good = run.returncode != 0 and "use the same GPU" in run.stderr
    return passes(good, f"status {run.returncode}, {_last_error(run)}")


def trained_run(target: Target) -> Path:
    """Return the run directory of the lite0 recipe, trained here unless it exists."""
    folder = target.folder / "trained"
    if not (folder / "model_final.pth").exists():
        options = target.small() if target.tiny else []
        words = ["train", LITE0, "--work-dir", str(folder), "--overwrite"]
        _run(target, *words, "--options", f"train.device={target.device}", *options)
    return folder


def trains(target: Target) -> Outcome:
    """Train the lite0 recipe to its end, with evaluations and report."""
    target.need_real_device()
    shutil.rmtree(target.folder / "trained", ignore_errors=True)
    start = time.monotonic()
    folder = trained_run(target)
    seconds = time.monotonic() - start
    last = json.loads((folder / "results.json").read_text())["last"]
    ap = last["results"][_AP] or 0.0
    found = f"segm AP {ap:.1f} after {last['iteration']} iterations, {seconds:.0f} s"
    return passes(ap >= _LEAST_AP, found) if target.measures else Outcome("RAN", f"{found}, tiny")


def exports(target: Target) -> Outcome:
    """Export the trained run."""
    target.need_real_device()
    shutil.rmtree(target.folder / "export", ignore_errors=True)
    proof = json.loads(_export(target, "export").with_suffix(".json").read_text())
    found = f"{proof['objects']} objects, {100 * proof['within']:.1f} % within the tolerances"
    return passes(not proof.get("failures"), found)


def exports_without_gpu(target: Target) -> Outcome:
    """Export the trained run again where no GPU is visible, and compare files and proofs."""
    target.need_real_device()
    shutil.rmtree(target.folder / "export_cpu", ignore_errors=True)
    files = [_export(target, "export"), _export(target, "export_cpu", {"CUDA_VISIBLE_DEVICES": ""})]
    same = _without_provenance(files[0]) == _without_provenance(files[1])
    proofs = [json.loads(file.with_suffix(".json").read_text()) for file in files]
    words = {True: "equal", False: "differ"}
    found = f"files {words[same]} but for the time, proofs {words[proofs[0] == proofs[1]]}"
    return passes(same and proofs[0] == proofs[1], found)


def feed(target: Target) -> Outcome:
    """Train with 1, 2 and 4 loader workers, and compare `data_time` with `time`."""
    target.need_real_device()
    shares = {}
    for workers in (1, 2, 4) if target.measures else (0, 1):
        config, options = LITE0, target.small()
        if not target.tiny:
            config = R50
            options = [f"train.init_checkpoint={calibrated(target.folder)}", "train.max_iter=30"]
            options += ["train.reference_batch_size=2", "train.log_period=10", "optimizer.lr=1e-9"]
        folder = target.folder / f"feed_{workers}"
        words = ["train", config, "--work-dir", str(folder), "--no-validate", "--overwrite"]
        options += [f"dataloader.train.num_workers={workers}", f"train.device={target.device}"]
        _run(target, *words, "--options", *options)
        last = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
        shares[workers] = last["data_time"] / last["time"]  # medians
    found = ", ".join(f"{workers}: {100 * share:.1f} %" for workers, share in shares.items())
    return target.speed(shares.get(2, 0.0) < 0.05, found)


def _train(target: Target, name: str, *options: str, flags: Sequence[str] = ()) -> Path:
    folder = target.folder / name
    _run(target, *_words(target, folder, flags, *options))
    return folder


def _words(target: Target, folder: Path, flags: Sequence[str] = (), *options: str) -> list[str]:
    """Return the words of a command that trains lite0 for four small steps."""
    if "--resume" not in flags:
        flags = [*flags, "--overwrite"]
    words = ["train", LITE0, "--no-validate", "--work-dir", str(folder), *flags, "--options"]
    return [*words, *target.small(), f"train.device={target.device}", *options]


def _torchrun(processes: int) -> list[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*words, f"--nproc-per-node={processes}", "-m", "d2ext"]


def _run(target: Target, *words: str) -> str:
    """Run a d2ext command, which must succeed; return its standard output."""
    run = _finished(target, [sys.executable, "-m", "d2ext", *words])
    if run.returncode:
        raise RuntimeError(f"d2ext {words[0]}: status {run.returncode}, {_last_error(run)}")
    return run.stdout


def _finished(
    target: Target, command: Sequence[str], more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(more or {})}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(f"$ {' '.join(command)}\n{run.stdout}{run.stderr}", flush=True)
    return run


def _last_error(run: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in run.stderr.splitlines() if "rror" in line]
    return lines[-1].strip()[:120] if lines else ""


def _start_long_run(target: Target, folder: Path) -> subprocess.Popen:
    """Start a run without an end, and wait for its second iteration."""
    words = _words(target, folder, (), "train.max_iter=1000000")
    command = [sys.executable, "-m", "d2ext", *words]
    metrics = folder / "metrics.json"
    metrics.unlink(missing_ok=True)
    with open(folder.with_suffix(".log"), "w") as log:
        run = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    end = time.monotonic() + _WAIT
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        if run.poll() is not None or time.monotonic() > end:
            run.kill()
            raise RuntimeError(f"the run takes no steps, see {folder.with_suffix('.log')}")
        time.sleep(0.05)
    return run


def _content(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True, map_location="cpu")


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return _content(folder / "model_final.pth")["model"]


def _are_finite(weights: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in weights.values())


def _equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> Outcome:
    differ = [key for key in a if not torch.equal(a[key], b[key])]
    return passes(not differ, f"{len(differ)} of {len(a)} tensors differ")


def _mixed_precision(target: Target, dtype: str) -> Outcome:
    options = ["train.amp.enabled=True", f"train.amp.dtype={dtype}"]
    weights = _weights(_train(target, dtype, *options))
    good = _are_finite(weights)
    return passes(good, "all weights are finite" if good else "some weights are not finite")


def _export(target: Target, name: str, more: Mapping[str, str] | None = None) -> Path:
    """Return an exported file of the trained run, written here unless it exists."""
    run, file = trained_run(target), target.folder / name / "model.onnx"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "d2ext", "export", str(run), "--output", str(file)]
        finished = _finished(target, command, more)
        if "d2ext[export]" in finished.stderr:
            raise NotRun("needs the extra `export`")
        if finished.returncode:
            raise RuntimeError(f"status {finished.returncode}, {_last_error(finished)}")
    return file


def _without_provenance(file: Path) -> bytes:
    """Return an exported file without the record of when and from what it was made."""
    import onnx

    content = onnx.load(file)
    for entry in content.metadata_props:
        if entry.key == "provenance":
            entry.value = ""
    return content.SerializeToString(deterministic=True)
