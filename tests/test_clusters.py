"""docs/clusters.md: the Kubernetes manifest is consistent, and its commands train.

The environment of the pods is that of the Kubeflow training operator 1.9 (`setPodEnv` and
`SetDefaults_PyTorchJob` in its sources).
"""

import copy
import os
import re
import signal
import subprocess
import time

import pytest
import torch
import yaml

from d2ext.cli.train import parse
from d2ext.config.load import load_config
from d2ext.launch.topology import find_topology, free_port
from tests.conftest import LITE0, REPO, SCRIPT, SHEBANG

PAGE = (REPO / "docs" / "clusters.md").read_text()
MANIFEST, TORCHRUN = (
    yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)
)
# Small images, no weights to download.
LESS = [
    "train.max_iter=100000",
    "train.init_checkpoint=",
    "train.reference_batch_size=2",
    "train.reference_world_size=2",
    "train.log_period=1",
    "train.eval_period=0",
    "train.checkpointer.period=100000",
    "dataloader.train.num_workers=0",
    "dataloader.val.num_workers=0",
    "dataloader.train.mapper.augmentations[0].short_edge_length=96",
    "dataloader.val.mapper.augmentations[0].short_edge_length=96",
]


def _replicas(manifest: dict) -> dict:
    return manifest["spec"]["pytorchReplicaSpecs"]


def _container(manifest: dict, role: str) -> dict:
    (container,) = _replicas(manifest)[role]["template"]["spec"]["containers"]
    return container


def _pods(manifest: dict) -> list[tuple[str, dict[str, str]]]:
    """Return the role and the environment of each pod, as the operator creates them."""
    name, pods = manifest["metadata"]["name"], []
    total = sum(spec["replicas"] for spec in _replicas(manifest).values())
    processes = manifest["spec"]["nprocPerNode"]
    for role, spec in _replicas(manifest).items():
        for index in range(spec["replicas"]):
            rank = str(index + (role == "Worker"))
            env = {
                "PYTHONUNBUFFERED": "1",
                "MASTER_PORT": "23456",
                "PET_MASTER_PORT": "23456",
                "MASTER_ADDR": f"{name}-master-0",
                "PET_MASTER_ADDR": f"{name}-master-0",
                "WORLD_SIZE": str(total * int(processes)),
                "RANK": rank,
                "PET_NODE_RANK": rank,
                "PET_NPROC_PER_NODE": processes,
                "PET_NNODES": str(total),
            }
            pods.append((role, env))
    return pods


def _words(command: list[str], env: dict[str, str]) -> list[str]:
    """Return a container's command after Kubernetes has replaced `$(NAME)`."""
    return [re.sub(r"\$\((\w+)\)", lambda m: env.get(m[1], m[0]), word) for word in command]


