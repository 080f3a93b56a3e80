"""Choose the device, and explain why torch does not use a GPU that should be there.

torch is imported inside the functions because `d2ext doctor`, which must work with a broken torch,
uses this module as well.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from d2ext.errors import UserError, format_exception
from d2ext.text import plural

_DEV = Path("/dev")
_DRIVER = Path("/proc/driver/nvidia/version")
_GRANTED = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")
_NO_DEVICE = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES, the last one Slurm's


def choose_device(
    requested: str,
    num_gpus: int,
    gpu_each: bool = False,
    visible: int | None = None,
    dev: Path = _DEV,
) -> tuple[str, str]:
    """Return the device to use and its description for the plan.

    Args:
        requested: `train.device`, `cuda` or `cpu`. Without a GPU, `cuda` falls back to the CPU.
        num_gpus: Value of `--num-gpus`.
        gpu_each: A single visible GPU belongs to this process only (`Topology.gpu_each`).
        visible: Number of GPUs; None asks torch.
        dev: Folder of the device files.

    Raises:
        UserError: More GPUs are requested than the machine has, torch cannot use a GPU that should
            be there, or the device is unknown.
    """
    import torch

    if requested not in ("cpu", "cuda"):
        raise UserError(f"train.device={requested!r} is not a device; give cuda or cpu")
    processes = 1 if gpu_each else num_gpus  # torchrun and srun have started the others
    threads, of_one = (threads_per_process(n, "cpu") for n in (processes, 1))
    each = f" for each of {processes} processes" if processes > 1 else ""
    # Two processes were 1.07 to 1.24 times as fast as one with as many threads (RESULTS.md).
    alone = f"; one process would use {of_one} on the same cores" if threads < of_one else ""
    cpu = f"CPU, {plural(threads, 'thread')}{each}{alone}"
    if requested == "cpu":
        return "cpu", cpu
    if visible is None and "D2EXT_PLAN_GPUS" in os.environ:  # preflight for other machines
        visible = int(os.environ["D2EXT_PLAN_GPUS"])
    if visible is None:
        visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if visible:
            _check_capabilities(min(num_gpus, visible))
        elif sign := expected_gpu(os.environ, dev):
            raise UserError(
                f"{sign}, but torch finds no GPU ({why_no_gpu()}); fix that, or use the CPU"
                " with train.device=cpu"
            )
    if not visible:
        return "cpu", f"{cpu} (no GPU is visible)"
    if gpu_each and visible == 1:
        return "cuda", "GPU, one for each process"
    if num_gpus > visible:
        raise UserError(
            f"--num-gpus {num_gpus} is more than this machine has; give at most {visible}"
        )
    return "cuda", f"GPU, {num_gpus} of {visible}"


def threads_per_process(processes: int, device: str, cores: int | None = None) -> int:
    """Return the number of threads of each of several processes on this machine.

    They share the cores, unless OMP_NUM_THREADS sets the number for each, as torchrun does. On
    GPUs, half of the cores are left to the loader workers.

    Args:
        processes: Number of processes.
        device: `cpu` or `cuda`.
        cores: Cores of all processes; None means this process's threads.
    """
    import torch

    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return threads
    return max((cores or threads) // processes // (2 if device == "cuda" else 1), 1)


def share_cores(processes: int, device: str, cores: int | None = None) -> None:
    """Set this process's threads of torch and OpenCV to `threads_per_process`.

    A single process keeps its threads, as do all if OMP_NUM_THREADS is set.
    """
    import cv2
    import torch

    if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = threads_per_process(processes, device, cores)
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)


def expected_gpu(env: Mapping[str, str], dev: Path = _DEV) -> str | None:
    """Return evidence that there should be an NVIDIA GPU, or None without any.

    `CUDA_VISIBLE_DEVICES=-1` (or empty) hides all GPUs on purpose.

    Args:
        env: Environment of this process.
        dev: Folder of the device files; a container with only the fourth GPU has `nvidia3`.
    """
    if "CUDA_VISIBLE_DEVICES" in env and _hides_all(env["CUDA_VISIBLE_DEVICES"]):
        return None
    for name in _GRANTED:
        # SLURM_GPUS_ON_NODE is a number, the others are lists of indices.
        if (value := env.get(name)) and (name, value) != ("SLURM_GPUS_ON_NODE", "0"):
            return f"Slurm granted GPUs ({name}={value})"
    files = sorted(f for f in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", f.name))
    return f"there is an NVIDIA GPU ({files[0]})" if files else None


def why_no_gpu() -> str:
    """Return torch's reason for not finding a GPU, such as an old driver."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    given = "" if visible is None else f", CUDA_VISIBLE_DEVICES={visible}"
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as e:  # AssertionError: a build without CUDA
        return format_exception(e) + given
    return f"torch {torch.__version__} gives no reason{given}"


def gpu_facts(device: str) -> tuple[str, dict[str, str]]:
    """Return the name of the current GPU, and the versions of its driver and libraries.

    Both are empty on the CPU.

    Args:
        device: `cpu` or `cuda`.
    """
    import torch

    if device == "cpu":
        return "", {}
    driver = re.search(r"  (\d+(\.\d+)+)  ", _DRIVER.read_text()) if _DRIVER.exists() else None
    has_nccl = torch.distributed.is_nccl_available()
    versions = {
        "driver": driver and driver[1],
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "NCCL": has_nccl and ".".join(map(str, torch.cuda.nccl.version())),
    }
    known = {name: str(version) for name, version in versions.items() if version}
    return torch.cuda.get_device_name(), known


def uncovered(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Return whether torch has no kernels for a GPU's compute capability.

    Binary code (`sm_`) runs on GPUs of the same major and the same or a higher minor version, PTX
    (`compute_`) on any newer GPU.

    Args:
        capability: Compute capability of the GPU, such as (8, 6).
        built_for: Result of `torch.cuda.get_arch_list()`; if it is empty, the GPU counts as
            covered.
    """
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", text) for text in built_for]
    codes = [(m[1], (int(m[2]), int(m[3]))) for m in found if m]
    runs = (
        code <= capability and (kind == "compute" or code[0] == capability[0])
        for kind, code in codes
    )
    return bool(codes) and not any(runs)


def _hides_all(visible: str) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES hides every GPU; CUDA stops reading at a -1."""
    return visible.split(",")[0].strip() in _NO_DEVICE


def _check_capabilities(count: int) -> None:
    import torch

    built_for = torch.cuda.get_arch_list()  # AMD's architecture names do not match and are ignored
    for i in range(count):
        capability = torch.cuda.get_device_capability(i)
        if uncovered(capability, built_for):
            raise UserError(
                f"the GPU {torch.cuda.get_device_name(i)} has compute capability"
                f" {capability[0]}.{capability[1]}, but torch {torch.__version__} is built only for"
                f" {', '.join(built_for)}; install a torch build for this GPU, hide it with"
                " CUDA_VISIBLE_DEVICES, or use the CPU with train.device=cpu"
            )
