"""What a file is that is neither EDF nor BDF, by its first bytes, and the line that makes one of it that can be read.

Knows nothing of what it holds.
"""

from __future__ import annotations

import re

SIGNATURE_BYTES = 1024
_AS_NPY = "send its numbers as .npy:"
_BY_MNE = "convert it with MNE:"
_FROM_SET = "mne.io.read_raw('x.set').export('x.edf')"
_FROM_CSV = "np.save('x.npy', np.loadtxt('x.csv', delimiter=',', skiprows=1).T)"
# First bytes -> what begins with them, and what to do about it.
_KINDS: tuple[tuple[bytes, str], ...] = (
    (
        b"MATLAB 5.0",
        f"but a .mat file of MATLAB: {_AS_NPY} np.save('x.npy', scipy.io.loadmat('x.mat')['NAME']); of EEGLAB as "
        f"EDF: {_FROM_SET}",
    ),
    (
        b"MATLAB 7.3",
        f"but a .mat file of MATLAB 7.3: {_AS_NPY} np.save('x.npy', h5py.File('x.mat')['NAME'][()].T); of EEGLAB "
        f"as EDF: {_FROM_SET}",
    ),
    (b"\x89HDF", f"but HDF5: {_AS_NPY} np.save('x.npy', h5py.File('x.h5')['NAME'][()])"),
    (b"PK\x03\x04", f"but a zip archive, .npz perhaps: {_AS_NPY} np.save('x.npy', np.load('x.npz')['NAME'])"),
    (b"\x93NUMPY", "but .npy"),
    (b"\x1f\x8b", "but gzip: send what gunzip makes of it"),
    (b"GDF ", f"but GDF: {_BY_MNE} mne.io.read_raw('x.gdf').export('x.edf')"),
    (b"\x00\x00\x00\x64\x00\x00\x00\x1f", f"but .fif: {_BY_MNE} mne.io.read_raw('x.fif').export('x.edf')"),
    (
        b"Brain Vision Data Exchange",
        f"but the header of a BrainVision recording: {_BY_MNE} mne.io.read_raw('x.vhdr').export('x.edf')",
    ),
    (b"Version 3.0", f"but .cnt: {_BY_MNE} mne.io.read_raw('x.cnt').export('x.edf')"),
    (b"XDF:", f"but XDF: {_AS_NPY} np.save('x.npy', pyxdf.load_xdf('x.xdf')[0][0]['time_series'].T)"),
    (b"\x89PNG", "but a PNG picture: send what was recorded"),
    (b"\xff\xd8\xff", "but a JPEG picture: send what was recorded"),
    (b"%PDF", "but a PDF document: send what was recorded"),
    (b"RIFF", f"but a .wav file: {_AS_NPY} np.save('x.npy', scipy.io.wavfile.read('x.wav')[1].T)"),
    (b"\x80", f"but a pickle, which is never opened: {_AS_NPY} np.save('x.npy', array)"),
    (b"version https://git-lfs", "but where Git LFS has one: run git lfs pull"),
    (b"<", "but a page or XML: was it downloaded whole, and not the page about it?"),
    (b"{", "but JSON: send it as the body, and no form"),
)
_NUMBERS = re.compile(rb"[\w.+-]+\s*[,;\t]\s*[\w.+-]+")


def what_it_is(head: bytes) -> str | None:
    """Of the first SIGNATURE_BYTES: "but HDF5: send ..."; None for what is not known."""
    if not head:
        return "but empty"
    for magic, told in _KINDS:
        if head.startswith(magic):
            return told
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        if _NUMBERS.search(head):
            return f"but text, .csv perhaps: {_AS_NPY} {_FROM_CSV}"
        return "but text" if not head.startswith(b"0   ") else None
    return None
