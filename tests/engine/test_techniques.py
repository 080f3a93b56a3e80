"""Test each training technique alone: what it does to a model or a step."""

import logging
import multiprocessing

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, ShapeSpec
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead
from detectron2.structures import Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn

from d2ext.config.options import Amp, Compile
from d2ext.engine.hooks import AverageWeightsHook, LearningRateHook
from d2ext.engine.techniques import (
    averaged,
    compile_backbone,
    deterministic,
    freeze,
    grad_scaler,
    use_channels_last,
    with_sync_bn,
)
from d2ext.engine.trainer import Trainer
from d2ext.errors import UserError
from d2ext.launch.signals import StopSignals
from d2ext.launch.spawn import exit_process


class Line(nn.Module):
    """The loss is w * x, so that the gradient is x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, batch):
        return {"loss": (self.w * batch[0]["x"]).sum()}


def _train(steps, x=(3.0, 4.0), lr=0.5, hooks=(), **options):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    batches = iter(lambda: [{"x": torch.tensor(x), "file_name": ""}], None)
    trainer = Trainer(model, optimizer, batches, hooks, seed=0, **options)
    with StopSignals() as signals:
        trainer.train(0, steps, signals)
    return model, trainer


def test_clipping_bounds_the_norm_of_all_gradients():
    model, trainer = _train(1, clip_grad_norm=1.0)
    assert model.w.tolist() == pytest.approx([-0.5 * 0.6, -0.5 * 0.8], rel=1e-5)
    assert trainer.storage.history("grad_norm").latest() == pytest.approx(5.0)
    assert _train(1)[0].w.tolist() == [-1.5, -2.0]
    # The norm is that of the sum over micro-batches, not of each.
    accumulated, _ = _train(1, clip_grad_norm=1.0, accumulate=2)
    assert accumulated.w.tolist() == pytest.approx(model.w.tolist())


def test_a_step_that_overflows_float16_is_skipped_and_lowers_the_scale():
    """Training in float16 is refused on the CPU, but its scaler works there."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**123)
    model, trainer = _train(2, x=(30.0, 40.0), scaler=scaler)
    assert model.w.tolist() == [-15, -20] and scaler.get_scale() == 2.0**122
    assert trainer.skipped_steps == 1
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model, _ = _train(1, scaler=scaler, clip_grad_norm=1.0)  # clips the unscaled gradients
    assert model.w.tolist() == pytest.approx([-0.3, -0.4], rel=1e-5)


class Overflows(nn.Module):
    """The loss is w * x; its gradient is infinite in the calls listed in `bad`.

    The loss itself stays finite, as in float16 if the scale is too large. `late` gets gradients
    only from the third call on.
    """

    def __init__(self, bad):
        super().__init__()
        self.w = nn.Parameter(torch.ones(5))
        self.late = nn.Parameter(torch.ones(5))
        self._bad, self._calls = bad, 0

    def forward(self, batch):
        loss = (self.w * batch[0]["x"]).sum()
        if self._calls in self._bad:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        if self._calls >= 2:
            loss = loss + self.late.sum()
        self._calls += 1
        return {"loss": loss}


def _overflowing(steps, bad, hooks=lambda model, optimizer: [], fused=True, start=0, memory=None):
    model = Overflows(bad)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, fused=fused)
    batches = iter(lambda: [{"x": torch.arange(5.0), "file_name": ""}], None)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trainer = Trainer(model, optimizer, batches, hooks(model, optimizer), 0, scaler=scaler)
    with StopSignals() as signals:
        trainer.train(start, steps, signals, memory)
    return model, optimizer, trainer


@pytest.mark.parametrize("bad", [{0}, {0, 1}, {2}, {3}])
def test_fused_momentum_equals_unfused_after_skipped_steps(bad):
    """By itself, fused SGD leaves its momentum uninitialized if its first step overflows."""
    found, expected = (_overflowing(5, bad, fused=fused) for fused in (True, False))
    for name, parameter in expected[0].named_parameters():
        torch.testing.assert_close(dict(found[0].named_parameters())[name], parameter)
    for a, b in zip(found[1].state.values(), expected[1].state.values(), strict=True):
        torch.testing.assert_close(a["momentum_buffer"], b["momentum_buffer"])


