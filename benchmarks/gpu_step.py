"""Measure a training step on a GPU against Detectron2's loop, in float32 and in bfloat16.

    python benchmarks/gpu_step.py [--options data.root=...]

R50-FPN with the sizes and batch size of the recipe and random weights, loading included. Both run
as commands, in turn. The figures are gpu_step, gpu_step_bf16 and gpu_step_bf16_compile.
"""

import argparse
import sys

import torch
from training import COMMON, R50, Figure, measure

OVERRIDES = [
    *COMMON,
    "train.init_checkpoint=",
    "optimizer.lr=1e-6",
    "train.reference_batch_size=8",
    "dataloader.train.num_workers=6",
    "train.max_iter=80",
]
BFLOAT16 = ["train.amp.enabled=True", "train.amp.dtype=bfloat16"]
COMPILED = ["train.compile.enabled=True", "train.compile.size_divisibility=128"]
FIGURES = {
    "gpu_step": Figure("speed", "steps/s", R50, OVERRIDES),
    "gpu_step_bf16": Figure("speed", "steps/s", R50, OVERRIDES, BFLOAT16),
    "gpu_step_bf16_compile": Figure("speed", "steps/s", R50, OVERRIDES, [*BFLOAT16, *COMPILED], 1),
}


def main() -> int:
    """Record the figures; return 2 without a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--options", nargs="*", default=[])
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch finds no GPU", file=sys.stderr)
        return 2
    for name, figure in FIGURES.items():
        measure(name, figure, args.options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
