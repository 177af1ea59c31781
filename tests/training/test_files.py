from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.training.recordings import NAMES, signal, write_edf, write_marked, write_npz

from patchbay.errors import InputError
from patchbay.models.neuript.edf import Event
from patchbay.training.files import files_in, load


def test_every_recording_below_a_folder(tmp_path: Path) -> None:
    made = [write_edf(tmp_path / "b" / "x.EDF"), write_npz(tmp_path / "a" / "y.npz"), write_edf(tmp_path / "z.edf")]
    (tmp_path / "notes.txt").write_text("no recording")
    assert files_in(tmp_path) == sorted(made)


def test_both_kinds_are_the_recording(tmp_path: Path) -> None:
    found = load(write_edf(tmp_path / "x.edf", seed=5)).recording
    np.testing.assert_allclose(found.signal, signal(40, 100, 6, 5), atol=0.02)
    found = load(write_npz(tmp_path / "y.npz", seed=5)).recording
    np.testing.assert_allclose(found.signal, signal(40, 128, 4, 5))
    assert (found.rate, found.names, found.unit) == (128, NAMES[:4], "uV")


def test_annotations_are_events(tmp_path: Path) -> None:
    opened = load(write_marked(tmp_path / "x.edf", [(0.5, 2.0, "T1"), (4.0, None, "T2")]))
    assert opened.events == (Event(0.5, 2.0, "T1"), Event(4.0, None, "T2"))
    assert load(write_npz(tmp_path / "y.npz")).events == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no .npz that can be read"), (b"hello", "no .npz that can be read"), (b"PK\x03\x04xx", "can be read")],
)
def test_what_is_no_npz(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "x.npz")
    assert "x.npz" in caught.value.message


def test_an_npz_without_a_field(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", signal=np.zeros((2, 10)), rate=100, names=np.array(["C3", "C4"]))
    with pytest.raises(InputError, match=r"x\.npz: it has no 'unit'"):
        load(tmp_path / "x.npz")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", signal=np.array([{"a": 1}]), rate=1, names=np.array(["C3"]), unit="uV")
    with pytest.raises(InputError, match="no .npz that can be read"):
        load(tmp_path / "x.npz")


def test_an_archive_that_says_it_is_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay.training.files.MAX_NPZ_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("signal.npy", b"\x00" * 5000)
    with pytest.raises(InputError, match="holds more than 1,000 bytes"):
        load(tmp_path / "x.npz")


def test_folders_without_a_recording(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder .*nowhere"):
        files_in(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is empty: \.edf, \.bdf, \.npz, \.fif"):
        files_in(tmp_path)
    (tmp_path / "notes.txt").write_text("no recording")
    with pytest.raises(InputError, match=r"has notes\.txt and no recording: \.edf, \.bdf, \.npz, \.fif"):
        files_in(tmp_path)
    with pytest.raises(InputError, match=r"notes\.txt is a file: give the folder it is in"):
        files_in(tmp_path / "notes.txt")
