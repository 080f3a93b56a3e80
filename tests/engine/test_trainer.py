"""The loop on a toy net: two ranks are, bit for bit, one that accumulates two micro-batches."""

import json
import os
import subprocess
import sys

import pytest

TOY = """
import json, sys, torch, torch.distributed as dist
from torch import nn
from detectron2.utils import comm
from d2ext.engine.signals import StopSignals
from d2ext.engine.trainer import Trainer

world, rank, accumulate, url = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
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
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
trainer = Trainer(wrapped, optimizer, micro_batches(), [], seed=3, accumulate=accumulate)
with StopSignals() as signals:
    trainer.train(0, 20, signals)
if rank == 0:
    print(json.dumps([p.flatten().tolist() for p in model.parameters()]))
"""


def _weights(world: int, accumulate: int, url: str = "") -> list:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOY, str(world), str(rank), str(accumulate), url],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(world)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world
    return json.loads(outputs[0].splitlines()[-1])


@pytest.mark.slow
def test_ranks_are_micro_batches_bit_for_bit(tmp_path, repo, monkeypatch):
    monkeypatch.chdir(repo)
    alone = _weights(world=1, accumulate=2)
    assert _weights(world=2, accumulate=1, url=f"file://{tmp_path}/meet") == alone
    assert _weights(world=1, accumulate=1) != alone


@pytest.mark.slow
def test_ranks_that_accumulate(tmp_path, repo, monkeypatch):
    """2 ranks x 2 micro-batches are 1 x 4, but for the order of sums."""
    monkeypatch.chdir(repo)
    four = _weights(world=2, accumulate=2, url=f"file://{tmp_path}/meet")
    for ours, theirs in zip(four, _weights(world=1, accumulate=4), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
