"""If the loss of any rank is not finite, no rank's weights change, and the error explains why."""

import itertools
import json
import multiprocessing

import pytest
import torch
from torch import nn

from d2ext.engine.hooks import AverageWeightsHook
from d2ext.engine.nonfinite import FiniteLossGuard, NonFinitePolicy
from d2ext.engine.techniques import averaged
from d2ext.engine.trainer import Trainer
from d2ext.errors import UserError
from d2ext.launch.signals import StopSignals
from d2ext.launch.spawn import exit_process


class Net(nn.Module):
    """The loss is w * x after a BatchNorm, whose statistics a NaN would spoil; x = -1 raises."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, batch):
        x = torch.stack([sample["x"] for sample in batch])
        if bool((x == -1).any()):
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        return {"loss_a": (self.w * self.norm(x)).square().sum(), "loss_b": self.w.sum()}


def _batches(bad):
    """Yield micro-batches 0, 1, ...; `bad` replaces the first image in some of them."""
    i = 0
    while True:
        g = torch.Generator().manual_seed(i)
        x = torch.rand(3, 2, generator=g)
        x[0] = bad.get(i, x[0])
        yield [{"x": row, "file_name": f"{i}-{n}.jpg"} for n, row in enumerate(x)]
        i += 1


def _train(steps, bad, policy="stop", most=10, accumulate=1, wrap=lambda m: m, **options):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    nonfinite = NonFinitePolicy(policy, most)
    batches = _batches(bad)
    wrapped = wrap(FiniteLossGuard(model))
    options |= dict(accumulate=accumulate, nonfinite=nonfinite)
    trainer = Trainer(wrapped, optimizer, batches, [], 7, **options)
    with StopSignals() as signals:
        trainer.train(0, steps, signals)
    state = {k: v.flatten().tolist() for k, v in model.state_dict().items()}
    return state, nonfinite.skipped, trainer


def test_a_skipped_step_does_not_change_the_average():
    first, second = itertools.islice(_batches({}), 2)
    bad = next(_batches({0: float("nan")}))
    averages = []
    for batches in ([first, bad, second], [first, second]):
        model = Net()
        average = averaged(model, 0.9)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(
            FiniteLossGuard(model),
            optimizer,
            batches,
            [AverageWeightsHook(average, model)],
            7,
            nonfinite=NonFinitePolicy("skip"),
        )
        with StopSignals() as signals:
            trainer.train(0, len(batches), signals)
        averages.append((int(average.n_averaged), average.module.w.tolist()))
    assert averages[0] == averages[1] and averages[0][0] == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_step_leaves_no_trace(value, accumulate):
    """The other steps and the running statistics are as if the batch did not exist."""
    state, skipped, trainer = _train(3, {2: value}, "skip", accumulate=accumulate)
    assert skipped == 1 and trainer.storage.history("skipped_steps").latest() == 1
    assert all(torch.tensor(v).isfinite().all() for v in state.values())

    def without(batches):
        skipped = range(2 // accumulate * accumulate, (2 // accumulate + 1) * accumulate)
        return (batch for i, batch in enumerate(batches) if i not in skipped)

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    other = Trainer(FiniteLossGuard(model), optimizer, without(_batches({})), [], 7, accumulate)
    with StopSignals() as signals:
        other.train(0, 2, signals)
    assert state == {k: v.flatten().tolist() for k, v in model.state_dict().items()}


def test_the_error_has_what_is_needed_to_reproduce_it():
    with pytest.raises(UserError) as e:
        _train(5, {2: float("nan")})
    for words in (
        "iteration 2",
        "loss_a nan",
        "loss_b -0.9",
        "lr 0.1",
        "seed 7",
        "2-0.jpg",
        "2-2.jpg",
    ):
        assert words in str(e.value)
    with pytest.raises(UserError, match="Predicted boxes .* images 1-0.jpg"):
        _train(5, {1: -1.0})


def test_more_skipped_steps_than_max_skipped_are_an_error():
    nan = float("nan")
    assert _train(4, {1: nan, 2: nan}, "skip", most=2)[1] == 2
    with pytest.raises(UserError, match="one skipped step more than train.bad_loss.max_skipped=2"):
        _train(5, {1: nan, 2: nan, 3: nan}, "skip", most=2)


def test_a_step_with_infinite_gradients_is_skipped():
    """The loss is finite and its gradient is not, which the norm for clipping shows."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, batch):
            return {"loss": self.w.abs().sum().sqrt()}  # infinitely steep at 0

    model = Root()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nonfinite = NonFinitePolicy("skip", 5)
    options = dict(clip_grad_norm=1.0, nonfinite=nonfinite)
    trainer = Trainer(FiniteLossGuard(model), optimizer, _batches({}), [], 7, **options)
    with StopSignals() as signals:
        trainer.train(0, 2, signals)
    assert nonfinite.skipped == 2 and model.w.tolist() == [0, 0]


def test_a_resumed_run_continues_the_count_of_skipped_steps():
    _, _, trainer = _train(3, {1: float("nan")}, "skip")
    memory = trainer.memory()
    assert memory["skipped_steps"] == 1 and json.dumps(memory)
    nonfinite = NonFinitePolicy("skip", 1)
    again = Trainer(
        FiniteLossGuard(Net()),
        trainer.optimizer,
        _batches({0: float("nan")}),
        [],
        7,
        nonfinite=nonfinite,
    )
    with StopSignals() as signals, pytest.raises(UserError, match="max_skipped=1"):
        again.train(3, 5, signals, memory)


def _rank(rank, store, results, bad, policy):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    wrap = nn.parallel.DistributedDataParallel
    try:
        state, skipped, _ = _train(4, bad if rank else {}, policy, wrap=wrap)
        results.put((rank, state["w"], skipped))
    except UserError as e:
        results.put((rank, str(e), None))
    torch.distributed.barrier()
    exit_process(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "value"),
    [
        ("skip", float("nan")),
        ("stop", -1.0),
        pytest.param("skip", -1.0, marks=pytest.mark.nightly),
        pytest.param("stop", float("nan"), marks=pytest.mark.nightly),
    ],
)
def test_all_ranks_react_to_the_loss_of_one(tmp_path, value, policy):
    """Rank 1 has a non-finite loss, or its forward pass fails; no rank hangs."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(r, tmp_path / "store", results, {2: value}, policy))
        for r in (0, 1)
    ]
    for process in processes:
        process.start()
    (_, first, skipped), (_, second, _) = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert first == second
    if policy == "skip":
        assert skipped == 1 and torch.tensor(first).isfinite().all()
    else:
        assert "at iteration 2 on rank 1" in first and "2-0.jpg" in first
