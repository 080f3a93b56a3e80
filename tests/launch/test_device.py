"""The device to train on: the CPU is used only if there is no GPU, or on request."""

import pytest

from d2ext.doctor import report
from d2ext.errors import UserError
from d2ext.launch.device import (
    choose_device,
    expected_gpu,
    gpu_facts,
    uncovered,
    why_no_gpu,
)
from d2ext.run_dir.metadata import read_run_info, write_run_info
from d2ext.run_dir.schema import RunInfo


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """Return a folder of device files without GPUs, with no GPU variables in the environment."""
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "D2EXT_PLAN_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("null", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_machine_without_a_gpu_trains_on_the_cpu(dev):
    assert choose_device("cuda", 2, dev=dev)[0] == "cpu"


@pytest.mark.parametrize("file", ["nvidia0", "nvidia3"])
def test_a_gpu_that_torch_does_not_find_is_an_error_with_its_reason(dev, monkeypatch, file):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\n")

    (dev / file).touch()
    monkeypatch.setattr("torch.cuda.init", init)
    with pytest.raises(UserError) as e:
        choose_device("cuda", 1, dev=dev)
    for words in (file, "driver on your system is too old (found version 11040)", "device=cpu"):
        assert words in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "granted",
    [{"SLURM_JOB_GPUS": "0"}, {"SLURM_STEP_GPUS": "2,3"}, {"SLURM_GPUS_ON_NODE": "8"}],
)
def test_gpus_that_slurm_granted_are_expected(dev, monkeypatch, granted):
    for name, value in granted.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="Slurm granted GPUs .*torch finds no GPU .*device=cpu"):
        choose_device("cuda", 8, gpu_each=True, dev=dev)


@pytest.mark.parametrize("hidden", ["-1", "", "-1,0", "NoDevFiles"])
def test_hidden_gpus_mean_the_cpu(dev, monkeypatch, hidden):
    (dev / "nvidia0").touch()
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose_device("cuda", 1, dev=dev)[0] == "cpu"


def test_the_cpu_and_plans_for_other_machines_need_no_gpu(dev, monkeypatch):
    (dev / "nvidia0").touch()
    assert choose_device("cpu", 1, dev=dev)[0] == "cpu"
    monkeypatch.setenv("D2EXT_PLAN_GPUS", "4")
    assert choose_device("cuda", 4, dev=dev)[0] == "cuda"


def test_an_index_without_a_gpu_is_named(dev, monkeypatch):
    (dev / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=7"):
        choose_device("cuda", 1, dev=dev)


def test_slurm_without_gpus_does_not_expect_a_gpu():
    assert expected_gpu({"SLURM_GPUS_ON_NODE": "0"}, dev=report.Path("/nonexistent")) is None
    assert why_no_gpu()


@pytest.mark.parametrize(
    ("capability", "built_for", "expected"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_120"], True),
        ((6, 1), ["sm_75", "compute_120"], True),
        ((8, 6), ["sm_75", "sm_80"], False),
        ((12, 1), ["sm_90a", "sm_120"], False),
        ((12, 0), ["sm_90", "compute_90"], False),
        ((9, 0), ["gfx90a", "gfx942"], False),
        ((9, 0), [], False),
    ],
)
def test_capabilities_without_kernels(capability, built_for, expected):
    assert uncovered(capability, built_for) == expected


def test_a_gpu_without_kernels_is_an_error(dev, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_80", "sm_90"])
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda i: [(9, 0), (6, 1)][i])
    monkeypatch.setattr("torch.cuda.get_device_name", lambda i: f"Card {i}")
    assert choose_device("cuda", 1, dev=dev)[0] == "cuda"
    with pytest.raises(UserError, match="Card 1 has .* capability 6.1, .* only for sm_80, sm_90"):
        choose_device("cuda", 2, dev=dev)


def test_a_run_records_its_gpu_and_the_versions_of_its_libraries(tmp_path, monkeypatch):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\n")
    monkeypatch.setattr("d2ext.launch.device._DRIVER", driver)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 91200)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: (2, 27, 3))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Card")
    name, versions = gpu_facts("cuda")
    assert name == "Card"
    assert versions == {"driver": "580.65.06", "CUDA": "13.0", "cuDNN": "91200", "NCCL": "2.27.3"}
    write_run_info(tmp_path, RunInfo(versions=versions, machine=f"2 x {name}"))
    info = read_run_info(tmp_path)
    assert info.machine.endswith(" CPU cores, 2 x Card")
    assert info.versions["driver"] == "580.65.06" and "torch" in info.versions
    assert gpu_facts("cpu") == ("", {})


def test_the_doctor_reports_both_problems(monkeypatch):
    facts = {"gpus": [], "built_for": ["sm_80"], "reason": "The driver is too old"}
    monkeypatch.setattr(report, "probe", lambda: ({"torch": facts}, None))
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = str(report.diagnose())
    assert "Slurm granted GPUs (SLURM_JOB_GPUS=0), but torch finds no GPU (The driver" in found
    assert found.endswith("training cannot work")
    facts["gpus"] = [("Card", 6, 1)]
    assert "problem: the GPU Card has compute capability 6.1" in str(report.diagnose())