def test_the_manifest_is_consistent():
    spec = MANIFEST["spec"]
    assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert spec["runPolicy"]["backoffLimit"] > 0  # otherwise the restarts never end
    assert _replicas(MANIFEST)["Master"]["replicas"] == 1  # the operator allows no other number
    for role, replica in _replicas(MANIFEST).items():
        assert replica["restartPolicy"] == "OnFailure"
        pod, container = replica["template"]["spec"], _container(MANIFEST, role)
        assert container["name"] == "pytorch"  # the operator looks for this name
        assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == spec["nprocPerNode"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in volumes[mounts["/shared"]]
        paths = [word for word in container["command"] if "=/" in word]
        assert len(paths) == 5 and all("=/shared/" in path for path in paths)


def test_each_pod_is_a_machine():
    pods = _pods(MANIFEST)
    assert len(pods) == 2
    for machine, (role, env) in enumerate(pods):
        program, name, *arguments = _words(_container(MANIFEST, role)["command"], env)
        assert (program, name) == ("d2ext", "train")
        args = parse(arguments)
        assert args.resume and args.auto_scale_lr and args.work_dir == "/shared/runs/mine"
        load_config(args.config_file, args.overrides)
        flags = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
        topology = find_topology(env, *flags)
        assert (topology.launcher, topology.world_size, topology.per_machine) == ("self", 16, 8)
        assert (topology.machine_rank, topology.rank) == (machine, 8 * machine)
        assert topology.url == "tcp://d2ext-master-0:23456"


def test_without_flags_each_pod_trains_on_its_own():
    for _, env in _pods(MANIFEST):
        assert find_topology(env).world_size == 1


def test_torchrun_takes_its_flags_from_the_operator(monkeypatch):
    from torch.distributed.run import parse_args

    program, *arguments = TORCHRUN["command"]
    assert program == "torchrun"
    for machine, (_, env) in enumerate(_pods(MANIFEST)):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        args = parse_args(arguments)
        assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", machine)
        assert (args.master_addr, args.master_port) == ("d2ext-master-0", 23456)
        assert args.module and args.training_script == "d2ext"
        assert parse(args.training_script_args[1:]).resume


def test_variables_of_services():
    """With the flags of the page's table, one process per machine finds all ranks."""
    azure = dict(NODE_RANK="1", MASTER_ADDR="a", MASTER_PORT="6105", RANK="1", WORLD_SIZE="2")
    vertex = dict(RANK="1", WORLD_SIZE="2", MASTER_ADDR="a", MASTER_PORT="6105")
    for service, env in (("Azure", azure), ("Vertex", vertex)):
        (typed,) = re.findall(rf"^\| {service}.*\| `(--num-gpus .*)` \|$", PAGE, re.M)
        for name, value in env.items():
            typed = typed.replace(f"${name}", value)
        args = parse([str(REPO / LITE0), *typed.split()])
        flags = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
        topology = find_topology({**env, "LOCAL_RANK": "0"}, *flags)
        assert (topology.world_size, topology.rank, topology.url) == (16, 8, "tcp://a:6105")


@pytest.fixture
def shared(tmp_path, tiny_root, d2ext_command):
    """Return a folder like the manifest's `/shared`, with data, and `bin` with the programs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "data").mkdir()
    for program, text in (("d2ext", SCRIPT), ("torchrun", _TORCHRUN)):
        file = tmp_path / "bin" / program
        file.write_text(f"{SHEBANG}{text}")
        file.chmod(0o755)
    for split, file in (("train", "a.json"), ("val", "b.json")):
        folder = tiny_root / "balloon" / split
        (tmp_path / "data" / split).symlink_to(folder)
        output = ["--images", folder, "--classes", "balloon", "--output", tmp_path / "data" / file]
        done = d2ext_command("convert", "via", folder / "via_region_data.json", *output)
        assert done.status == 0, done.stderr
    return tmp_path


_TORCHRUN = "from torch.distributed.run import main\n\nmain()\n"


@pytest.fixture
def start_pods(shared):
    """Start the container's command in each of two pods, with one process on this machine."""
    started = []

    def start(command: list[str], *overrides: str) -> list[subprocess.Popen]:
        manifest = copy.deepcopy(MANIFEST)
        manifest["spec"]["nprocPerNode"] = "1"
        port, pods = str(free_port()), []
        for _, env in _pods(manifest):
            # Both pods are this machine, which does not know the name of the service.
            env |= {"MASTER_ADDR": "127.0.0.1", "PET_MASTER_ADDR": "127.0.0.1"}
            env |= {"MASTER_PORT": port, "PET_MASTER_PORT": port, "PYTHONPATH": str(REPO)}
            env |= {"OMP_NUM_THREADS": "1", "PATH": f"{shared / 'bin'}:{os.environ['PATH']}"}
            words = [w.replace("/shared", str(shared)) for w in _words(command, env)]
            log = open(shared / f"pod-{len(started)}.log", "w+")
            process = subprocess.Popen(
                [*words, *LESS, *overrides],
                env=os.environ | env,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            started.append((process, log))
            pods.append(process)
        return pods

    def output() -> str:
        return "\n".join((shared / f"pod-{i}.log").read_text() for i in range(len(started)))

    start.output = output
    yield start
    for process, log in started:
        log.close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_step(pods: list[subprocess.Popen], start_pods, run) -> None:
    deadline = time.time() + 300
    metrics = run / "metrics.json"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
        assert all(pod.poll() is None for pod in pods), start_pods.output()
        assert time.time() < deadline, start_pods.output()
        time.sleep(0.1)


def _done(run) -> int:
    """Return the iterations of the newest checkpoint."""
    file = run / (run / "last_checkpoint").read_text()
    return torch.load(file, weights_only=True, map_location="cpu")["iterations_done"]


@pytest.mark.slow
def test_the_containers_command_survives_an_eviction(start_pods, shared):
    """TERM in one pod stops both with status 75; the same command resumes and ends with 0."""
    run, command = shared / "runs" / "mine", _container(MANIFEST, "Master")["command"]
    pods = start_pods(command)
    _wait_for_step(pods, start_pods, run)
    pods[1].send_signal(signal.SIGTERM)
    assert [pod.wait(timeout=120) for pod in pods] == [75, 75], start_pods.output()
    stopped = _done(run)
    pods = start_pods(command, f"train.max_iter={stopped + 2}")
    assert [pod.wait(timeout=300) for pod in pods] == [0, 0], start_pods.output()
    assert _done(run) == stopped + 2
    assert f"at iteration {stopped}" in start_pods.output()
    assert (run / "model_final.pth").is_file()


@pytest.mark.nightly
@pytest.mark.slow
def test_torchrun_in_the_pods(start_pods, shared):
    data = _container(MANIFEST, "Master")["command"][-4:]
    pods = start_pods([*TORCHRUN["command"], *data], "train.max_iter=2")
    assert [pod.wait(timeout=300) for pod in pods] == [0, 0], start_pods.output()
    assert _done(shared / "runs" / "mine") == 2
