"""Files that MNE reads are the recordings that were written."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from tests.training.recordings import NAMES, signal

from patchbay.errors import InputError
from patchbay.training.files import load

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what MNE imports
    import mne


def write_fif(file: Path, *, first: int = 0) -> np.ndarray:
    """With a trigger channel, and two annotations."""
    rows = signal(20, 100, 4, 3)
    info = mne.create_info([*NAMES[:4], "STI 014"], 100.0, ["eeg"] * 4 + ["stim"], verbose="error")
    raw = mne.io.RawArray(np.vstack((rows * 1e-6, np.zeros((1, 2000)))), info, first_samp=first, verbose="error")
    raw.set_meas_date(0)
    # Of a recording that has a date MNE counts from when the amplifier began.
    raw.set_annotations(mne.Annotations([2 + first / 100, 9 + first / 100], [1.5, 0], ["T1", "T2"], orig_time=0))
    raw.save(file, verbose="error")
    return rows


@pytest.mark.parametrize("first", [0, 500])
def test_a_fif_file(tmp_path: Path, first: int) -> None:
    rows = write_fif(tmp_path / "x_raw.fif", first=first)
    opened = load(tmp_path / "x_raw.fif")
    assert (opened.recording.names, opened.recording.rate, opened.recording.unit) == (NAMES[:4], 100.0, "uV")
    np.testing.assert_allclose(opened.recording.signal, rows, atol=1e-3)
    assert [(round(event.onset, 3), event.duration, event.text) for event in opened.events] == [
        (2.0, 1.5, "T1"),
        (9.0, 0.0, "T2"),
    ]


def test_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "x.gdf").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"x\.gdf: MNE cannot read it"):
        load(tmp_path / "x.gdf")


def test_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("patchbay.training.by_mne.importlib.import_module", absent)
    with pytest.raises(InputError, match=r"read by MNE: pip install 'patchbay\[eeg\]'"):
        load(tmp_path / "x.fif")
