"""Copies of real photos are found, and no two different photos."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from d2ext.data.splitting.near_duplicates import near_duplicates, perceptual_hashes


@pytest.fixture(scope="module")
def photos(real_balloon):
    return sorted(real_balloon.glob("*/*.jpg"))


def _half(image):
    return image.resize((image.width // 2, image.height // 2))


def _recompressed(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file)


def _brighter(image):
    return ImageEnhance.Brightness(image).enhance(1.1)


def _turned(image):
    """Store the photo turned, with the EXIF orientation that turns it back."""
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    return turned


def _gray(image):
    return image.convert("L")


@pytest.mark.parametrize("change", [_half, _recompressed, _brighter, _turned, _gray])
def test_copies_are_found_and_nothing_else(photos, tmp_path, change):
    paths = [str(path) for path in photos]
    for i, path in enumerate(photos[::4]):
        with Image.open(path) as image:
            made = change(image)
            options = {"exif": made.getexif()} if made.getexif() else {}
            made.save(tmp_path / f"{i}.png", **options)
        paths.append(str(tmp_path / f"{i}.png"))
    hashes, failed = perceptual_hashes(paths)
    assert not failed
    pairs = np.concatenate(list(near_duplicates(hashes)), axis=1).T.tolist()
    assert sorted(pairs) == [[4 * i, len(photos) + i] for i in range(len(photos[::4]))]


def test_unreadable_photos_have_a_reason(photos, tmp_path):
    (tmp_path / "damaged.jpg").write_bytes(photos[0].read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no photo")
    names = ["damaged.jpg", "text.jpg", "absent.jpg"]
    hashes, failed = perceptual_hashes([str(tmp_path / name) for name in names] + [str(photos[0])])
    assert sorted(failed) == [0, 1, 2] and hashes[3].any() and "exist" in failed[2]
