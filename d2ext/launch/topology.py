"""Find the processes of a run: their number, machines and launcher.

Explicit flags come first, then torchrun's environment, then an srun step with several tasks, then
Detectron2's `launch()`, which spawns this machine's processes.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from d2ext.errors import UserError
from d2ext.waiting import waiting_for

# Below Linux's range for outgoing connections: one of these could take a port after its check.
_PORTS = range(15000, 32768)


_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True)
class Topology:
    """The processes of a run.

    Attributes:
        launcher: `self` (this process spawns its machine's ranks), `torchrun` or `srun` (this
            process is one of the ranks).
        num_machines, machine_rank: Values of the flags of these names.
        per_machine: Number of processes on each machine.
        url: Address of the rendezvous, `tcp://host:port`; "" for a single process.
        rank: Global rank of this process; for `self`, of the first process that it spawns.
    """

    launcher: str
    num_machines: int = 1
    machine_rank: int = 0
    per_machine: int = 1
    url: str = ""
    rank: int = 0

    @property
    def world_size(self) -> int:
        """Return the number of processes on all machines."""
        return self.num_machines * self.per_machine

    @property
    def gpu_each(self) -> bool:
        """Return whether the only GPU that this process sees is its own, not the machine's."""
        return self.launcher != "self"

    def starting(self) -> list[str]:
        """Return the launcher's command with which machine 0 starts such a run."""
        machines, each = str(self.num_machines), str(self.per_machine)
        if self.launcher == "srun":
            return ["srun", f"--nodes={machines}", f"--ntasks-per-node={each}"]
        if self.launcher == "torchrun":
            where = "--standalone" if self.num_machines == 1 else f"--nnodes={machines}"
            return ["torchrun", where, f"--nproc-per-node={each}"]
        return []

    def flags(self) -> list[str]:
        """Return the flags of `d2ext train` that start the same processes."""
        if self.launcher != "self" or self.world_size == 1:
            return []
        flags = ["--num-gpus", str(self.per_machine)]
        if self.num_machines > 1:
            flags += ["--num-machines", str(self.num_machines), "--machine-rank", "0"]
            flags += ["--dist-url", self.url]
        return flags


def find_topology(
    env: Mapping[str, str],
    num_gpus: int | None = None,
    num_machines: int | None = None,
    machine_rank: int | None = None,
    dist_url: str | None = None,
    port: int | None = None,
) -> Topology:
    """Return the processes of a run, from flags (None: not given) and the environment.

    Args:
        env: Environment of this process. `NNODES`, `NODE_RANK`, `MASTER_ADDR` and `PORT` or
            `MASTER_PORT` are defaults for the flags, as in MMDetection's scripts.
        num_gpus: `--num-gpus`, processes on this machine.
        num_machines: `--num-machines`.
        machine_rank: `--machine-rank`.
        dist_url: `--dist-url`, `auto` for a free port on this machine.
        port: `train.dist.port` of the config.

    Raises:
        UserError: Numbers contradict each other, or several machines have no address.
    """
    explicit = num_gpus is not None or num_machines is not None
    if not explicit and _TORCHRUN <= set(env):
        return _torchrun(env)
    if not explicit and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _srun(env, dist_url, port)
    machines = num_machines if num_machines is not None else _number(env, "NNODES", 1)
    rank = machine_rank if machine_rank is not None else _number(env, "NODE_RANK", 0)
    per_machine = 1 if num_gpus is None else num_gpus
    if per_machine < 1 or machines < 1:
        raise UserError("--num-gpus and --num-machines must be at least 1")
    if not 0 <= rank < machines:
        raise UserError(
            f"--machine-rank {rank}: the ranks of {machines} machines are 0 to {machines - 1}"
        )
    if machines * per_machine == 1:
        return Topology("self")
    port = port or _port(env)
    if dist_url in (None, "auto"):
        host = env.get("MASTER_ADDR") if machines > 1 else "127.0.0.1"
        if machines > 1 and not (host and port):
            raise UserError(
                "several machines need an address: --dist-url tcp://HOST_OF_MACHINE_0:PORT"
            )
        dist_url = f"tcp://{host}:{port or free_port()}"
    _check_url(dist_url)
    return Topology("self", machines, rank, per_machine, dist_url, rank * per_machine)


def free_port() -> int:
    """Return a port on which this machine can listen and that no other run on it has reserved."""
    for port in _PORTS[os.getpid() % 1000 :: 7]:
        if port_is_free(port) and _reserve(port):
            return port
    raise UserError("no free port between 15000 and 32767; give one with --dist-url")


