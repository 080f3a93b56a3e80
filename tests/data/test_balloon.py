"""The balloon dataset: drawn, downloaded from a real server, checked; and nothing half-done."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from d2ext.data.balloon import DIGEST, prepare_balloon
from d2ext.data.formats.via import read_via
from d2ext.data.synthetic import draw_balloons, is_synthetic
from d2ext.errors import UserError

ANNOTATIONS = "via_region_data.json"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its relative name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


def digest_of(folder: Path) -> str:
    """The digest of a dataset, as `d2ext.data.balloon` describes it."""
    lines = []
    for split in ("train", "val"):
        via = json.loads((folder / split / ANNOTATIONS).read_text())
        for name in sorted([ANNOTATIONS, *(e["filename"] for e in via.values())]):
            file_digest = hashlib.sha256((folder / split / name).read_bytes()).hexdigest()
            lines.append(f"{split}/{name} {file_digest}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset that is not marked as drawn."""
    root = tmp_path_factory.mktemp("small")
    draw_balloons(root, num_train=3, num_val=2, long_side=160)
    (root / "SYNTHETIC").unlink()
    return root


def zipped(folder: Path, path: Path, **extra: str) -> bytes:
    """A zip of train and val with the litter that macOS adds, and `extra` members."""
    with zipfile.ZipFile(path, "w") as z:
        for name, content in contents(folder).items():
            z.writestr(f"balloon/{name}", content)
            z.writestr(f"__MACOSX/balloon/{name}", b"litter")
        for name in ("balloon/.DS_Store", "balloon/train/.DS_Store", *extra.values()):
            z.writestr(name, b"litter")
    return path.read_bytes()


def test_drawing_is_deterministic(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_balloons(tmp_path / folder, num_train=2, num_val=1, long_side=160, seed=seed)
    a, b, c = (contents(tmp_path / folder) for folder in "abc")
    names = ["train/train_000.jpg", "train/train_001.jpg", f"train/{ANNOTATIONS}"]
    assert sorted(a) == ["SYNTHETIC", *names, "val/val_000.jpg", f"val/{ANNOTATIONS}"]
    assert a == b
    assert len({a[n] for n in a} & {c[n] for n in c}) == 1  # the marker


def test_drawn_outlines_lie_on_the_edges_of_what_is_seen(tmp_path: Path) -> None:
    draw_balloons(tmp_path, num_train=12, num_val=0)
    records = read_via(tmp_path / "train" / ANNOTATIONS, tmp_path / "train", ["balloon"])
    assert {r["width"] > r["height"] for r in records} == {True, False}
    assert all(560 <= max(r["width"], r["height"]) <= 720 for r in records)
    on_edge, elsewhere = [], []
    overlapping = 0
    for record in records:
        gray = cv2.imread(record["file_name"], cv2.IMREAD_GRAYSCALE).astype(np.float32)
        gray = cv2.GaussianBlur(gray, (0, 0), 1.5)
        steep = np.hypot(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))
        masks = []
        for annotation in record["annotations"]:
            polygon = np.array(annotation["segmentation"][0]).reshape(-1, 2)
            assert (polygon >= 0.5).all()
            assert (polygon <= (record["width"] - 0.5, record["height"] - 0.5)).all()
            mask = np.zeros(gray.shape, np.uint8)
            cv2.fillPoly(mask, [np.int32(polygon - 0.5)], 1)
            masks.append(mask)
            inside = cv2.erode(mask, np.ones((15, 15)), borderValue=0) > 0
            line = cv2.polylines(np.zeros_like(mask), [np.int32(polygon - 0.5)], True, 1) > 0
            line[[0, -1]] = line[:, [0, -1]] = False  # the frame cuts balloons without an edge
            if inside.any() and line.any():
                on_edge.append(steep[line].mean())
                elsewhere.append(steep[inside].mean())
        boxes = [cv2.boundingRect(m) for m in masks]
        for i, (x, y, w, h) in enumerate(boxes):
            for p, q, r, s in boxes[:i]:
                overlapping += x < p + r and p < x + w and y < q + s and q < y + h
        # Visible outlines: two balloons hardly share a pixel.
        shared = (np.sum(masks, axis=0) > 1).sum() if masks else 0
        assert shared <= 0.05 * sum(int(m.sum()) for m in masks)
    assert np.mean(on_edge) > 3 * np.mean(elsewhere)
    assert overlapping > 10


def test_without_a_network_a_synthetic_set_is_drawn_and_kept(
    tmp_path: Path, closed_port: str
) -> None:
    message = prepare_balloon(tmp_path / "new" / "root", url=closed_port)
    target = tmp_path / "new" / "root" / "balloon"
    assert "synthetic" in message and "refused" in message and str(target) in message
    assert "60 + 15 images" in message
    assert is_synthetic(target)
    assert "synthetic" in (target / "SYNTHETIC").read_text()
    assert [p.name for p in target.parent.iterdir()] == ["balloon"]
    made = contents(target)
    again = prepare_balloon(target.parent)  # would reach for the network if it looked for photos
    assert "synthetic" in again and "delete it" in again and "60 + 15 images" in again
    assert contents(target) == made


