"""Train a toy net: two ranks equal one rank with two micro-batches, with every technique."""

import json
import subprocess
import sys

import pytest

from tests.conftest import checkout_env

TOY = """
import json, sys, torch, torch.distributed as dist
from torch import nn
from detectron2.utils import comm
from d2ext.config.options import Amp
from d2ext.engine.techniques import autocast, averaged
from d2ext.engine.hooks import AverageWeightsHook
from d2ext.launch.spawn import exit_process
from d2ext.launch.signals import StopSignals
from d2ext.engine.trainer import Trainer

world, rank, accumulate, url = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
techniques = json.loads(sys.argv[5])
if world > 1:
    dist.init_process_group("gloo", init_method=url, world_size=world, rank=rank)

class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    def forward(self, batch):
        x = torch.stack([sample["x"] for sample in batch])
        noise = torch.rand(len(batch), 1)  # as proposal sampling draws
        return {"loss": (self.net(x) - noise).square().mean()}

def micro_batches():
    step = 0
    while True:
        for k in range(accumulate):
            number = rank * accumulate + k
            g = torch.Generator().manual_seed(100 * step + number)
            yield [{"x": torch.rand(5, generator=g), "file_name": ""} for _ in range(3)]
        step += 1

torch.manual_seed(0)
model = Toy()
wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
average = averaged(model, techniques["ema_decay"]) if "ema_decay" in techniques else None
hooks = [AverageWeightsHook(average, model)] if average else []
precision = autocast(Amp(**techniques.get("amp", {})), "cpu")
clip = techniques.get("clip_grad_norm")
trainer = Trainer(
    wrapped, optimizer, micro_batches(), hooks, 3, accumulate, precision, clip_grad_norm=clip
)
with StopSignals() as signals:
    trainer.train(0, 20, signals)
if rank == 0:
    last = average.module if average else model
    print(json.dumps([p.flatten().tolist() for p in last.parameters()]))
if world > 1:
    exit_process(0)
"""


def _weights(world: int, accumulate: int, url: str = "", **techniques) -> list:
    environment, options = checkout_env() | {"OMP_NUM_THREADS": "1"}, json.dumps(techniques)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOY, *map(str, (world, rank, accumulate, url)), options],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(world)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world
    return json.loads(outputs[0].splitlines()[-1])


@pytest.fixture(scope="module")
def alone():
    """Return the weights after one process has accumulated two micro-batches per step."""
    return _weights(world=1, accumulate=2)


@pytest.mark.slow
def test_two_ranks_equal_two_micro_batches_bit_for_bit(alone, tmp_path):
    assert _weights(world=2, accumulate=1, url=f"file://{tmp_path}/meet") == alone
    assert _weights(world=1, accumulate=1) != alone


@pytest.mark.slow
def test_two_ranks_that_accumulate_equal_one_rank(tmp_path):
    """2 ranks x 2 micro-batches equal 1 x 4, except for the order of sums."""
    four = _weights(world=2, accumulate=2, url=f"file://{tmp_path}/meet")
    for ours, theirs in zip(four, _weights(world=1, accumulate=4), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


TECHNIQUES = {
    "clipping": dict(clip_grad_norm=0.1),
    "ema": dict(ema_decay=0.9),
    "bf16": dict(amp=dict(enabled=True, dtype="bfloat16")),
}
ALONE = [pytest.param(name, marks=pytest.mark.nightly) for name in TECHNIQUES]
TECHNIQUES["all"] = TECHNIQUES["clipping"] | TECHNIQUES["ema"] | TECHNIQUES["bf16"]


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["all", *ALONE])
def test_a_technique_has_the_same_effect_on_two_ranks(alone, tmp_path, technique):
    changed = _weights(world=1, accumulate=2, **TECHNIQUES[technique])
    assert changed != alone
    two = _weights(world=2, accumulate=1, url=f"file://{tmp_path}/meet", **TECHNIQUES[technique])
    for ours, theirs in zip(two, changed, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