def test_steps_that_the_scaler_skips_do_not_count():
    """They count neither for the averaged weights nor for the schedule, also after a resume."""
    averages, rates = [], []

    class Rates(HookBase):
        def after_step(self):
            rates.append(self.trainer.optimizer.param_groups[0]["lr"])

    def hooks(model, optimizer):
        averages.append(averaged(model, 0.9))
        rate = LearningRateHook(optimizer, lambda done: 1 - done)
        return [rate, AverageWeightsHook(averages[-1], model), Rates()]

    _, _, trainer = _overflowing(4, {0, 2}, hooks)
    assert int(averages[0].n_averaged) == 2 and trainer.skipped_steps == 2
    assert rates == [0.5 * (1 - done / 4) for done in (0, 0, 1, 1)]
    assert trainer.storage.history("overflowed_steps").latest() == 2
    rates.clear()
    _overflowing(8, {0}, hooks, start=4, memory=trainer.memory())
    assert rates == [0.5 * (1 - done / 8) for done in (2, 2, 3, 4)]


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_a_run_in_which_every_step_overflows_is_an_error(steps):
    with pytest.raises(UserError, match="overflowed in each of the last .*=bfloat16, or lower"):
        _overflowing(steps, range(200))
    # Most of a short run may overflow while the scaler looks for its scale.
    _overflowing(4, {0, 1, 2})


def test_a_resumed_run_continues_the_count_of_overflows():
    with pytest.raises(UserError, match="each of the last 30 steps, up to iteration 49"):
        _overflowing(100, range(200), start=40, memory={"overflows_in_a_row": 20})


def test_an_infinite_norm_is_not_logged():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**123)
    _, trainer = _train(2, x=(30.0, 40.0), scaler=scaler, clip_grad_norm=1.0)
    assert trainer.storage.history("grad_norm").values() == [(pytest.approx(50.0), 1)]


def test_only_float16_is_scaled():
    assert grad_scaler(Amp(enabled=True, dtype="float16"), "cpu").is_enabled()
    assert not grad_scaler(Amp(enabled=True, dtype="bfloat16"), "cpu").is_enabled()
    assert not grad_scaler(Amp(enabled=False), "cpu").is_enabled()


def test_the_decay_of_the_average_grows_to_its_limit():
    model = nn.BatchNorm2d(1)
    average = averaged(model, decay=0.5)
    expected = None
    for n, weight in enumerate([1.0, 5.0, 7.0, 3.0, 8.0, 2.0, 9.0, 9.0, 4.0, 6.0]):
        with torch.no_grad():
            model.weight.fill_(weight)
            model.running_mean.fill_(weight)
        average.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        assert average.module.weight.item() == pytest.approx(expected)
        assert average.module.running_mean.item() == weight  # buffers are copied


def test_deterministic_kernels_are_used_only_in_the_block():
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_the_backbone_is_compiled():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    class Backbone(nn.Linear):  # torch 2.6 does not compile its own layers alone
        def forward(self, x):
            return super().forward(x)

    model = nn.Module()
    model.backbone, model.head = Backbone(2, 3), nn.Linear(3, 1)
    keys = list(model.state_dict())
    compile_backbone(model, Compile(enabled=True, backend=backend))
    model.head(model.backbone(torch.rand(1, 2)))
    assert len(compiled) == 1 and list(model.state_dict()) == keys
    with pytest.raises(UserError, match="train.compile cannot be built: .*mode"):
        compile_backbone(model, Compile(enabled=True, extra={"mode": "fast"}))


def test_keypoint_heads_train_with_channels_last():
    torch.manual_seed(0)
    shape = ShapeSpec(channels=4, height=2, width=2)
    head = KRCNNConvDeconvUpsampleHead(shape, num_keypoints=3, conv_dims=[4])
    instances = Instances((32, 32), proposal_boxes=Boxes([[0, 0, 32, 32]] * 2))
    instances.gt_keypoints = Keypoints(torch.full((2, 3, 3), 2.0))
    features, losses = torch.randn(2, 4, 2, 2), []
    for layout in (torch.contiguous_format, torch.channels_last):
        if layout == torch.channels_last:
            use_channels_last(head)
        with EventStorage():
            losses.append(head(features.to(memory_format=layout), [instances])["loss_keypoint"])
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)


def _norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3)))


def test_sync_bn_keeps_parameters_and_keys():
    model = _norms()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    synced = with_sync_bn(model, "cpu")
    assert [type(m) for m in synced.modules()].count(NaiveSyncBatchNorm) == 2
    assert list(synced.state_dict()) == keys
    assert all(a is b for a, b in zip(synced.parameters(), parameters, strict=True))
    gpu = with_sync_bn(_norms(), "cuda")
    assert [type(m) for m in gpu.modules()].count(nn.SyncBatchNorm) == 2


