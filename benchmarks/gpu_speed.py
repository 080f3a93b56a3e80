"""Measurements of gpu_check.py: steps and evaluations, with d2ext and with Detectron2 in turn."""

import functools
import itertools
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import paired, record
from detectron2.config import instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import EventStorage
from gpu_commands import trained_run
from gpu_model import batches, our_model, their_model
from gpu_outcome import LITE0, R50, NotRun, Outcome, Target, calibrated, passes
from inference import sides
from torch.profiler import ProfilerActivity, profile

from d2ext.config.options import TrainOptions
from d2ext.engine.builders import build_optimizer
from d2ext.engine.nonfinite import FiniteLossGuard
from d2ext.engine.techniques import autocast, compile_backbone, grad_scaler
from d2ext.engine.trainer import Trainer
from d2ext.launch.signals import StopSignals

_BFLOAT16 = ("train.amp.enabled=True", "train.amp.dtype=bfloat16")
_PARTS = ("before the backbone", "backbone", "RPN", "RoI heads", "backward", "optimizer")
# `record` is called with on_photos=False, because the photos are the checkout's.
Steps = Callable[[int], None]  # takes this many training steps


def step(images: int, precision: str) -> Callable[[Target], Outcome]:
    """Return a check that measures training steps on batches in memory, in turn with Detectron2's.

    Both sides have the same batches, weights and precision; Detectron2's loop is SimpleTrainer, or
    AMPTrainer with mixed precision.

    Args:
        images: Images per step.
        precision: `float32`, `float16` or `bfloat16`.
    """
    return functools.partial(_step, images=images, precision=precision)


def _step(target: Target, images: int, precision: str) -> Outcome:
    if precision != "float32":
        target.need_gpu()  # AMPTrainer does
    try:
        steps = _ours(target, images, precision), _theirs(target, images, precision)
        memory = [_peak(target, take) for take in steps]
        count, rounds = (10, 5) if target.measures else (1, 1)
        ours, theirs = (functools.partial(_rate, target, take, count) for take in steps)
        pairs = paired(ours, theirs, rounds)
    except torch.OutOfMemoryError as e:
        raise NotRun(f"out of GPU memory: {str(e).splitlines()[0][:80]}") from e
    if target.measures:
        record(f"gpu_step_{images}_{precision}", pairs, "steps/s", on_photos=False)
    ratio = statistics.median(a / b for a, b in pairs)
    rates = [statistics.median(column) for column in zip(*pairs, strict=True)]
    found = f"{rates[0]:.1f} and {rates[1]:.1f} steps/s, ratio {ratio:.2f}"
    if target.on_gpu:
        found += f"; memory {memory[0]:.1f} and {memory[1]:.1f} GB"
    return target.speed(ratio >= 1, found)


def _ours(target: Target, images: int, precision: str, *overrides: str) -> Steps:
    amp = [f"train.amp.enabled={precision != 'float32'}"]
    if precision != "float32":
        amp.append(f"train.amp.dtype={precision}")
    cfg = target.recipe(*amp, *overrides)
    options = TrainOptions.from_config(cfg.train)
    model = our_model(cfg, target.device)
    if options.compile.enabled:
        compile_backbone(model, options.compile)
    trainer = Trainer(
        FiniteLossGuard(model),
        build_optimizer(cfg, model),
        itertools.cycle(_pinned(target, images)),
        [],
        seed=0,
        autocast=autocast(options.amp, target.device),
        scaler=grad_scaler(options.amp, target.device),
    )
    return lambda count: trainer.train(0, count, StopSignals())


def _theirs(target: Target, images: int, precision: str) -> Steps:
    cfg = target.recipe()
    model = their_model(cfg, target.device)
    cfg.optimizer.params.model = model
    parts = model, itertools.cycle(_pinned(target, images)), instantiate(cfg.optimizer)
    if precision == "float32":
        trainer = SimpleTrainer(*parts)
    else:
        trainer = AMPTrainer(*parts, precision=getattr(torch, precision))
    return lambda count: trainer.train(0, count)


