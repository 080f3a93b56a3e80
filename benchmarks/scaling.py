"""Estimate the cost of a COCO epoch on 1 to 64 GPUs from measured parts; write scaling.md.

    python benchmarks/scaling.py [FILE]

This script measures the annotations in 1 to 16 processes at once (coco_file.py makes FILE if it is
not given), the size and time of a checkpoint, and the start of one and of two processes. The mapper
comes from results.json, the step of R50-FPN on 8 V100 from Detectron2's model zoo. The rest is
arithmetic, which the page shows.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from coco_file import make_coco
from common import RESULTS, ROOT, machine

PAGE = Path(__file__).parent / "scaling.md"
IMAGES = 118_287
GPUS_A_NODE, IMAGES_A_GPU = 8, 2
# Detectron2's MODEL_ZOO.md, Mask R-CNN R50-FPN 1x: 0.261 s per iteration of 16 images on 8 V100.
STEP = 0.261
NETWORKS = {"NVLink, 8 GPUs in a node": 130e9, "100 Gb/s": 12.5e9, "10 Gb/s": 1.25e9}  # bytes/s
BATCHES = 500


def _rank(file: str, rank: int, world: int) -> None:
    """Simulate a rank: open the annotations and draw batches, without the photos."""
    from d2ext.data.loading.sampler import BatchSampler, EpochOrder
    from d2ext.data.records.cache import cached_coco_records
    from d2ext.data.records.records import columns_of

    before, start = _unique(), time.perf_counter()
    records = cached_coco_records(file, "train2017")
    columns = columns_of(records)
    order = EpochOrder(columns.heights > columns.widths, IMAGES_A_GPU, seed=0)
    batches = iter(BatchSampler(order, IMAGES_A_GPU * world, rank, world))
    first = [records[i] for i, _ in next(batches)]
    opened = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(BATCHES):
        first = [records[i] for i, _ in next(batches)]
    drawn = (time.perf_counter() - start) / BATCHES
    assert len(first) == IMAGES_A_GPU
    print(json.dumps({"opened": opened, "drawn": drawn, "unique": _unique() - before}), flush=True)
    sys.stdin.readline()  # keep the pages shared while the other ranks measure


def _unique() -> float:
    """Return this process's own memory in MB; pages of the store are shared once they are read."""
    with open("/proc/self/smaps_rollup") as f:
        return sum(int(line.split()[1]) for line in f if line.startswith("Private_Dirty")) / 1024


def _ranks(file: Path, world: int) -> dict[str, float]:
    """Return the seconds of the slowest of `world` simultaneous ranks, and their mean memory."""
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(file), str(rank), str(world)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    told = [json.loads(process.stdout.readline()) for process in ranks]
    for process in ranks:
        process.communicate("\n")
    return {
        "opened": max(t["opened"] for t in told),
        "drawn": max(t["drawn"] for t in told),
        "unique": statistics.mean(t["unique"] for t in told),
    }


def _data_table(file: Path) -> list[str]:
    lines = [
        "| processes | slowest start to first batch | slowest batch of 2 | own memory, mean |",
        "|---|---|---|---|",
    ]
    _ranks(file, 1)  # builds the store
    for world in (1, 2, 4, 8, 16):
        n = _ranks(file, world)
        lines.append(
            f"| {world} | {n['opened']:.2f} s | {1000 * n['drawn']:.2f} ms | {n['unique']:.0f} MB |"
        )
    return lines


def _checkpoint() -> tuple[float, float]:
    """Return the size in MB of R50-FPN's weights and momenta, and the seconds to write them."""
    from d2ext.config.load import load_config
    from d2ext.files import atomic_write

    config = ROOT / "configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py"
    from detectron2.config import instantiate

    cfg = load_config(str(config), [])
    cfg.model.roi_heads.num_classes = 80
    weights = instantiate(cfg.model).state_dict()
    content = {"model": weights, "optimizer": {k: torch.zeros_like(v) for k, v in weights.items()}}
    with tempfile.TemporaryDirectory() as folder:
        file, start = Path(folder) / "model.pth", time.perf_counter()
        with atomic_write(file, "wb") as f:
            torch.save(content, f)
        return file.stat().st_size / 1e6, time.perf_counter() - start