def test_a_model_with_sync_bn_is_left_unchanged():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), NaiveSyncBatchNorm(3))
    assert type(with_sync_bn(model, "cpu")[1]) is NaiveSyncBatchNorm


def test_sync_bn_without_batch_norm_is_an_error():
    with pytest.raises(UserError, match="no BatchNorm to synchronize"):
        with_sync_bn(nn.Sequential(nn.Conv2d(2, 3, 1), FrozenBatchNorm2d(3)), "cpu")


def _statistics(rank, store, results, images):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = with_sync_bn(_norms(), "cpu")
    output = model(images[rank : rank + 1])
    results.put((rank, output.tolist(), model[1].running_var.tolist()))
    torch.distributed.barrier()
    exit_process(0)


def test_two_ranks_normalize_over_both_batches(tmp_path):
    images = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_statistics, args=(rank, tmp_path / "store", results, images))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    ended = {rank: rest for rank, *rest in (results.get(timeout=120) for _ in processes)}
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    torch.manual_seed(0)
    alone = _norms()
    output = alone(images)
    for rank in (0, 1):
        assert torch.allclose(torch.tensor(ended[rank][0][0]), output[rank], atol=1e-5)
    # Detectron2's layer keeps the biased variance, torch's the unbiased one.
    biased = alone[1].running_var - 0.9
    biased = 0.9 + biased * 31 / 32
    assert ended[0][1] == ended[1][1] == pytest.approx(biased.tolist(), rel=1e-4)


class Normalized(nn.Module):
    """A backbone and a head with BatchNorm; the loss depends on both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(2, 1, 1), nn.BatchNorm2d(1))

    def forward(self, batch):
        images = torch.stack([sample["image"] for sample in batch])
        return {"loss": self.head(self.backbone(images)).square().mean() + images.mean()}


def _updated(model, patterns):
    """Freeze parts of a model, train it for two steps, and return the entries that changed."""
    freeze(model, patterns)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
    images = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(1)) + 2
    model.train()
    for _ in range(2):
        sum(model([{"image": image} for image in images]).values()).backward()
        optimizer.step()
    return {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}


def test_frozen_parts_change_neither_weights_nor_statistics(caplog):
    caplog.set_level(logging.INFO, logger="d2ext")
    model = Normalized()
    changed = _updated(model, ["backbone"])
    assert changed and all(name.startswith("head.") for name in changed)
    assert {f"head.1.{name}" for name in ("weight", "running_mean")} <= changed
    assert "Frozen by train.freeze=[backbone]: backbone (4 tensors)" in caplog.text
    assert "0.0 of the model's 0.0 million parameters train" in caplog.text
    _, _, norm = model.train(), model([{"image": torch.ones(1, 3, 3)}]), model.backbone[1]
    assert not norm.training and model.head[1].training


def test_patterns_match_modules_and_parameters():
    assert not any(n.endswith("bias") for n in _updated(Normalized(), ["*.bias"]))
    changed = _updated(Normalized(), ["*.1"])  # both norms
    assert {name.rpartition(".")[0] for name in changed} == {"backbone.0", "head.0"}
    only_weight = _updated(Normalized(), ["backbone.1.weight"])
    assert {"backbone.1.bias", "backbone.1.running_mean"} <= only_weight
    assert "backbone.1.weight" not in only_weight


def test_averaged_weights_keep_frozen_norms_frozen():
    model = Normalized()
    freeze(model, ["backbone"])
    average = averaged(model, 0.9).module.train()
    average([{"image": torch.full((1, 3, 3), 9.0)}, {"image": torch.zeros(1, 3, 3)}])
    assert torch.equal(average.backbone[1].running_mean, torch.zeros(2))
    assert average.head[1].running_mean != 0


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["backbon"], "no parameters in 'backbon'; did you mean 'backbone'?"),
        (["backbone", "hed.0"], "no parameters in 'hed.0'; did you mean 'head.0'"),
        (["query"], "no parameters in 'query'; its parts are backbone, head"),
        (["backbone.2"], "no parameters in 'backbone.2'; did you mean"),
        (["*"], r"train.freeze=\['\*'\] leaves no parameter to train"),
    ],
)
def test_patterns_without_effect_or_without_rest_are_errors(patterns, words):
    with pytest.raises(UserError, match=words):
        freeze(Normalized(), patterns)
