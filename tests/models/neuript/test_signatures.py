"""Files of other kinds, real ones where a library here writes them: what they are is said, and what to do."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from patchbay.errors import InputError
from patchbay.models.neuript.edf import read

ROWS = np.random.default_rng(0).standard_normal((3, 200)).round(3)


def _mat() -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"signal": ROWS})
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, signal=ROWS)
    return stream.getvalue()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, ROWS)
    return stream.getvalue()


def _csv(delimiter: str, header: str) -> bytes:
    stream = io.StringIO()
    np.savetxt(stream, ROWS.T, delimiter=delimiter, header=header, comments="")
    return stream.getvalue().encode()


def _wav() -> bytes:
    stream = io.BytesIO()
    scipy.io.wavfile.write(stream, 160, (ROWS.T * 100).astype(np.int16))
    return stream.getvalue()


FILES = {
    "mat": (_mat(), "a .mat file of MATLAB", "loadmat"),
    "mat 7.3": (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n", "MATLAB 7.3", "h5py"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5", "h5py"),
    "npz": (_npz(), "a zip archive", "np.load('x.npz')"),
    "npy": (_npy(), ".npy", ""),
    "csv": (_csv(",", "Fp1,C3,O1"), "text, .csv perhaps", "np.loadtxt"),
    "tsv": (_csv("\t", ""), "text, .csv perhaps", "np.loadtxt"),
    "text": (b"a note to myself\n", "text", ""),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG picture", "send what was recorded"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(50), "a JPEG picture", "send what was recorded"),
    "pdf": (b"%PDF-1.7\n", "a PDF", "send what was recorded"),
    "gz": (gzip.compress(b"0" * 500), "gzip", "gunzip"),
    "gdf": (b"GDF 2.20" + bytes(300), "GDF", "mne.io.read_raw"),
    "vhdr": (b"Brain Vision Data Exchange Header File Version 1.0\r\n", "BrainVision", "mne.io.read_raw"),
    "xdf": (b"XDF:" + bytes(50), "XDF", "pyxdf"),
    "wav": (_wav(), "a .wav file", "wavfile.read"),
    "pickle": (pickle.dumps([1]), "a pickle", "never opened"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS", "git lfs pull"),
    "html": (b"<!DOCTYPE html><html>", "a page", "downloaded"),
    "json": (b'{"signal": [[1, 2]]}', "JSON", "body"),
    "empty": (b"", "empty", ""),
}


@pytest.mark.parametrize("kind", FILES)
def test_it_is_said(kind: str, tmp_path: Path) -> None:
    data, what, todo = FILES[kind]
    (tmp_path / "x.edf").write_bytes(data)
    for source in (data, tmp_path / "x.edf"):
        with pytest.raises(InputError, match="this is no EDF or BDF file but") as caught:
            read(source)
        assert f"but {what}" in caught.value.message or what in caught.value.message, caught.value.message
        assert todo in caught.value.message and len(caught.value.message) < 300
        assert "invalid literal" not in caught.value.message and caught.value.param == "file"


def test_fif(tmp_path: Path) -> None:
    mne = pytest.importorskip("mne")
    raw = mne.io.RawArray(ROWS * 1e-5, mne.create_info(["Fp1", "C3", "O1"], 160.0, "eeg"), verbose="error")
    raw.save(tmp_path / "x_raw.fif", verbose="error")
    with pytest.raises(InputError, match=r"but \.fif: convert it with MNE"):
        read((tmp_path / "x_raw.fif").read_bytes())


@pytest.mark.parametrize("line", ["np.save('x.npy', scipy.io.loadmat('x.mat')['NAME'])", "np.load('x.npz')"])
def test_the_line_makes_what_is_read(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.mat").write_bytes(_mat())
    Path("x.npz").write_bytes(_npz())
    message = str(pytest.raises(InputError, read, Path("x.mat").read_bytes() if "mat" in line else _npz()).value)
    code = message[message.index("np.save(") :].split(";")[0].replace("NAME", "signal")
    assert line.replace("NAME", "signal") in code
    exec(code, {"np": np, "scipy": scipy})
    np.testing.assert_array_equal(np.load("x.npy"), ROWS)


def test_the_line_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_bytes(_csv(",", "Fp1,C3,O1"))
    message = str(pytest.raises(InputError, read, Path("x.csv").read_bytes()).value)
    exec(message[message.index("np.save(") :], {"np": np})
    np.testing.assert_allclose(np.load("x.npy"), ROWS)
