"""Files that MNE reads are the recordings that were written."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from tests.training.layouts import write_gdf
from tests.training.recordings import NAMES, signal

from patchbay.errors import InputError
from patchbay.training.by_mne import _bridged
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


@pytest.mark.parametrize("gap", [(0, 100), (300, 400), (650, 750)])
def test_gaps_between_runs(tmp_path: Path, gap: tuple[int, int]) -> None:
    """At the lowest number there is: a straight line leads over it."""
    write_gdf(tmp_path / "x.gdf", ["EEG-Fz", "EEG-Cz"], 3, 250, [], gap)
    found, rows = load(tmp_path / "x.gdf").recording.signal, signal(3, 250, 2, 1)
    outside = np.r_[0 : gap[0], gap[1] : 750]
    np.testing.assert_allclose(found[:, outside], rows[:, outside], atol=0.06)
    before, after = max(gap[0] - 1, 0), min(gap[1], 749)
    inside = found[:, gap[0] : gap[1]]
    assert np.abs(inside).max() < 200 and np.abs(np.diff(inside, 2)).max() < 1e-6
    if gap[0] > 0 and gap[1] < 750:
        ends = found[:, [before, after]]
        assert (inside <= ends.max(1)[:, None]).all() and (inside >= ends.min(1)[:, None]).all()


def test_missing_samples() -> None:
    rows = np.array([[1.0, 2.0, *[np.nan] * 9, 12.0], [0.0, 0.0, *[np.nan] * 9, 0.0]])
    np.testing.assert_allclose(_bridged(rows), [np.arange(1.0, 13.0), np.zeros(12)])


def test_what_is_no_gap() -> None:
    clipped = np.array([[5.0, *[-9.0] * 20, 3.0], np.arange(22.0)])
    brief = np.array([[5.0, *[-9.0] * 7, 3.0]] * 2)
    for rows in (clipped, brief, np.zeros((2, 30))):
        assert np.array_equal(_bridged(rows), rows)


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
