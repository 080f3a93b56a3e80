"""The state of training techniques and optimizers in checkpoints."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from d2ext.checkpoint.files import save_checkpoint
from d2ext.config.load import load_config
from d2ext.data.datasets.register import register_datasets, unregister_datasets
from d2ext.engine.train_state import TrainState, load_optimizer
from d2ext.preflight.plan import plan_run


def test_a_resume_restores_the_loss_scale_and_the_average(repo, tiny, tmp_path):
    """The config switches to float16 after the plan, because the CPU would refuse it."""
    cfg = load_config(
        repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py",
        [*tiny, "train.amp.enabled=True", "train.amp.dtype=bfloat16", "train.ema_decay=0.9"],
    )
    try:
        plan = plan_run(cfg, "state", overwrite=True, validate=False)
        cfg.train.amp.dtype = "float16"
        register_datasets(cfg.datasets)
        state = TrainState.create(cfg, plan)
        assert state.start_iter == 0 and state.scaler.is_enabled()
        state.scaler.scale(torch.zeros(1))  # initializes the scale
        state.scaler.update(new_scale=128.0)
        state.average.n_averaged.fill_(7)
        with torch.no_grad():
            next(state.average.module.parameters()).fill_(3.0)
        path = tmp_path / "model_0000002.pth"
        save_checkpoint(path, state.content(3, batch_size=2))
        resumed = TrainState.create(cfg, dataclasses.replace(plan, resume=path))
        assert (resumed.start_iter, resumed.checkpoint_iter) == (3, 3)
        assert resumed.scaler.get_scale() == 128.0
        assert (
            int(resumed.average.n_averaged) == 7
        )  # fewer than the steps, as if EMA was enabled later
        assert (next(resumed.average.module.parameters()) == 3.0).all()
    finally:
        unregister_datasets()


OPTIMIZERS = {
    "SGD": (torch.optim.SGD, dict(momentum=0.9, nesterov=True)),
    "Adam": (torch.optim.Adam, dict(amsgrad=True)),
    "AdamW": (torch.optim.AdamW, {}),
}
LAYOUTS = {True: torch.channels_last, False: torch.contiguous_format}


def _net(channels_last, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    return net.to(memory_format=LAYOUTS[channels_last])


def _steps(net, optimizer, numbers):
    for number in numbers:
        x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_follows_the_layout_of_its_parameters(name, implementation, before):
    kind, options = OPTIMIZERS[name]
    options = options | dict(lr=0.01, fused=False, foreach=False)
    options |= {implementation: True} if implementation != "for-loop" else {}
    net = _net(before)
    optimizer = kind(net.parameters(), **options)
    _steps(net, optimizer, range(3))
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())

    def resumed(channels_last):
        other = _net(channels_last, seed=1)
        other.load_state_dict(weights)
        rest = kind(other.parameters(), **options)
        load_optimizer(rest, copy.deepcopy(state))
        for parameter in other.parameters():
            moments = [v for v in rest.state[parameter].values() if torch.is_tensor(v) and v.dim()]
            assert moments and all(m.stride() == parameter.stride() for m in moments)
        _steps(other, rest, range(3, 7))
        return other.state_dict()

    same, changed = resumed(before), resumed(not before)
    for key, tensor in same.items():
        torch.testing.assert_close(changed[key], tensor, rtol=1e-4, atol=1e-6)


def test_step_counts_are_on_the_device_that_the_optimizer_needs():
    """A checkpoint of a fused Adam can be loaded into one that is not fused, and vice versa."""
    parameter = nn.Parameter(torch.ones(2))
    for before, now in ((True, False), (False, True)):
        first = torch.optim.Adam([parameter], fused=before)
        parameter.grad = torch.ones(2)
        first.step()
        second = torch.optim.Adam([parameter], fused=now)
        load_optimizer(second, first.state_dict())
        assert second.state[parameter]["step"].device.type == "cpu"
