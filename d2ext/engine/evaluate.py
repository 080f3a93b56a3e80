"""Evaluations of a model over its test sets, into files of the run directory."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from torch import nn

from d2ext.checkpoint import files as ckpt
from d2ext.checkpoint.weights.initial import load_weights
from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.engine.builders import build_model, build_suite
from d2ext.engine.evaluation_outputs import clear_evaluations, write_evaluation
from d2ext.engine.resource_errors import resource_errors_explained
from d2ext.engine.run_info import make_run_info
from d2ext.errors import config_errors
from d2ext.evaluation.expect import parse_expectation
from d2ext.evaluation.suite import Suite
from d2ext.evaluation.tta import untransformed, with_tta
from d2ext.launch.collectives import broadcast_from_rank0, broadcast_weights, log_ranks
from d2ext.launch.command import RunCommand
from d2ext.preflight.plan import Plan
from d2ext.run_dir.lock import make_output_dir
from d2ext.run_dir.logging import log_to_file
from d2ext.run_dir.metadata import save_config, write_run_info
from d2ext.run_dir.results import Results

logger = logging.getLogger(__name__)


def evaluate_only(
    cfg: Any,
    plan: Plan,
    run_info: RunCommand,
    tta: bool = False,
    expect: Sequence[str] = (),
) -> int:
    """Evaluates `plan.weights` and writes the results to `<output_dir>/eval`.

    Args:
        cfg: of `load_config`.
        plan: of `plan_run`.
        run_info: of `launch.command.describe_run`.
        tta: with test-time augmentation, `dataloader.tta`.
        expect: of `parse_expectation`.

    Returns:
        The exit status, 0, or 1 if an expectation does not hold.
    """
    out = plan.output_dir / "eval"
    log_ranks(plan.device)
    register_run_datasets(cfg)
    model = evaluated = build_model(cfg, plan)
    loader = cfg.dataloader.get("test") or cfg.dataloader.val
    if tta:
        with config_errors("--tta"):
            evaluated = with_tta(model, **cfg.dataloader.tta)
        loader = untransformed(loader)
    suite = build_suite("dataloader.test", loader, cfg)
    broadcast_from_rank0(lambda: load_weights(model, plan.weights, whole=True))
    broadcast_weights(model)

    def open_folder() -> Results:
        make_output_dir(out, overwrite=False, resume=True)  # a later one takes its place
        ckpt.remove_leftovers(out)
        log_to_file(out / "log.txt")
        write_run_info(out, make_run_info(plan, run_info))
        save_config(cfg, out)
        return Results(out / "results.json", None, "max", done=0)

    results = broadcast_from_rank0(open_folder)
    numbers = evaluate_into(evaluated, suite, plan, out)
    if comm.is_main_process():
        from d2ext.report import write_report  # here, because a training need not wait for Jinja

        results.record(None, numbers)
        logger.info("The report is %s", write_report(out))
    return exit_status(results, expect)


def evaluate_into(
    model: nn.Module,
    suite: Suite,
    plan: Plan,
    out: Path,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Writes predictions, analyses and overlays of a model to a run directory.

    Args:
        model: of Detectron2's interface, in evaluation mode while it is used.
        suite: of `build_suite`.
        plan: of `plan_run`.
        out: the run directory.
        before_batch: called before each batch.

    Returns:
        Flat results of all test sets on rank 0, nothing on others.
    """
    with resource_errors_explained(
        lambda: "in the evaluation",
        "take smaller images (dataloader.val.mapper.augmentations)",
        "dataloader.val.num_workers",
    ):
        evaluations = suite.evaluate(model, before_batch)
    if not comm.is_main_process():
        return {}
    clear_evaluations(out)
    for evaluation in evaluations:
        for key, value in evaluation.results.items():
            if key.endswith("/AP"):
                logger.info("%s %.1f", key, value)
        write_evaluation(evaluation, out)
    return {key: value for e in evaluations for key, value in e.results.items()}


def exit_status(results: Results, expect: Sequence[str]) -> int:
    """The exit status of a run that has come to its end; rank 0 has the results."""
    if not comm.is_main_process():
        return 0
    numbers = results.last.results if results.last else {}
    failures = [parse_expectation(text).failure(numbers) for text in expect]
    for line in filter(None, failures):
        print(f"error: {line}", file=sys.stderr)
    return int(any(failures))
