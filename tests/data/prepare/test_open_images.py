"""Open Images is checked; a part of the photos is enough."""

import shutil
from pathlib import Path

import pytest

from d2ext.data.prepare.open_images import check_open_images
from d2ext.errors import UserError


def test_photos_are_counted(tiny_open_images: Path) -> None:
    line = check_open_images(tiny_open_images)
    assert "OpenImages holds 6 of 1,743,042 train, 2 of 41,620 validation photos and " in line


def test_missing_files_are_named_with_their_addresses(
    tiny_open_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_open_images, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "OpenImages"
    (folder / "annotations" / "class-descriptions-boxable.csv").unlink()
    (folder / "annotations" / "validation-annotations-bbox.csv").write_text("")  # interrupted
    shutil.rmtree(folder / "OpenImages" / "validation")
    with pytest.raises(UserError) as e:
        check_open_images(tmp_path)
    first, *commands = str(e.value).splitlines()
    assert first.startswith(
        f"{folder} lacks annotations/validation-annotations-bbox.csv,"
        " annotations/class-descriptions-boxable.csv, photos in OpenImages/validation. "
    )
    assert len(commands) == 3
    assert commands[1].endswith("/openimages/v5/class-descriptions-boxable.csv")
    assert f"{folder}/annotations" in commands[1]
    assert commands[2].endswith(f" {folder}/OpenImages/validation")