def _pinned(target: Target, images: int) -> list[list[dict]]:
    """Return batches as our loader gives them; Detectron2's images are not pinned, so it gains."""
    found = batches(target, images)
    if not target.on_gpu:
        return found
    return [[{**each, "image": each["image"].pin_memory()} for each in batch] for batch in found]


def _rate(target: Target, take: Steps, count: int) -> float:
    """Return steps per second."""
    target.wait()
    start = time.perf_counter()
    take(count)
    target.wait()
    return count / (time.perf_counter() - start)


def _peak(target: Target, take: Steps) -> float:
    """Return the memory in GB that steps need beside what is there before."""
    if not target.on_gpu:
        return 0.0
    take(10)  # float16 finds its scale
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    take(4)
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def synchronizations(target: Target) -> Outcome:
    """Count the operations of a float32 step for which the host waits, on both sides."""
    if not target.fake:
        target.need_gpu()
    found, good = [], True
    for images in (2, 8):
        counts = []
        for make in (_ours, _theirs):
            take = make(target, images, "float32")
            take(4)  # caches are filled
            counts.append(_waits(target, take))
        found.append(f"{images} images: {counts[0]} and {counts[1]}")
        good = good and counts[0] <= counts[1]
    where = " (fake device)" if target.fake else ""
    return passes(good, f"{'; '.join(found)}{where}")


