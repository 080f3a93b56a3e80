"""Profile training steps and inferences of d2ext and of Detectron2, by kind of operation.

    python benchmarks/profile_step.py [--threads 1 2] [--options data.root=...]

A step is forward pass, backward pass and optimizer on the first batch of a recipe, as in
training.py; an inference is the model on a photo, and the encoding of its masks, as in
inference.py. Loading is not included. Each side has its own process. The times are those of the
operations themselves in torch's profiler, the smallest of some rounds. Only CPU times are of use
on a busy machine; the system's part is that of clearing new pages of memory. Convolutions and
linear layers are the time that a step would take if everything else were free. The table goes
to tables.json.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import ORIGINALS, ROOT, keep
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.events import EventStorage
from inference import FIGURES as INFERENCES
from inference import R50, train
from operations import KINDS, kind_of
from training import FIGURES as STEPS
from weights import save_calibrated

from d2ext.checkpoint.weights.initial import load_weights, local_weights
from d2ext.config.load import load_config
from d2ext.data.datasets.register import register_datasets
from d2ext.engine.builders import build_model, build_optimizer
from d2ext.evaluation.predictions import detections_of, outputs_of
from d2ext.limits import usable_cores
from d2ext.preflight.plan import plan_run
from d2ext.seeding import seed_torch
from d2ext.text import plural

NAMES = ("step_lite0", "step_r50", "inference_r50", "inference_lite0")
ROUNDS = 4


def profile(name: str, is_ours: bool, threads: int, options: Sequence[str], weights: str) -> dict:
    """Return the milliseconds of each kind of operation, and of the whole, on one side."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    run = prepared(name, is_ours, options, weights)
    run(), run()
    whole, cpu, system, kinds = [], [], [], []
    for _ in range(ROUNDS):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        run()
        whole.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_SELF)
        system.append(after.ru_stime - before.ru_stime)
        cpu.append(after.ru_utime - before.ru_utime + system[-1])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            run()
        spent = dict.fromkeys(KINDS, 0.0)
        for event in profiler.key_averages():
            spent[kind_of(event.key)] += event.self_cpu_time_total / 1e6
        kinds.append(spent)
    rows = {kind: 1000 * min(spent[kind] for spent in kinds) for kind in KINDS}
    total = 1000 * min(whole)
    return {
        **rows,
        "Python": max(total - sum(rows.values()), 0),
        "**all**": total,
        "CPU time of all threads": 1000 * min(cpu),
        "part of it in the system": 1000 * min(system),
    }


def prepared(
    name: str, is_ours: bool, options: Sequence[str], weights: str
) -> Callable[[], object]:
    """Return a function that runs a step or an inference on the CPU, always on the same input.

    Args:
        name: One of `NAMES`.
        is_ours: Whether the layers, optimizer and masks are d2ext's, or Detectron2's.
        options: Overrides of the recipe.
        weights: File with weights; "" for the initial ones of the recipe.
    """
    config = STEPS[name].config if name in STEPS else INFERENCES[name]
    cfg = load_config(str(ROOT / config), [*options, "train.device=cpu"])
    register_datasets(cfg.datasets)
    torch.manual_seed(0)
    evaluates = name in INFERENCES
    plan = plan_run(cfg, "profile", eval_only=evaluates, weights=weights if evaluates else None)
    model = build_model(cfg, plan) if is_ours else instantiate(cfg.model)
    load_weights(model, local_weights(weights or cfg.train.init_checkpoint))
    return (_step if name in STEPS else _inference)(cfg, model, is_ours)


def _step(cfg: Any, model: torch.nn.Module, is_ours: bool) -> Callable[[], object]:
    if is_ours:
        optimizer = build_optimizer(cfg, model)
    else:
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
    loader = iter(instantiate(cfg.dataloader.train))
    batch = next(loader)
    loader.close()
    model.train()

    def run() -> None:
        seed_torch(0)
        with EventStorage():
            sum(model(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _inference(cfg: Any, model: torch.nn.Module, is_ours: bool) -> Callable[[], object]:
    records = DatasetCatalog.get(cfg.dataloader.val.dataset.names)
    sample = instantiate(cfg.dataloader.val.mapper)(dict(records[0]))
    model.eval()

    def ours() -> None:
        with torch.inference_mode():
            for output in outputs_of(model, [sample]):
                detections_of(0, output["instances"])

    def theirs() -> None:
        with torch.no_grad():
            instances_to_coco_json(model([sample])[0]["instances"], 0)

    return ours if is_ours else theirs


def main() -> None:
    """Store a table of all figures and numbers of threads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[usable_cores()])
    parser.add_argument("--options", nargs="*", default=[])
    args = parser.parse_args()
    rows = []
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            rows += _rows(name, args.threads, *inputs(name, folder, args.options))
    keep("profiles", rows)


def inputs(name: str, folder: str, options: Sequence[str]) -> tuple[list[str], str]:
    """Return overrides of the recipe, and the weights, for `prepared`.

    Args:
        name: One of `NAMES`.
        folder: Folder for the weights.
        options: Overrides of the user.
    """
    options = [f"data.root={ORIGINALS}", *options, f"train.output_dir={folder}"]
    weights = _weights(name, folder, options)
    if name in STEPS:
        options = [*STEPS[name].overrides, *options]
        options += [f"train.init_checkpoint={weights}"] if weights else []
    return options, weights


def _weights(name: str, folder: str, options: Sequence[str]) -> str:
    """Return a file with weights; "" for the initial ones of the recipe."""
    file = Path(folder) / "model_final.pth"
    if name.endswith("r50"):
        save_calibrated(load_config(str(ROOT / R50), options), file)
    elif name in INFERENCES:
        train(INFERENCES[name], folder, list(options[:-1]))
    return str(file) if file.exists() else ""


def _rows(name: str, threads: Sequence[int], options: Sequence[str], weights: str) -> list[dict]:
    """Profile both sides with each number of threads; return and print a row for each kind."""
    columns = {}
    for count in threads:
        for is_ours in (True, False):
            # A new process for each, because d2ext changes how the C library keeps memory.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as executor:
                side = f"{'d2ext' if is_ours else 'Detectron2'}, {plural(count, 'thread')}"
                task = executor.submit(profile, name, is_ours, count, options, weights)
                columns[side] = task.result()
    kinds = next(iter(columns.values()))
    rows: list[dict] = []
    for kind in kinds:
        times = {side: round(spent[kind]) for side, spent in columns.items()}
        rows.append({"figure": f"`{name}`", "milliseconds in": kind, **times})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