def _reserve(port: int) -> bool:
    """Reserve a port until this process exits, because the run listens on it only seconds later.

    The reservation is a Linux abstract socket, which disappears with the process.
    """
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0d2ext-port-{port}")
    except OSError:
        mark.close()
        return False
    mark.detach()  # stays open until the process ends
    return True


def port_is_free(port: int) -> bool:
    """Return whether this machine can listen on a port."""
    with socket.socket() as s:
        # As in torch's store, a port in TIME_WAIT counts as free.
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("", port))
        except OSError:
            return False
    return True


def check_rendezvous(topology: Topology, timeout: float) -> None:
    """Check that machine 0 can listen, and that the others reach it within `timeout` seconds.

    Raises:
        UserError: The port is in use, the host is unknown, or machine 0 does not answer.
    """
    host, _, port = topology.url.removeprefix("tcp://").rpartition(":")
    try:
        socket.getaddrinfo(host, int(port))
    except (socket.gaierror, UnicodeError) as e:
        raise UserError(f"--dist-url {topology.url}: the host {host} is unknown") from e
    if topology.machine_rank == 0:
        if not port_is_free(int(port)):
            raise UserError(
                f"port {port} of {topology.url} is in use; choose another one with --dist-url or"
                " PORT"
            )
        return
    deadline = time.monotonic() + timeout
    with waiting_for(f"machine 0 at {topology.url}", f"--dist-timeout gives up ({timeout:g} s)"):
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
                return
            except OSError as e:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"machine 0 was not reached at {topology.url} within {timeout:g} s ({e});"
                        " check that it has started and that its port is open"
                    ) from e
                time.sleep(0.5)


def end_step(env: Mapping[str, str]) -> None:
    """End the srun step that this task belongs to."""
    step = f"{env.get('SLURM_JOB_ID')}.{env.get('SLURM_STEP_ID')}"
    # Without scancel, the other tasks end when they time out.
    with contextlib.suppress(OSError), waiting_for("scancel to answer"):
        subprocess.run(["scancel", step], capture_output=True)


def _torchrun(env: Mapping[str, str]) -> Topology:
    world, per_machine, rank = (int(env[k]) for k in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"))
    if world % per_machine:
        raise UserError(
            f"torchrun started {world} processes, {per_machine} of them on this machine; start"
            " the same number on every machine"
        )
    if env["MASTER_PORT"] == "0":
        raise UserError(
            "torchrun --master-port=0: port 0 is not supported; give a port, or --standalone"
        )
    url = f"tcp://{env['MASTER_ADDR']}:{env['MASTER_PORT']}"
    return Topology("torchrun", world // per_machine, rank // per_machine, per_machine, url, rank)


def _srun(env: Mapping[str, str], dist_url: str | None, port: int | None) -> Topology:
    world, rank = int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_PROCID"])
    machines = int(env.get("SLURM_STEP_NUM_NODES", 1))
    if world % machines or "," in env.get("SLURM_STEP_TASKS_PER_NODE", ""):
        raise UserError(
            f"srun started {world} tasks on {machines} nodes unevenly; give --ntasks-per-node"
        )
    if int(env.get("SLURM_LOCALID", rank % (world // machines))) != rank % (world // machines):
        raise UserError("srun distributed the tasks cyclically; give --distribution=block")
    if dist_url in (None, "auto"):
        port = port or _port(env)
        if port is None:
            # The same for all tasks of a step, but different for another step.
            number = 101 * int(env.get("SLURM_JOB_ID", 0)) + int(env.get("SLURM_STEP_ID", 0))
            port = _PORTS[number % len(_PORTS)]
        dist_url = f"tcp://{_first_node(env)}:{port}"
    _check_url(dist_url)
    per_machine = world // machines
    return Topology("srun", machines, rank // per_machine, per_machine, dist_url, rank)


def _first_node(env: Mapping[str, str]) -> str:
    try:
        return subprocess.run(
            ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, KeyError, IndexError) as e:
        raise UserError(
            f"scontrol does not list the nodes of this srun step ({e}); give --dist-url"
            " tcp://HOST_OF_FIRST_TASK:PORT"
        ) from e


def _check_url(url: str) -> None:
    port = url.rpartition(":")[2]
    if not url.startswith("tcp://") or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--dist-url {url} is not a valid address; give tcp://HOST:PORT")


def _port(env: Mapping[str, str]) -> int | None:
    for name in ("PORT", "MASTER_PORT"):
        if port := _number(env, name, None):
            if port > 65535:
                raise UserError(
                    f"the environment's {name}={port} is not a port; the highest one is 65535"
                )
            return port
    return None


def _number(env: Mapping[str, str], name: str, default: int | None) -> int | None:
    value = env.get(name, "")
    if not value:
        return default
    if not value.isdecimal():
        raise UserError(f"the environment's {name}={value} is not a number")
    return int(value)
