"""Checks of gpu_check.py that compare results on the device with those of the CPU or of torch."""

import contextlib
import copy
import functools
import multiprocessing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import instantiate
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from gpu_commands import trained_run
from gpu_outcome import Outcome, Target, passes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2ext.checkpoint.weights.initial import load_weights, local_weights
from d2ext.config.load import load_config
from d2ext.config.num_classes import with_num_classes
from d2ext.config.options import Amp, BadLoss
from d2ext.data.datasets.register import register_datasets
from d2ext.engine.builders import build_model, build_suite
from d2ext.engine.nonfinite import FiniteLossGuard, NonFinitePolicy
from d2ext.engine.techniques import autocast, use_channels_last
from d2ext.engine.train_state import load_optimizer
from d2ext.engine.trainer import Trainer
from d2ext.launch.signals import StopSignals
from d2ext.launch.spawn import exit_process
from d2ext.launch.topology import free_port
from d2ext.preflight.plan import Plan

_ALL = 10**6  # more than there are anchors or proposals to sample
_STEPS = 3
_FLOAT32 = Amp()


@functools.cache
def batches(target: Target, images: int, count: int = 4) -> list[list[dict]]:
    """Return the first training batches, in memory."""
    cfg = target.recipe(f"train.reference_batch_size={images}", "dataloader.train.num_workers=2")
    loader = iter(instantiate(cfg.dataloader.train))
    found = [next(loader) for _ in range(count)]
    loader.close()
    return found


def our_model(cfg: Any, device: str) -> nn.Module:
    """Build d2ext's model on a device, with the recipe's initial weights."""
    plan = Plan(Path(), device, ["balloon"], {}, None, "", None, None, [])
    return _with_weights(build_model(cfg, plan), cfg).train()


def their_model(cfg: Any, device: str) -> nn.Module:
    """Build the model with Detectron2's own layers, and the same weights."""
    torch.manual_seed(cfg.train.seed)  # as build_model does
    return _with_weights(instantiate(with_num_classes(cfg.model, 1)), cfg).to(device).train()


def _with_weights(model: nn.Module, cfg: Any) -> nn.Module:
    load_weights(model, local_weights(cfg.train.init_checkpoint), classes=["balloon"])
    return model


def equal_float32(target: Target) -> Outcome:
    """Compare Detectron2's layers on the device with themselves on the CPU."""
    return _compare(target, their_model(target.recipe(), target.device), 1e-4, 1e-3)


def equal_layers(target: Target) -> Outcome:
    """Compare d2ext's layers on the device with Detectron2's on the CPU."""
    return _compare(target, our_model(target.recipe(), target.device), 1e-4, 1e-3)


def equal_channels_last(target: Target) -> Outcome:
    """Compare d2ext's layers in the channels_last layout with Detectron2's on the CPU."""
    model = our_model(target.recipe(), target.device)
    use_channels_last(model)
    return _compare(target, model, 1e-4, 1e-3)


def equal_tf32(target: Target) -> Outcome:
    """Compare d2ext's layers in TF32 with Detectron2's on the CPU."""
    target.need_gpu()
    return _compare(target, our_model(target.recipe(), target.device), 5e-3, None, tf32=True)


def equal_bfloat16(target: Target) -> Outcome:
    """Compare d2ext's layers in bfloat16 with Detectron2's on the CPU."""
    target.need_real_device()
    amp = Amp(True, "bfloat16")  # whose rounding on a CPU changed one loss of R50 by 4e-2
    return _compare(target, our_model(target.recipe(), target.device), 1e-1, None, amp)


def equal_float16(target: Target) -> Outcome:
    """Compare d2ext's layers in float16 with Detectron2's on the CPU."""
    target.need_gpu()
    amp = Amp(True, "float16")
    return _compare(target, our_model(target.recipe(), target.device), 3e-2, None, amp)


def _compare(
    target: Target,
    model: nn.Module,
    losses_within: float,
    gradients_within: float | None,
    amp: Amp = _FLOAT32,
    tf32: bool = False,
) -> Outcome:
    """Compare losses, and the norms of the gradients, with those of Detectron2 on the CPU."""
    expected, norms, proposals = _reference(target)
    with _tf32(tf32):
        losses, ours = _losses(target, model, [p.to(target.device) for p in proposals], amp)
    off = max(abs(losses[name] - value) / abs(value) for name, value in expected.items())
    found = f"losses differ by {off:.1e}, of {losses_within:.0e} allowed"
    good = losses.keys() == expected.keys() and off <= losses_within
    if gradients_within is not None:
        largest = max(norms.values())
        apart = max(abs(ours[name] - norm) / largest for name, norm in norms.items())
        found += f"; gradient norms by {apart:.1e} of {gradients_within:.0e}"
        good = good and ours.keys() == norms.keys() and apart <= gradients_within
    return passes(good, found)


