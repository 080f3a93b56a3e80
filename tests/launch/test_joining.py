"""Ranks that torchrun or srun started join the process group, or end with one line."""

import datetime
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from torch.multiprocessing import ProcessRaisedException

from d2ext.errors import UserError
from d2ext.launch.collectives import check_own_gpus
from d2ext.launch.spawn import join_ranks, start_ranks
from d2ext.launch.topology import Topology, find_topology, free_port
from d2ext.run_dir.schema import RankFailure, read_record
from tests.conftest import checkout_env

JOIN = """
import os, sys
from pathlib import Path

import torch.distributed as dist

from d2ext.launch.spawn import run_here
from d2ext.launch.topology import find_topology

Path("run").mkdir(exist_ok=True)
run_here(find_topology(os.environ), lambda: print("joined"), 60, sys.argv[1], Path("run"))
dist.destroy_process_group()
os._exit(0)  # as `start_ranks` does
"""
# Rank 1 dies before the first collective, in which NCCL would connect.
LOST = """
import os

if os.environ["RANK"] == "1":
    import torch.distributed as dist
    from detectron2.utils import comm

    dist.init_process_group("gloo")
    comm.create_local_process_group(2)
    os._exit(0)
"""
# Each rank sees one GPU; gloo stands for NCCL.
GPU = """
import os
from types import SimpleNamespace

import torch
import torch.distributed as dist

gpus, connect = os.environ["GPUS"].split(","), dist.init_process_group
dist.init_process_group = lambda backend, **options: connect("gloo", **options)
torch.cuda.device_count, torch.cuda.current_device = lambda: 1, lambda: 0

def set_device(index):
    assert index == 0  # there is no other one


torch.cuda.set_device = set_device
torch.cuda.get_device_properties = lambda i: SimpleNamespace(uuid=gpus[int(os.environ["RANK"])])
"""
DUPLICATE_GPU = """\
NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage (run with \
NCCL_DEBUG=WARN for details), NCCL version 2.27.3
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 65000"""
BUSY_GPU = """\
CUDA error: CUDA-capable device(s) is/are busy or unavailable
CUDA kernel errors might be asynchronously reported at some other API call.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."""
SPAWNED = f"""

-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "launch.py", line 120, in _distributed_worker
    raise RuntimeError("Error: not this line")
torch.AcceleratorError: {BUSY_GPU}
"""


def _ranks(folder, code, device):
    """Run both ranks of a torchrun start; return their status and error output."""
    (folder / "ranks.py").write_text(code)
    env = checkout_env() | dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    env |= dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", OMP_NUM_THREADS="1")
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "ranks.py", device],
            env=env | {"RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        return [(p.communicate(timeout=300)[1].splitlines(), p.returncode) for p in processes]
    finally:
        for process in processes:
            process.kill()


def test_a_peer_that_dies_before_the_first_collective_is_one_line(tmp_path):
    (lines, status), _ = _ranks(tmp_path, LOST + JOIN, "cpu")
    assert status == 1 and not any("Traceback" in line for line in lines), lines
    assert lines[-1].startswith("error: the processes could not connect at tcp://127.0.0.1:")
    failure = read_record(tmp_path / "run" / "errors" / "rank-0.json", RankFailure)
    assert failure.kind == "communication"  # so that a Slurm job is requeued


@pytest.mark.parametrize("gpus", [pytest.param("A,B", marks=pytest.mark.nightly), "A,A"])
def test_each_rank_needs_a_gpu_of_its_own(tmp_path, monkeypatch, gpus):
    monkeypatch.setenv("GPUS", gpus)
    for lines, status in _ranks(tmp_path, GPU + JOIN, "cuda"):
        if gpus == "A,B":
            assert status == 0, lines
        else:
            assert status == 2 and lines[-1].startswith("error: ranks 0 and 1 on "), lines
            assert "use the same GPU" in lines[-1]


def test_gpus_of_different_machines_may_have_the_same_id(monkeypatch):
    gathered = [("node0", "A"), ("node1", "A")]
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda i: SimpleNamespace(uuid="A"))
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda mine: gathered)
    check_own_gpus()
    gathered[1] = gathered[0]
    with pytest.raises(UserError, match="ranks 0 and 1 on node0 use the same GPU"):
        check_own_gpus()


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        (DUPLICATE_GPU, "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 65000"),
        (BUSY_GPU, "CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    ],
)
def test_the_line_of_nccl_that_states_the_error_is_shown(monkeypatch, text, stated):
    def refuse(*args, **options):
        raise dist.DistBackendError(text)

    monkeypatch.setattr(dist, "init_process_group", refuse)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError) as e:
        join_ranks(Topology("torchrun", 1, 0, 2, "tcp://node0:29400", 1), 60, "cpu")
    assert str(e.value).startswith("the processes could not connect at tcp://node0:29400: ")
    assert str(e.value).endswith(stated)


@pytest.mark.parametrize(
    ("device", "cores", "more", "threads"),
    [
        ("cpu", 96, {}, [12]),
        ("cpu", 12, {}, [12]),  # srun has bound the task
        ("cuda", 96, {}, [6]),  # the loader workers get as many
        ("cuda", 96, {"OMP_NUM_THREADS": "96"}, []),
    ],
)
def test_srun_tasks_share_the_cores_of_their_node(monkeypatch, device, cores, more, threads):
    def refuse(*args, **options):
        raise RuntimeError("no rendezvous in this test")

    found = []
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    monkeypatch.setattr(os, "environ", env | {"SLURM_CPUS_ON_NODE": "96"} | more)
    monkeypatch.setattr("torch.get_num_threads", lambda: cores)
    monkeypatch.setattr("torch.set_num_threads", found.append)
    monkeypatch.setattr("cv2.setNumThreads", lambda number: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda i: None)
    monkeypatch.setattr(dist, "init_process_group", refuse)
    with pytest.raises(UserError):
        join_ranks(Topology("srun", 1, 0, 8, "tcp://node0:29400", 1), 60, device)
    assert found == threads


def test_with_several_machines_the_network_interface_is_mentioned(monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] connect [127.0.1.1]:40: refused")

    monkeypatch.setattr(dist, "init_process_group", refuse)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match="connect .*: refused; .* with GLOO_SOCKET_IFNAME and NCCL"):
        join_ranks(Topology("torchrun", 2, 1, 1, "tcp://node0:29400", 1), 60, "cpu")


def test_errors_of_spawned_ranks_are_shown_likewise(tmp_path, monkeypatch):
    def launch(*args, timeout: datetime.timedelta, **options):
        raise ProcessRaisedException(SPAWNED, 1, 7)

    monkeypatch.setattr("d2ext.launch.spawn.launch", launch)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match="torch.AcceleratorError: CUDA error: .* unavailable$"):
        start_ranks(find_topology({}, num_gpus=2), print, (), 60, "cpu", tmp_path / "run")