def _waits(target: Target, take: Steps) -> int:
    if target.fake:
        from fake_cuda import FakeCuda

        with FakeCuda() as gpu:
            take(1)
        return sum(gpu.waits.values())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            take(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def phases(target: Target) -> Outcome:
    """Measure the parts of a step, and the share of the time for which the GPU computes."""
    precision = "bfloat16" if target.on_gpu else "float32"
    cfg = target.recipe(*(_BFLOAT16 if target.on_gpu else ()))
    model, amp = our_model(cfg, target.device), TrainOptions.from_config(cfg.train).amp
    optimizer = build_optimizer(cfg, model)
    clock = _Clock(target)
    model.backbone.register_forward_pre_hook(lambda module, inputs: clock.mark())
    for part in (model.backbone, model.proposal_generator, model.roi_heads):
        part.register_forward_hook(lambda module, inputs, output: clock.mark())
    times = []
    for batch in (_pinned(target, 2) * 3)[: 12 if target.measures else 2]:
        clock.mark()
        with EventStorage(), autocast(amp, target.device)():
            losses = model(batch)
        sum(losses.values()).backward()
        clock.mark()
        optimizer.step()
        optimizer.zero_grad()
        clock.mark()
        times.append(clock.intervals())
    parts = [1000 * statistics.median(column) for column in zip(*times[1:], strict=True)]
    found = ", ".join(f"{name} {ms:.1f}" for name, ms in zip(_PARTS, parts, strict=True)) + " ms"
    take = _ours(target, 2, precision)
    take(4)
    whole = 1000 / _rate(target, take, 8 if target.measures else 1)
    if target.on_gpu:
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            take(4)
            target.wait()
        busy = sum(event.self_device_time_total for event in profiled.key_averages()) / 4000
        found += f", busy {100 * busy / whole:.0f} % of {whole:.1f}"
    return target.speed(abs(sum(parts) / whole - 1) < 0.1, found)


class _Clock:
    """Record moments of the device's work."""

    def __init__(self, target: Target):
        self._target = target
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Record a moment."""
        if self._target.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def intervals(self) -> list[float]:
        """Return the seconds between the moments, and forget these."""
        self._target.wait()
        marks, self._marks = self._marks, []
        if self._target.on_gpu:
            return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]
        return [b - a for a, b in itertools.pairwise(marks)]


def evaluation(target: Target) -> Outcome:
    """Measure an evaluation against Detectron2's, from files to the table."""
    target.need_real_device()
    if target.tiny:
        config, options = LITE0, target.small()
        weights = trained_run(target) / "model_final.pth"
    else:
        config, options, weights = R50, [], calibrated(target.folder)
    options = [*options, f"train.device={target.device}", f"train.output_dir={target.folder}"]
    with sides(config, options, str(weights)) as both:
        pairs = paired(*both, 3 if target.measures else 1)
    if target.measures:
        record("gpu_inference_r50", pairs, "images/s", on_photos=False)
    ratio = statistics.median(a / b for a, b in pairs)
    rates = [statistics.median(column) for column in zip(*pairs, strict=True)]
    found = f"{rates[0]:.1f} and {rates[1]:.1f} images/s, ratio {ratio:.2f}"
    return target.speed(ratio >= 1, found)


def model_alone(target: Target) -> Outcome:
    """Measure inference of images in memory, without masks encoded, with 1 and 4 at once."""
    model = our_model(target.recipe(), target.device).eval()
    images = [sample for batch in _pinned(target, 2) for sample in batch]
    rates = []
    for size in (1, 4):
        groups = [images[i : i + size] for i in range(0, len(images), size)]
        for _ in range(2):  # the first pass warms up
            target.wait()
            start = time.perf_counter()
            with torch.no_grad():
                for group in groups:
                    model.inference(group, do_postprocess=False)
            target.wait()
            seconds = time.perf_counter() - start
        rates.append(len(images) / seconds)
    return target.speed(True, f"{rates[0]:.1f} and {rates[1]:.1f} images/s in float32")


def compilations(target: Target) -> Outcome:
    """Compile the backbone for three padded sizes, and take steps with others.

    A rehearsal compiles for two sizes and repeats them, because it has one program per size.
    """
    target.need_real_device()
    first, options = (3 if target.measures else 2), _compile_options(target)
    cfg = target.recipe(*(_BFLOAT16 if target.on_gpu else ()), *options)
    train = TrainOptions.from_config(cfg.train)
    model = our_model(cfg, target.device)
    compile_backbone(model, train.compile)
    multiple = train.compile.size_divisibility
    by_size: dict[tuple[int, ...], list[dict]] = {}
    for batch in batches(target, 2, 40 if target.measures else 6):
        sides = zip(*(sample["image"].shape[-2:] for sample in batch), strict=True)
        by_size.setdefault(tuple(-(-max(side) // multiple) for side in sides), batch)
    chosen = list(by_size.values())[: 2 * first]

    def forward_and_backward(batch: list[dict]) -> None:
        with EventStorage(), autocast(train.amp, target.device)():
            losses = model(batch)
        sum(losses.values()).backward()

    start = time.perf_counter()
    for batch in chosen[:first]:
        forward_and_backward(batch)
    target.wait()
    seconds = time.perf_counter() - start
    others = chosen[first:] if target.measures else chosen[:first]
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in others:
            forward_and_backward(batch)
    found = f"{first} sizes compiled in {seconds:.0f} s, then {len(others)} others"
    return target.speed(len(others) > 0, found)


def compiled_step(target: Target) -> Outcome:
    """Measure steps with the compiled backbone in turn with steps without."""
    target.need_real_device()
    precision = "bfloat16" if target.on_gpu else "float32"
    options = _compile_options(target)
    compiled = _ours(target, 2, precision, "train.compile.enabled=True", *options)
    plain = _ours(target, 2, precision)
    count, rounds = (10, 5) if target.measures else (1, 1)
    pairs = paired(
        functools.partial(_rate, target, compiled, count),
        functools.partial(_rate, target, plain, count),
        rounds,
    )
    if target.measures:
        record("gpu_step_2_compile", pairs, "steps/s", on_photos=False)
    ratio = statistics.median(a / b for a, b in pairs)
    return target.speed(ratio >= 1, f"ratio {ratio:.2f} in {precision}")


def _compile_options(target: Target) -> list[str]:
    if target.measures and not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        raise NotRun("needs a C compiler")
    # inductor takes minutes; this backend only records the operations.
    backend = "inductor" if target.measures else "aot_eager"
    multiple = 128 if target.measures else 32
    return [f"train.compile.backend={backend}", f"train.compile.size_divisibility={multiple}"]