@functools.cache
def _reference(target: Target) -> tuple[dict[str, float], dict[str, float], list[Any]]:
    """Return losses, gradient norms and proposals of Detectron2's layers on the CPU."""
    return _reference_losses(their_model(target.recipe(), "cpu"), batches(target, 2)[0])


def _reference_losses(model: nn.Module, batch: list[dict]) -> tuple[dict, dict, list[Any]]:
    kept: list[Any] = []
    hook = model.proposal_generator.register_forward_hook(
        lambda module, inputs, output: kept.extend(output[0])
    )
    losses, norms = _one_pass(model, batch, _FLOAT32, "cpu")
    hook.remove()
    return losses, norms, kept


def _losses(
    target: Target, model: nn.Module, proposals: list[Any], amp: Amp
) -> tuple[dict[str, float], dict[str, float]]:
    """Return losses and gradient norms of a model with given proposals.

    Rounding changes the order of proposals with almost equal scores, and so which are kept.
    """
    model.proposal_generator.register_forward_hook(
        lambda module, inputs, output: (proposals, output[1])
    )
    return _one_pass(model, batches(target, 2)[0], amp, target.device)


def _one_pass(
    model: nn.Module, batch: list[dict], amp: Amp, device: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Return losses and gradient norms, where nothing is drawn: all samples are used."""
    model.proposal_generator.batch_size_per_image = _ALL
    model.roi_heads.batch_size_per_image = _ALL
    with EventStorage(), autocast(amp, device)():
        losses = model(batch)
    sum(losses.values()).backward()
    norms = {
        name: float(parameter.grad.norm())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {name: float(loss) for name, loss in losses.items()}, norms


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def overflow(target: Target) -> Outcome:
    """Train in float16 with fused SGD, whose first step overflows, in memory full of NaN."""
    target.need_real_device()
    small = _small(target)
    model = our_model(small.recipe(), target.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
    scaler = torch.amp.GradScaler(target.device, init_scale=2.0**60, backoff_factor=2.0**-50)
    spoiled = [torch.full((n,), torch.nan, device=target.device) for n in (2**20, 2**14) * 20]
    del spoiled  # the allocator returns this memory to the optimizer
    half = autocast(Amp(True, "float16"), target.device)
    trainer = Trainer(
        FiniteLossGuard(model),
        optimizer,
        iter(batches(small, 1)),
        [],
        seed=0,
        autocast=half,
        scaler=scaler,
    )
    trainer.train(0, 3, StopSignals())
    states = [s["momentum_buffer"] for s in optimizer.state.values() if "momentum_buffer" in s]
    finite = all(bool(t.isfinite().all()) for t in [*model.parameters(), *states])
    found = f"{trainer.skipped_steps} of 3 steps skipped, {'all' if finite else 'not all'} finite"
    return passes(finite and 0 < trainer.skipped_steps < 3, found)


def layout(target: Target) -> Outcome:
    """Compare a fused optimizer with a plain one after loading a state saved elsewhere."""
    target.need_real_device()
    worst = 0.0
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        for device, memory in (
            (target.device, torch.channels_last),
            ("cpu", torch.channels_last),
            ("cpu", torch.contiguous_format),
        ):
            saved = _convolution(device, memory)
            before = kind([saved], lr=0.1, **more)
            _step(before, saved, seed=1)
            found = []
            for fused in (True, False):
                weight = _convolution(target.device, torch.contiguous_format)
                weight.data.copy_(saved.data)
                after = kind([weight], lr=0.1, fused=fused, **more)
                load_optimizer(after, copy.deepcopy(before.state_dict()))
                after.param_groups[0].update(fused=fused, foreach=False)
                _step(after, weight, seed=2)
                found.append(weight.detach())
            worst = max(worst, float((found[0] - found[1]).abs().max()))
    return passes(worst <= 1e-6, f"SGD and AdamW: weights differ by {worst:.0e}")


def _convolution(device: str, memory: torch.memory_format) -> nn.Parameter:
    weight = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    return nn.Parameter(weight.to(device, memory_format=memory))


def _step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, seed: int) -> None:
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    weight.grad = torch.empty_like(weight).copy_(gradient)
    optimizer.step()


def nccl(target: Target) -> Outcome:
    """Train in one process that exchanges gradients with itself."""
    target.need_real_device()
    backend = "nccl" if target.on_gpu else "gloo"
    alone = _trained(target, "alone", processes=0)
    outcome = _close(alone[0], _trained(target, "one", processes=1, backend=backend)[0])
    return Outcome(outcome.status, f"over {backend}: {outcome.found}")


def two_processes(target: Target) -> Outcome:
    """Train in two processes on the device, over gloo, and with two micro-batches in one."""
    target.need_real_device()
    alone = _trained(target, "accumulated", processes=0, accumulate=2)
    return _close(alone[0], _trained(target, "two", processes=2)[0])


def nan_in_one_process(target: Target) -> Outcome:
    """Give one of two processes an image of NaN in the second step."""
    target.need_real_device()
    first, second = _trained(target, "nan", processes=2, spoiled=True)
    same = all(torch.equal(first[key], second[key]) for key in first)
    finite = all(bool(tensor.isfinite().all()) for tensor in first.values())
    skipped = [int(weights.pop("skipped")) for weights in (first, second)]
    found = f"steps skipped: {skipped}; weights {'equal' if same else 'differ'}"
    return passes(same and finite and skipped == [1, 1], found)


def _trained(
    target: Target,
    name: str,
    processes: int,
    accumulate: int = 1,
    backend: str = "gloo",
    spoiled: bool = False,
) -> list[dict[str, Tensor]]:
    """Train some small steps in new processes; return the weights that each ends with.

    Args:
        target: Where to train.
        name: Name of the files.
        processes: Number of processes that exchange gradients; 0: a process without a group.
        accumulate: Micro-batches per step.
        backend: Backend of the process group.
        spoiled: The last process gets an image of NaN in the second step.
    """
    torch.set_num_threads(1)  # a forked process cannot use those of its parent
    small = _small(target)
    micro_batches = batches(small, 1, 2 * _STEPS)
    files = [target.folder / f"{name}_{rank}.pth" for rank in range(max(processes, 1))]
    url = f"tcp://127.0.0.1:{free_port()}"

    def train(rank: int) -> None:
        if processes:
            dist.init_process_group(backend, url, world_size=processes, rank=rank)
            comm.create_local_process_group(processes)
        model = our_model(small.recipe(), target.device)
        wrapped: nn.Module = FiniteLossGuard(model)
        if processes:
            ids = [0] if target.device == "cuda" else None
            wrapped = DistributedDataParallel(wrapped, device_ids=ids, broadcast_buffers=False)
        each = max(processes, 1) * accumulate
        numbers = [
            s * each + rank * accumulate + k for s in range(_STEPS) for k in range(accumulate)
        ]
        mine = [micro_batches[number] for number in numbers]
        if spoiled and rank == processes - 1:
            image = mine[1][0]["image"]
            mine[1] = [
                {**mine[1][0], "image": torch.full_like(image, torch.nan, dtype=torch.float)}
            ]
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        policy = NonFinitePolicy("skip", BadLoss().max_skipped)
        trainer = Trainer(wrapped, optimizer, iter(mine), [], 0, accumulate, nonfinite=policy)
        trainer.train(0, _STEPS, StopSignals())
        weights = {key: tensor.cpu() for key, tensor in model.state_dict().items()}
        torch.save({**weights, "skipped": torch.tensor(trainer.skipped_steps)}, files[rank])
        exit_process(0)

    ranks = [
        multiprocessing.get_context("fork").Process(target=train, args=(rank,))
        for rank in range(len(files))
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise RuntimeError(f"the processes ended with {[p.exitcode for p in ranks]}")
    return [torch.load(file, weights_only=True) for file in files]


def _close(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Outcome:
    floats = [key for key, tensor in expected.items() if tensor.is_floating_point()]
    off = max(
        float((expected[key] - found[key]).abs().max() / expected[key].abs().max().clamp(min=1e-6))
        for key in floats
    )
    return passes(off <= 1e-4, f"weights differ by {off:.0e}, of 1e-04 allowed")


def _small(target: Target) -> Target:
    return Target(target.device, True, target.fake, target.folder)


def evaluation_equals_cpu(target: Target) -> Outcome:
    """Evaluate the trained run on the device and on the CPU."""
    cfg = load_config(trained_run(target) / "config.yaml")
    register_datasets(cfg.datasets)
    suite = build_suite("dataloader.val", cfg.dataloader.val, cfg)
    found = []
    for device in ("cpu", target.device):
        plan = Plan(Path(), device, ["balloon"], {}, None, "", None, None, [])
        model = build_model(cfg, plan)
        load_weights(model, str(target.folder / "trained" / "model_final.pth"))
        (evaluation,) = suite.evaluate(model)
        found.append((evaluation.results, len(evaluation.detections.scores)))
    (expected, count), (results, count_there) = found
    off = max(abs(results[key] - value) for key, value in expected.items() if value >= 0)
    good = off <= 0.5 and 0 < count and abs(count_there - count) <= 0.02 * count
    words = f"{len(expected)} results differ by {off:.2f} points at most"
    return passes(good, f"{words}; {count_there} and {count} detections")
