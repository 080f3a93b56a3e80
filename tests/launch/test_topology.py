"""The processes of a run, from flags, torchrun, srun or the machine, in that order."""

import os
import socket

import pytest

from d2ext.errors import UserError
from d2ext.launch.topology import find_topology, free_port, port_is_free

TORCHRUN = dict(
    RANK="5", WORLD_SIZE="8", LOCAL_WORLD_SIZE="4", MASTER_ADDR="node0", MASTER_PORT="29400"
)


def test_one_process_needs_no_rendezvous():
    topology = find_topology({})
    assert (topology.launcher, topology.world_size, topology.url) == ("self", 1, "")
    # The variables of a batch script do not apply to this process.
    assert find_topology(dict(SLURM_PROCID="0", SLURM_NTASKS="8")).world_size == 1


def test_one_machine_finds_a_port_below_the_ephemeral_range():
    topology = find_topology({}, num_gpus=2)
    host, _, port = topology.url.removeprefix("tcp://").rpartition(":")
    assert (topology.world_size, host) == (2, "127.0.0.1")
    assert 1024 < int(port) < 32768 and port_is_free(int(port))


def test_flags_for_several_machines():
    topology = find_topology(
        {}, num_gpus=4, num_machines=2, machine_rank=1, dist_url="tcp://a:1234"
    )
    assert (topology.world_size, topology.per_machine, topology.rank) == (8, 4, 4)
    assert topology.url == "tcp://a:1234"


def test_the_environment_of_mmdetection_is_the_default():
    env = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="a", PORT="29501")
    topology = find_topology(env, num_gpus=8)
    assert (topology.num_machines, topology.machine_rank, topology.url) == (2, 1, "tcp://a:29501")
    assert find_topology(env, 8, machine_rank=0, port=7777).url == "tcp://a:7777"
    assert find_topology(dict(PORT="29501"), 2).url == "tcp://127.0.0.1:29501"
    one_machine = dict(PORT="29501", MASTER_ADDR="left.over")
    assert find_topology(one_machine, 2).url == "tcp://127.0.0.1:29501"


def test_flags_take_precedence_over_torchrun():
    topology = find_topology(TORCHRUN)
    assert (topology.launcher, topology.rank, topology.world_size) == ("torchrun", 5, 8)
    assert (topology.num_machines, topology.machine_rank, topology.per_machine) == (2, 1, 4)
    assert find_topology(TORCHRUN, num_gpus=2).launcher == "self"
    assert topology.gpu_each and not find_topology(TORCHRUN, num_gpus=2).gpu_each
    with pytest.raises(UserError, match="--master-port=0: port 0 is not supported"):
        find_topology(TORCHRUN | {"MASTER_PORT": "0"})


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """Return the environment of task 3 of a 2 x 2 step, with a scontrol that knows its nodes."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return dict(
        SLURM_STEP_NUM_TASKS="4",
        SLURM_STEP_NUM_NODES="2",
        SLURM_STEP_TASKS_PER_NODE="2(x2)",
        SLURM_STEP_NODELIST="n[1-2]",
        SLURM_PROCID="3",
        SLURM_LOCALID="1",
        SLURM_JOB_ID="7",
        SLURM_STEP_ID="0",
    )


def test_an_srun_step_of_several_tasks(srun):
    topology = find_topology(srun)
    assert (topology.launcher, topology.rank, topology.world_size) == ("srun", 3, 4)
    assert (topology.num_machines, topology.machine_rank, topology.per_machine) == (2, 1, 2)
    host, _, port = topology.url.rpartition(":")
    assert host == "tcp://n1" and 1024 < int(port) < 32768
    assert find_topology(srun | dict(SLURM_PROCID="0", SLURM_LOCALID="0")).url == topology.url
    assert find_topology(srun | dict(SLURM_STEP_ID="1")).url != topology.url
    assert find_topology(srun | dict(PORT="29501")).url == "tcp://n1:29501"
    assert find_topology(srun, port=29502).url == "tcp://n1:29502"
    assert find_topology(srun, dist_url="tcp://n9:29503").url == "tcp://n9:29503"
    assert find_topology(srun, num_gpus=2).launcher == "self"
    assert find_topology(srun | TORCHRUN).launcher == "torchrun"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(SLURM_STEP_TASKS_PER_NODE="3,1"), "--ntasks-per-node"),
        (dict(SLURM_PROCID="1", SLURM_LOCALID="0"), "--distribution=block"),
        (dict(SLURM_STEP_NODELIST="elsewhere"), "scontrol does not list"),
    ],
)
def test_invalid_srun_steps(srun, more, words):
    with pytest.raises(UserError, match=words):
        find_topology(srun | more)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(num_gpus=0), "at least 1"),
        (dict(num_machines=2, machine_rank=2), "machines are 0 to 1"),
        (dict(num_machines=2, machine_rank=-1), "machines are 0 to 1"),
        (dict(num_machines=2), "--dist-url tcp://"),
        (dict(num_gpus=2, dist_url="node0:1234"), "give tcp://HOST:PORT"),
        (dict(num_gpus=2, dist_url="tcp://node0"), "give tcp://HOST:PORT"),
        (dict(num_gpus=2, dist_url="tcp://node0:99999"), "give tcp://HOST:PORT"),
        (dict(env=dict(NNODES="two")), "NNODES=two"),
        (dict(num_gpus=2, env=dict(PORT="70000")), "PORT=70000"),
        (dict(env=TORCHRUN | dict(LOCAL_WORLD_SIZE="3")), "the same number"),
    ],
)
def test_contradictions(flags, words):
    with pytest.raises(UserError, match=words):
        find_topology(flags.pop("env", {}), **flags)


def test_a_port_in_use_is_detected():
    port = free_port()
    with socket.socket() as s:
        s.bind(("127.0.0.1", port))
        s.listen()
        assert not port_is_free(port)
        assert free_port() != port
