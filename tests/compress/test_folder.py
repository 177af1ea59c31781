from __future__ import annotations

from pathlib import Path

import pytest

from patchbay.compress.folder import unfinished_file, unfinished_folder
from patchbay.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_there_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with unfinished_folder(out) as folder:
        (folder / "weights").touch()
        assert not out.exists()
    assert names(out) == ["weights"] and names(out.parent) == ["out"]
    with unfinished_file(tmp_path / "file") as file:
        file.touch()
        assert not (tmp_path / "file").exists()
    assert names(tmp_path) == ["deep", "file"]


@pytest.mark.parametrize("place", ["out", "deep/er/out"])
def test_nothing_is_left_of_a_failure(tmp_path: Path, place: str) -> None:
    for unfinished in (unfinished_folder, unfinished_file):
        with pytest.raises(RuntimeError), unfinished(tmp_path / place) as path:
            (path / "weights").touch() if path.is_dir() else path.touch()
            raise RuntimeError
    assert names(tmp_path) == []


def test_what_exists_stays(tmp_path: Path) -> None:
    full, empty, file = tmp_path / "full", tmp_path / "empty", tmp_path / "file"
    (full / "x").mkdir(parents=True)
    empty.mkdir()
    file.write_text("mine")
    for out in (full, file):
        with pytest.raises(InputError, match="not an empty folder"), unfinished_folder(out):
            pass
    with pytest.raises(InputError, match="exists already"), unfinished_file(file):
        pass
    with unfinished_folder(empty) as folder:
        (folder / "weights").touch()
    assert names(empty) == ["weights"] and file.read_text() == "mine" and names(full) == ["x"]
