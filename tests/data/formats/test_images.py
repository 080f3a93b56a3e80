"""Image files of all kinds: decoded pixels, sizes from headers, limits, and folders."""

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from d2ext.data.formats.images import image_size, images_in
from d2ext.data.formats.json_io import files_in
from d2ext.data.loading.image_io import cached_photo, read_photo
from d2ext.data.loading.mapper import Mapper
from d2ext.data.loading.sample_errors import Failure, ReportFailures
from d2ext.errors import UserError

RAMP = np.tile(np.linspace(100, 3900, 96), (72, 1)).astype(np.uint16)  # of 12 bits
SHOWN = (np.tile(np.linspace(0, 1, 96), (72, 1)) * 255).round()
COLORS = np.dstack([RAMP, RAMP[:, ::-1], RAMP])


def by_pillow(values: np.ndarray, **options: object) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values).save(path, **options)


def by_opencv(values: np.ndarray) -> Callable[[Path], None]:
    return lambda path: cv2.imwrite(str(path), values)


def big_endian(path: Path) -> None:
    """Write an uncompressed 16-bit TIFF, high bytes first."""
    height, width = RAMP.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 200), (277, 1)]
    tags += [(278, height), (279, RAMP.size * 2)]
    entries = [
        b"".join((tag.to_bytes(2), (4).to_bytes(2), (1).to_bytes(4), value.to_bytes(4)))
        for tag, value in tags
    ]
    header = b"MM\0*" + (8).to_bytes(4) + len(tags).to_bytes(2) + b"".join(entries) + bytes(4)
    path.write_bytes(header.ljust(200, b"\0") + RAMP.astype(">u2").tobytes())


GRAY = [
    ("png", by_pillow(RAMP)),
    ("png", by_opencv(RAMP)),
    ("tif", by_pillow(RAMP)),
    ("tif", by_pillow(RAMP * 16)),  # all 16 bits
    ("tif", by_pillow(RAMP, compression="tiff_lzw")),
    ("tiff", by_pillow(RAMP.astype(np.int32))),
    ("tiff", by_pillow((RAMP / 3900).astype(np.float32))),
    ("tif", by_opencv(RAMP.astype(np.float64) * 1e6)),
    ("tif", by_opencv(RAMP.astype(np.int16) - 2000)),
    ("tif", big_endian),
    ("pgm", by_opencv(RAMP)),
    ("jp2", by_pillow(RAMP, irreversible=False)),
]


@pytest.mark.parametrize(("suffix", "write"), GRAY)
@pytest.mark.parametrize("image_format", ["BGR", "RGB", "L"])
def test_more_than_8_bits_are_scaled_to_the_image_s_range(
    image_format: str, suffix: str, write: Callable, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path)
    image = read_photo(path, image_format)
    assert image.dtype == np.uint8 and image.shape == (72, 96, 1 if image_format == "L" else 3)
    assert abs(image - SHOWN[..., None]).max() <= 1
    assert image_size(path) == (96, 72)


