"""Which processes a run has: flags first, then torchrun, then srun, then one's own."""

import socket

import pytest

from d2ext.engine.launch import find_layout, free_port, port_is_free
from d2ext.errors import UserError

TORCHRUN = dict(
    RANK="5", WORLD_SIZE="8", LOCAL_WORLD_SIZE="4", MASTER_ADDR="node0", MASTER_PORT="29400"
)


def test_one_process_meets_nobody():
    layout = find_layout({})
    assert (layout.starter, layout.world_size, layout.url) == ("self", 1, "")
    # A batch script's variables say nothing of this process.
    assert find_layout(dict(SLURM_PROCID="0", SLURM_NTASKS="8")).world_size == 1


def test_one_machine_finds_a_port_below_the_ephemeral_range():
    layout = find_layout({}, num_gpus=2)
    host, _, port = layout.url.removeprefix("tcp://").rpartition(":")
    assert (layout.world_size, host) == (2, "127.0.0.1")
    assert 1024 < int(port) < 32768 and port_is_free(int(port))


def test_machines():
    layout = find_layout({}, num_gpus=4, num_machines=2, machine_rank=1, dist_url="tcp://a:1234")
    assert (layout.world_size, layout.per_machine, layout.rank) == (8, 4, 4)
    assert layout.url == "tcp://a:1234"


def test_the_guide_s_environment_is_a_default():
    env = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="a", PORT="29501")
    layout = find_layout(env, num_gpus=8)
    assert (layout.num_machines, layout.machine_rank, layout.url) == (2, 1, "tcp://a:29501")
    assert find_layout(env, 8, machine_rank=0, port=7777).url == "tcp://a:7777"
    assert find_layout(dict(PORT="29501"), 2).url == "tcp://127.0.0.1:29501"


def test_torchrun_is_believed_unless_flags_speak():
    layout = find_layout(TORCHRUN)
    assert (layout.starter, layout.rank, layout.world_size) == ("torchrun", 5, 8)
    assert (layout.num_machines, layout.machine_rank, layout.per_machine) == (2, 1, 4)
    assert find_layout(TORCHRUN, num_gpus=2).starter == "self"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(num_gpus=0), "count from 1"),
        (dict(num_machines=2, machine_rank=2), "ranks 0 to 1"),
        (dict(num_machines=2, machine_rank=-1), "ranks 0 to 1"),
        (dict(num_machines=2), "--dist-url tcp://"),
        (dict(num_gpus=2, dist_url="node0:1234"), "give tcp://HOST:PORT"),
        (dict(num_gpus=2, dist_url="tcp://node0"), "give tcp://HOST:PORT"),
        (dict(num_gpus=2, dist_url="tcp://node0:99999"), "give tcp://HOST:PORT"),
        (dict(env=dict(NNODES="two")), "NNODES=two"),
        (dict(env=TORCHRUN | dict(LOCAL_WORLD_SIZE="3")), "the same number"),
    ],
)
def test_contradictions(flags, words):
    with pytest.raises(UserError, match=words):
        find_layout(flags.pop("env", {}), **flags)


def test_a_port_in_use_is_seen():
    port = free_port()
    with socket.socket() as s:
        s.bind(("127.0.0.1", port))
        s.listen()
        assert not port_is_free(port)
        assert free_port() != port
