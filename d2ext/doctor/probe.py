"""Import torch and Detectron2 and train one step, in a child process of `d2ext doctor`.

`d2ext.doctor.report` runs this file as a script, which prints a line of JSON before and after each
step. Only the standard library is imported at module level, so that every failure belongs to a
step.
"""

import json
from typing import Any

MARK = "doctor:"  # prefix of our own lines, because libraries print too


def _step_torch() -> dict[str, Any]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [
        (torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i)) for i in range(count)
    ]
    reason = ""
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as e:  # AssertionError: a build without CUDA
        reason = str(e).strip().splitlines()[0]
    return {"gpus": gpus, "built_for": torch.cuda.get_arch_list(), "reason": reason}


def _step_torchvision() -> dict[str, Any]:
    import torchvision.ops  # noqa: F401  registers nms and roi_align, and fails on another torch

    return {}


def _step_detectron2() -> dict[str, Any]:
    from detectron2.utils import comm

    # Upstream still reports version 0.6; this function, added in 2023, is not in the release.
    if not hasattr(comm, "create_local_process_group"):
        raise RuntimeError("this is release v0.6 (2021) or older, too old for current Pillow")
    import detectron2.checkpoint
    import detectron2.data
    import detectron2.engine
    import detectron2.evaluation
    import detectron2.model_zoo
    import detectron2.modeling
    import detectron2.utils.visualizer  # noqa: F401

    return {}


def _step_operators() -> dict[str, Any]:
    import torch

    operators, reason = None, ""
    try:
        from detectron2 import _C as operators
    except ImportError as e:
        if "undefined symbol" in str(e) or "shared object" in str(e):
            reason = f"built for another torch: {e}"
    known = {
        "deformable convolution": (
            hasattr(operators, "deform_conv_forward"),
            "backbones with deform_on_per_stage (DCN) cannot be built",
        ),
        "rotated boxes (IoU, NMS, ROIAlign)": (
            hasattr(torch.ops.detectron2, "nms_rotated"),
            "rotated detectors (RRPN, RROIHeads) cannot run",
        ),
        "C++ COCOeval": (
            hasattr(operators, "COCOevalAccumulate"),
            "Detectron2's COCOEvaluator is slower; d2ext's own metrics do not use it",
        ),
    }
    missing = [(name, effect) for name, (there, effect) in known.items() if not there]
    no_cuda = operators is not None and torch.cuda.is_available() and not operators.has_cuda()
    return {"missing": missing, "reason": reason, "no_cuda": no_cuda}


def _step_train() -> dict[str, Any]:
    import torch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        _train_one_step(device)
    return {"text": "forward, NMS, ROIAlign, backward and step work on " + ", ".join(devices)}


def _train_one_step(device: str) -> None:
    """Take one optimizer step through the operators of Mask R-CNN; the loss must decrease."""
    import torch
    from detectron2.layers import ROIAlign, batched_nms

    boxes = [[2, 2, 20, 20], [3, 3, 21, 21], [10, 8, 30, 28]]  # the second overlaps the first
    boxes = torch.tensor(boxes, dtype=torch.float32, device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    classes = torch.zeros(3, dtype=torch.int64, device=device)
    keep = batched_nms(boxes, scores, classes, 0.5)
    if keep.tolist() != [0, 2]:
        raise RuntimeError(f"NMS on {device} kept boxes {keep.tolist()} instead of [0, 2]")
    rois = torch.cat([torch.zeros(len(keep), 1, device=device), boxes[keep]], dim=1)
    net = torch.nn.Conv2d(3, 8, 3, padding=1).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    image = torch.rand(1, 3, 32, 32, device=device)
    losses = []
    for _ in range(2):
        loss = ROIAlign((7, 7), 1.0, sampling_ratio=2)(net(image), rois).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not losses[1] < losses[0]:
        raise RuntimeError(f"a training step on {device} did not decrease the loss: {losses}")


_STEPS = {
    "torch": _step_torch,
    "torchvision": _step_torchvision,
    "detectron2": _step_detectron2,
    "operators": _step_operators,
    "train": _step_train,
}


def _child() -> None:
    for name, step in _STEPS.items():
        _say({"step": name})
        try:
            _say({"step": name, "result": step()})
        except Exception as e:
            message = next(iter(str(e).strip().splitlines()), "")
            _say({"step": name, "error": f"{type(e).__name__}: {message}"[:500]})
            return


def _say(content: dict[str, Any]) -> None:
    print(MARK + json.dumps(content), flush=True)


if __name__ == "__main__":
    _child()