@pytest.mark.parametrize(
    ("suffix", "values"),
    [
        ("png", COLORS),
        ("tif", COLORS),
        ("tif", COLORS.astype(np.float32)),
        ("png", np.dstack([COLORS, RAMP])),  # with an alpha channel, which is dropped
    ],
)
def test_colors_of_more_than_8_bits_are_scaled_too(
    suffix: str, values: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    by_opencv(values)(path)
    image = read_photo(path, "BGR")
    assert abs(image - np.dstack([SHOWN, SHOWN[:, ::-1], SHOWN])).max() <= 1
    assert np.array_equal(read_photo(path, "RGB"), image[:, :, ::-1])
    assert image_size(path) == (96, 72)


def test_nan_is_ignored_in_scaling(tmp_path: Path) -> None:
    values = (RAMP / 3900).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    by_pillow(values)(tmp_path / "a.tif")
    image = read_photo(tmp_path / "a.tif", "L")[..., 0]
    assert image[0, :3].tolist() == [0, 255, 0] and abs(image[1:] - SHOWN[1:]).max() <= 1


def test_a_constant_image_is_black(tmp_path: Path) -> None:
    by_pillow(np.full((5, 7), 900, np.uint16))(tmp_path / "a.png")
    assert not read_photo(tmp_path / "a.png", "BGR").any()


def test_the_mapper_and_the_cache_scale_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.png"
    by_pillow(RAMP)(path)
    wanted = read_photo(path, "BGR")
    assert np.array_equal(cached_photo(path, "BGR"), wanted)
    assert np.array_equal(cached_photo(path, "BGR"), wanted)
    record = {"file_name": str(path), "width": 96, "height": 72, "image_id": 1}
    for cache in (False, True):
        sample = Mapper(False, augmentations=[], image_format="BGR", cache=cache)(record)
        assert np.array_equal(sample["image"].numpy(), wanted.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("values", [RAMP, (RAMP // 16).astype(np.uint8)], ids=["16 bits", "8"])
def test_a_tiff_is_rotated_once(values: np.ndarray, orientation: int, tmp_path: Path) -> None:
    """Pillow rotates it while decoding; Detectron2 would rotate it again."""
    for suffix in ("tif", "png"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        tags = {"tiffinfo": {274: orientation}} if suffix == "tif" else {"exif": exif}
        Image.fromarray(values).save(tmp_path / f"a.{suffix}", **tags)
    image = read_photo(tmp_path / "a.tif", "BGR")
    assert np.array_equal(image, read_photo(tmp_path / "a.png", "BGR"))
    size = (72, 96) if orientation > 4 else (96, 72)
    assert image_size(tmp_path / "a.tif") == image_size(tmp_path / "a.png") == size
    assert image.shape[1::-1] == size


PHOTO = Image.fromarray(np.dstack([SHOWN, SHOWN[:, ::-1], SHOWN]).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "mode", "most"),
    [
        ("a.avif", "RGB", 60),
        ("a.gif", "P", 60),
        ("a.heic", "RGB", 60),
        ("a.HEIF", "RGB", 60),
        ("heic.jpg", "RGB", 60),  # a wrong suffix
        ("a.webp", "RGB", 60),
        ("a.bmp", "RGB", 0),
        ("a.dib", "RGB", 0),
        ("a.ppm", "RGB", 0),
        ("a.pnm", "RGB", 0),
        ("a.tga", "RGB", 0),
        ("a.apng", "RGB", 0),
        ("a.jpx", "RGB", 60),
        ("a.j2k", "RGB", 60),
        ("a.jp2", "RGB", 60),
        ("a.mpo", "RGB", 60),
        ("a.tif", "RGB", 0),
        ("a.png", "RGBA", 0),
        ("k.tif", "CMYK", 2),
    ],
)
def test_supported_formats(name: str, mode: str, most: int, tmp_path: Path) -> None:
    import pillow_heif

    path = tmp_path / name
    if "hei" in name.lower():
        pillow_heif.from_pillow(PHOTO).save(path, quality=95)
    else:
        PHOTO.convert(mode).save(path)
    image = read_photo(path, "RGB")
    assert abs(image.astype(int) - np.asarray(PHOTO)).max() <= most
    assert image_size(path) == (96, 72)
    assert path.name in images_in(tmp_path)


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png", "avif", "mpo"])
def test_the_first_of_several_frames_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    black, white = Image.new("RGB", (32, 24)), Image.new("RGB", (32, 24), "white")
    black.save(path, save_all=True, append_images=[white])
    assert read_photo(path, "BGR").max() < 20


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_an_alpha_channel_is_dropped(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (9, 5), (90, 90, 90, 0)).convert(mode)
    image.save(tmp_path / "a.png")
    assert set(read_photo(tmp_path / "a.png", "BGR").ravel().tolist()) == {90}


def _forget_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a Pillow without AVIF support and without pillow-heif."""
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in ("AVIF", "HEIF")])
    for name in ("AVIF", "HEIF"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)


def write_tiff(path: Path, values: np.ndarray) -> None:
    """Write the bands of an array as a TIFF, like those of remote sensing and microscopes."""
    height, width, bands = values.shape
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[277], tags[278] = width, height, bands, height
    tags[258] = (8 * values.itemsize,) * bands
    tags[259] = tags[262] = tags[284] = 1  # uncompressed, black is 0, bands interleaved by pixel
    tags[273], tags[279] = 0, values.nbytes
    with open(path, "wb") as f:
        tags.save(f)
        f.write(values.tobytes())


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [5, 8])
def test_the_error_for_too_many_tiff_channels_gives_their_number(
    bands: int, kind: type, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    write_tiff(tmp_path / "a.tif", np.zeros((48, 64, bands), kind))
    with pytest.raises(OSError, match=f"it has {bands} channels; 1 to 4 are supported"):
        read_photo(tmp_path / "a.tif", "RGB")
    with pytest.raises(UserError, match=f"it has {bands} channels"):
        image_size(tmp_path / "a.tif")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_a_tiff_with_up_to_4_bands_is_read(bands: int, tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", np.full((48, 64, bands), 200, np.uint8))
    assert read_photo(tmp_path / "a.tif", "RGB").shape == (48, 64, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # of Pillow
def test_a_damaged_tiff_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_WARNING)  # OpenCV's default
    by_opencv(COLORS.astype(np.float64))(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="damaged or not an image"):
        read_photo(tmp_path / "a.tif", "RGB")
    assert capfd.readouterr() == ("", "")


def test_the_error_for_heic_names_the_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pillow_heif

    pillow_heif.from_pillow(PHOTO).save(tmp_path / "a.heic")
    _forget_formats(monkeypatch)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for read in (image_size, lambda path: read_photo(path, "BGR")):
        with pytest.raises(UserError, match=r"a\.heic is a HEIC image.*pip install pillow-heif"):
            read(tmp_path / "a.heic")


def test_the_error_for_avif_names_a_pillow_version_with_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PHOTO.save(tmp_path / "a.avif")
    _forget_formats(monkeypatch)
    with pytest.raises(UserError, match=r"a\.avif is an AVIF image.*pillow>=11\.3"):
        image_size(tmp_path / "a.avif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "exif.jpg"])
def test_the_pixel_limit_applies_everywhere_and_can_be_raised(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow refuses twice as many
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(path, **({"exif": exif} if "exif" in suffix else {}))
    words = r"has 6,912 pixels.* 4,000; cut it into smaller files.*D2EXT_MAX_IMAGE_PIXELS=6912"
    for read in (image_size, lambda path: read_photo(path, "BGR")):
        with pytest.raises(UserError, match=words):
            read(path)
    monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", "6912")
    assert sorted(image_size(path)) == [72, 96] and read_photo(path, "BGR").size == 3 * 6912
    monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", "6911")
    with pytest.raises(UserError, match="limit of 6,911"):
        image_size(path)
    monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(UserError, match="D2EXT_MAX_IMAGE_PIXELS=many: give a number"):
        image_size(path)


@pytest.mark.parametrize("suffix", ["avif", "gif", "heic", "jp2", "jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("part", [0, 0.1, 0.6])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's
def test_a_truncated_file_is_an_os_error(suffix: str, part: float, tmp_path: Path) -> None:
    import pillow_heif

    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (72, 96, 3), np.uint8))
    if suffix == "heic":
        pillow_heif.from_pillow(photo).save(path)
    else:
        photo.save(path, **({"compression": "tiff_lzw"} if suffix == "tif" else {}))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises((OSError, SyntaxError)):
        read_photo(path, "BGR")


def test_links_are_followed_without_cycles(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for file in ("elsewhere/a.jpg", "photos/b.jpg", "photos/sub/c.txt", "photos/.hidden.jpg"):
        (tmp_path / file).touch()
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "sub" / "circle").symlink_to(tmp_path / "photos")
    assert images_in(tmp_path / "photos") == ["b.jpg", "more/a.jpg"]
    assert files_in(tmp_path / "photos") == ["b.jpg", "more/a.jpg", "sub/c.txt"]


def test_the_error_for_a_photo_over_the_limit_crosses_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preflight checks only a part of a large dataset; a worker may open the photo first."""
    monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", "99")
    PHOTO.save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "width": 96, "height": 72, "image_id": 1}
    made = ReportFailures(Mapper(False, augmentations=[], image_format="BGR"))(record)
    assert isinstance(made, Failure) and "more than the limit of 99" in made.message
