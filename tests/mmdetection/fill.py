"""Generate the weights of the models in oracle/ from the names and shapes of their tensors.

Each tensor depends on its own name and shape, on whether it scales the last norm of a residual
block (which needs the list of names), and on whether the model's input is divided by a standard
deviation (`caffe` in meta.json: it is not).
"""

import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

Row = tuple[str, tuple[int, ...], str]

# The factor on a weight of two or more dimensions; the first pattern that matches counts.
_GAINS = [
    (r"rpn_head\.rpn_cls\.weight$", 1.0),
    (r"rpn_head\.rpn_reg\.weight$", 0.15),
    (r"fc_cls\.weight$", 1.1),
    (r"fc_reg\.weight$", 0.5),
    (r"mask_head\.conv_logits\.weight$", 1.0),
    # SCNet's residual branches have no norm.
    (r"(mask_head|semantic_head|glbctx_head)\.convs\.\d+\.conv2\.weight$", 0.3),
    (r"semantic_head\.lateral_convs\.\d+\.conv\.weight$", 0.4),
    (r"semantic_head\.conv_embedding\.conv\.weight$", 0.5),
    (r"backbone\.out_convs\.\d+\.conv\.weight$", 0.2),
    (r"bbox_head\.(tl|br)_heat\.\d+\.1\.conv\.weight$", 0.25),
    (r"bbox_head\.(tl|br)_off\.\d+\.1\.conv\.weight$", 0.1),
    (r"bbox_head\.(tl|br)_emb\.\d+\.1\.conv\.weight$", 0.056),
    (r"feat_relay_head\.fc\.weight$", 0.5),
    (r"neck\.lateral_convs\.\d+\.conv\.weight$", 0.25),
]


def read_rows(file: Path) -> list[Row]:
    """Return name, shape and dtype of each tensor in a state_dict.tsv."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, shape, dtype = line.split("\t")[:3]
            rows.append((name, tuple(int(n) for n in shape.split(",") if n), dtype))
    return rows


def fill(rows: Sequence[Row], caffe: bool) -> dict[str, np.ndarray]:
    """Return the tensors by name, in order.

    Args:
        rows: Name, shape and dtype of each tensor.
        caffe: Whether the input is not divided by a standard deviation.
    """
    last = _last_norms(name for name, _, _ in rows)
    return {name: _tensor(name, shape, name in last, caffe) for name, shape, _ in rows}


def _last_norms(names: Iterable[str]) -> set[str]:
    """Return the weights of norms that end a residual branch: bn3, or bn2 in blocks without it."""
    known = set(names)
    found = {name for name in known if name.endswith(".bn3.weight")}
    for name in known:
        block = name.removesuffix("bn2.weight")
        if name.endswith(".bn2.weight") and f"{block}bn3.weight" not in known:
            found.add(name)
    return found


def _tensor(name: str, shape: tuple[int, ...], last: bool, caffe: bool) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    normal = generator.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_mean"):
        return np.float32(0.05) * normal
    if name.endswith("running_var"):
        return np.float32(1) + np.float32(0.1) * np.abs(normal)
    if len(shape) >= 2:
        factor = np.sqrt(2.0 / np.prod(shape[1:]))
        factor *= next((gain for pattern, gain in _GAINS if re.search(pattern, name)), 1.0)
        if caffe and name == "backbone.conv1.weight":
            factor /= 60.0
        return normal * np.float32(factor)
    if name.endswith("weight"):  # of a norm
        array = np.float32(1) + np.float32(0.1) * normal
        return array * np.float32(0.3) if last else array
    bias = np.float32(0.05) * normal
    if name.endswith("rpn_head.rpn_cls.bias"):
        bias = bias + np.float32(-0.5)
    if re.search(r"bbox_head\.(tl|br)_heat\.\d+\.1\.conv\.bias$", name):
        bias = bias + np.float32(-2.0)
        bias[:6] += np.float32(2)  # classes that win at both corners, so that there are pairs
    return bias
