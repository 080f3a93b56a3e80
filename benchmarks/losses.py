"""Compare the losses of 50 steps with the fast layers and with Detectron2's layers.

    python benchmarks/losses.py [--options data.root=...]

The lite0 recipe, with the same initial weights, batches, sampling seeds and learning rates.
Rounding makes any two computations drift apart during training, because proposals with almost
equal scores change places. Detectron2's layers with two threads and with one show by how much.
"""

import argparse
import json

import torch
from common import ROOT, machine
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage

from d2ext.checkpoint.weights.initial import load_weights, local_weights
from d2ext.config.load import load_config
from d2ext.data.datasets.register import register_datasets
from d2ext.modeling.cpu.fast_layers import use_fast_layers

LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
STEPS = 50


def _run(cfg: object, batches: list, fast: bool, threads: int) -> torch.Tensor:
    """Return the (STEPS,) total losses."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    load_weights(model, local_weights(cfg.train.init_checkpoint, "train.init_checkpoint"))
    if fast:
        use_fast_layers(model)
    model = model.to(memory_format=torch.channels_last).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    totals = []
    with EventStorage():
        for i, batch in enumerate(batches):
            for group in optimizer.param_groups:  # the recipe's warm-up
                group["lr"] = cfg.optimizer.lr * (i + 1) / STEPS
            torch.manual_seed(i)
            loss = sum(model(batch).values())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            totals.append(loss.item())
    return torch.tensor(totals)


def main() -> None:
    """Print the largest relative differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--options", nargs="*", default=[])
    cfg = load_config(str(ROOT / LITE0), parser.parse_args().options)
    register_datasets(cfg.datasets)
    cfg.model.roi_heads.num_classes = 1
    loader = iter(instantiate(cfg.dataloader.train))
    batches = [next(loader) for _ in range(STEPS)]
    loader.close()
    stock = _run(cfg, batches, fast=False, threads=2)
    print(machine())
    for name, fast, threads in (("fast layers", True, 2), ("Detectron2's, 1 thread", False, 1)):
        off = ((_run(cfg, batches, fast, threads) - stock) / stock).abs()
        parts = {n: float(f"{off[:n].max():.1e}") for n in (1, 5, 10, 20, STEPS)}
        mean = float(f"{off.mean():.1e}")
        print(f"{name}: largest difference within n steps {json.dumps(parts)}, mean {mean}")


if __name__ == "__main__":
    main()