def _start(processes: int) -> float:
    """Return the seconds from the command to the first step of the demo, of the slowest rank."""
    from training import FIRST_STEP, SHORT, Run

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "tools/train_net.py", "--config-file", FIRST_STEP]
        command += ["--no-validate", "--num-gpus", str(processes), "--work-dir", str(out)]
        return min(Run([*command, *SHORT], out).start for _ in range(3))


def _epoch_table(gradients: float, mapper: float) -> list[str]:
    lines = [
        "| GPUs | nodes | images/s | epoch | mapper cores per node |"
        " all-reduce: bytes per GPU | " + " | ".join(NETWORKS) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(NETWORKS),
    ]
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        nodes = math.ceil(gpus / GPUS_A_NODE)
        rate = gpus * IMAGES_A_GPU / STEP
        sent = 2 * (gpus - 1) / gpus * gradients
        # A ring passes each node once, so the link of a node carries what one GPU sends.
        times = []
        for name, speed in NETWORKS.items():
            crosses = nodes > 1 or name.startswith("NVLink")
            times.append(f"{1000 * sent / speed:.0f} ms" if crosses and gpus > 1 else "")
        lines.append(
            f"| {gpus} | {nodes} | {rate:.0f} | {IMAGES / rate / 60:.1f} min |"
            f" {rate / nodes / mapper:.1f} | {sent / 1e6:.0f} MB | " + " | ".join(times) + " |"
        )
    return lines


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["D2EXT_CACHE"] = folder
        file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "instances.json"
        if len(sys.argv) == 1:
            make_coco(file)
        data = _data_table(file)
    size, seconds = _checkpoint()
    alone, both = _start(1), _start(2)
    gradients = size / 2 * 1e6  # the weights, once
    known = json.loads(RESULTS.read_text())
    mapper, store, later = (known[name] for name in ("mapper_exact", "store_first", "store_later"))
    page = f"""# The cost of a COCO epoch on 1 to 64 GPUs

Written by `python benchmarks/scaling.py` on {machine()}.
The time of a step of R50-FPN (2 images per GPU, {STEP} s) is that of Detectron2's model zoo on
V100; no GPU was measured here. An epoch is {IMAGES} images.

{chr(10).join(_epoch_table(gradients, mapper["ours"]))}

- **Mapper**: {mapper["ours"]:.0f} images/s on one core with all pixels decoded
  ({mapper["machine"]}). Detectron2's mapper processes {mapper["theirs"]:.0f} images/s, so it needs
  {mapper["ours"] / mapper["theirs"]:.1f} times the cores.
- **All-reduce**: 2 (n - 1) / n times {gradients / 1e6:.0f} MB of gradients. DDP sends them during
  the backward pass, which takes about {1000 * STEP * 0.6:.0f} ms; an all-reduce that takes less is
  almost free.
- **Checkpoint**: {size:.0f} MB with momenta, {seconds:.1f} s on this machine with fsync, once per
  epoch. `train.checkpointer.asynchronous=True` moves the writing out of the loop.
- **Start-up**: {alone:.1f} s on this machine from the command to the first step of the balloon
  demo, {both:.1f} s with two ranks. All nodes start at the same time. These times do not include
  the start of CUDA. COCO's annotations add {store["ours"]:.1f} s once per node, and
  {later["ours"]:.2f} s at each later start.

## Annotations in many processes at once, measured

A file of the size of COCO train in the memory-mapped store, all processes of one machine starting
at the same time (on {os.cpu_count()} cores, so 16 processes wait for each other):

{chr(10).join(data)}

Each node builds the store once; its ranks and loader workers read the same pages.

## The first bottleneck, and what to do about it

- **Within a node** it is the GPUs: the mapper needs few cores. Faster GPUs (a third of the time
  per step) need three times as many; use `decode="scaled"` or `cache=True` of the mapper first.
- **Between nodes** at 10 Gb/s the all-reduce takes longer than the backward pass, from 2 nodes on:
  this is the first bottleneck. `train.ddp.fp16_compression=True` halves it. Beyond that,
  `train.accumulate=2` exchanges half as often (and doubles the batch size, which the learning rate
  follows).
- **The batch size** grows with the GPUs, to 128 images on 64. `--auto-scale-lr` adapts the
  learning rate and the warm-up; whether the accuracy stays the same must be measured.
- **Evaluation** (5,000 images) is divided among all ranks. One process computes the numbers, which
  takes some seconds (`eval_segm` in RESULTS.md).
"""
    PAGE.write_text(page)
    print(page)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        _rank(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