def test_the_download_is_unpacked_and_checked(
    tmp_path: Path, small: Path, server: Any, closed_port: str
) -> None:
    url = server.put("balloon.zip", zipped(small, tmp_path / "z.zip"))
    digest = digest_of(small)
    message = prepare_balloon(tmp_path / "root", url=url, digest=digest)
    assert "downloaded" in message and "3 + 2 images" in message and "synthetic" not in message
    assert contents(tmp_path / "root") == {f"balloon/{k}": v for k, v in contents(small).items()}
    # It is there now, so no server is asked, not even for a drawn one.
    for synthetic in (False, True):
        kept = prepare_balloon(tmp_path / "root", synthetic, url=closed_port, digest=digest)
        assert "photos (3 + 2 images" in kept


def test_an_empty_folder_is_filled(tmp_path: Path, small: Path, server: Any) -> None:
    (tmp_path / "root" / "balloon").mkdir(parents=True)
    url = server.put("balloon.zip", zipped(small, tmp_path / "z.zip"))
    prepare_balloon(tmp_path / "root", url=url, digest=digest_of(small))
    assert contents(tmp_path / "root" / "balloon") == contents(small)


def test_a_malicious_archive_writes_nothing_outside(
    tmp_path: Path, small: Path, server: Any
) -> None:
    archive = zipped(
        small,
        tmp_path / "z.zip",
        up="balloon/train/../../../../evil",
        root=f"{tmp_path}/evil",
        short="../evil",
        dots="balloon/train/..",
    )
    url = server.put("balloon.zip", archive)
    prepare_balloon(tmp_path / "root", url=url, digest=digest_of(small))
    assert contents(tmp_path / "root" / "balloon") == contents(small)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root", "z.zip"]


@pytest.mark.parametrize("kind", ["another", "no zip", "damaged", "incomplete"])
def test_a_wrong_download_leaves_nothing(
    tmp_path: Path, small: Path, server: Any, kind: str
) -> None:
    body = zipped(small, tmp_path / "z.zip")
    if kind == "no zip":
        body = b"<html>Please log in</html>"
    elif kind == "damaged":
        body = body[:2000] + bytes(100) + body[2100:]
    elif kind == "incomplete":
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
            z.writestr(f"balloon/train/{ANNOTATIONS}", "{}")
        body = (tmp_path / "z.zip").read_bytes()
    url = server.put("balloon.zip", body)
    with pytest.raises(UserError) as e:
        prepare_balloon(tmp_path / "root", url=url, digest="0" * 64)
    assert url in str(e.value) and "--synthetic" in str(e.value)
    assert list((tmp_path / "root").iterdir()) == []


def test_what_is_there_is_checked(tmp_path: Path, small: Path) -> None:
    target = tmp_path / "balloon"
    draw_balloons(target, num_train=3, num_val=2, long_side=160)
    (target / "SYNTHETIC").unlink()
    digest = digest_of(small)
    assert "photos" in prepare_balloon(tmp_path, digest=digest)
    (target / "train" / "notes.txt").write_text("mine")  # what is not listed is not our concern
    assert "photos" in prepare_balloon(tmp_path, digest=digest)

    photo = target / "val" / "val_000.jpg"
    original = photo.read_bytes()
    photo.write_bytes(original[:-100] + bytes(100))
    with pytest.raises(UserError, match="is not the released balloon dataset.*delete it"):
        prepare_balloon(tmp_path, digest=digest)
    photo.unlink()
    with pytest.raises(UserError, match=r"is damaged; delete it.*1 of 2 listed images are absent"):
        prepare_balloon(tmp_path, digest=digest)
    photo.write_bytes(original)
    (target / "train" / ANNOTATIONS).unlink()
    with pytest.raises(UserError, match=r"is damaged; delete it.*train.*does not exist"):
        prepare_balloon(tmp_path, digest=digest)


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path, closed_port: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/root/balloon.*--root"):
        prepare_balloon(tmp_path / "file" / "root", url=closed_port)


def test_the_real_photos_pass(real_balloon: Path, tmp_path: Path, server: Any) -> None:
    assert digest_of(real_balloon) == DIGEST
    message = prepare_balloon(real_balloon.parent)
    assert "photos (61 + 13 images, 255 + 50 balloons)" in message
    url = server.put("balloon_dataset.zip", zipped(real_balloon, tmp_path / "z.zip"))
    assert "61 + 13 images" in prepare_balloon(tmp_path / "root", url=url)
    assert contents(tmp_path / "root" / "balloon") == contents(real_balloon)
