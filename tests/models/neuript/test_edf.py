"""EDF and BDF files, written here and broken here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import pytest

from patchbay.errors import InputError
from patchbay.models.neuript.edf import read

RATE, SECONDS = 160, 4


def signal(label: str, *, rate: float = RATE, unit: str = "uV", seed: int = 0, kind: Any = edfio.EdfSignal) -> Any:
    data = 30 * np.random.default_rng(seed).standard_normal(round(rate * SECONDS))
    return kind(data, rate, label=label, physical_dimension=unit, physical_range=(-200, 200))


def written(*signals: Any, kind: Any = edfio.Edf, **more: Any) -> bytes:
    buffer = io.BytesIO()
    kind(signals, **more).write(buffer)
    return buffer.getvalue()


def test_channels_and_events(tmp_path: Path) -> None:
    made = [signal("EEG Fp1-REF", seed=1), signal("C3..", seed=2), signal("ECG", seed=3)]
    events = [edfio.EdfAnnotation(0.5, 4.1, "T1"), edfio.EdfAnnotation(2.0, None, "blink")]
    data = written(*made, annotations=events, patient=edfio.Patient(name="Somebody"))
    (tmp_path / "a.edf").write_bytes(data)
    for source in (data, tmp_path / "a.edf"):
        found = read(source)
        assert found.recording.names == ("EEG Fp1-REF", "C3..") and found.recording.rate == RATE
        assert found.recording.unit == "uV" and found.recording.seconds == SECONDS
        np.testing.assert_allclose(found.recording.signal, [each.data for each in made[:2]])
        assert [(e.onset, e.duration, e.text) for e in found.events] == [(0.5, 4.1, "T1"), (2.0, None, "blink")]
        assert found.dropped == {"ECG": "no EEG by its name"}
        assert "Somebody" not in repr(found)


def test_bdf() -> None:
    made = signal("Cz", kind=edfio.BdfSignal)
    found = read(written(made, kind=edfio.Bdf)).recording
    np.testing.assert_allclose(found.signal, [made.data])


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1), ("mV", 1e3), ("V", 1e6), ("UV", 1)])
def test_units(unit: str, factor: float) -> None:
    made = signal("Cz", unit=unit)
    np.testing.assert_allclose(read(written(made)).recording.signal, [factor * made.data])


def test_the_sign_of_micro_in_latin_1() -> None:
    made = signal("Cz", unit="xV")
    data = written(made).replace(b"xV      ", "µV      ".encode("latin-1"), 1)
    np.testing.assert_allclose(read(data).recording.signal, [made.data])


def test_a_unit_that_is_no_voltage() -> None:
    made = signal("Cz", unit=".V")
    with pytest.raises(InputError, match=r"channel 'Cz' is in '\.V' by its file") as caught:
        read(written(made))
    assert caught.value.param == "unit"
    np.testing.assert_allclose(read(written(made), unit="mV").recording.signal, [1e3 * made.data])


def test_channels_at_another_rate() -> None:
    found = read(written(signal("C3"), signal("C4"), signal("Cz", rate=100), signal("SpO2", rate=1)))
    assert found.recording.names == ("C3", "C4")
    assert found.dropped == {"SpO2": "no EEG by its name", "Cz": "recorded at 100 Hz"}


def test_a_file_that_was_cut_off() -> None:
    data = written(signal("Cz"))
    found = read(data[: -RATE * 2 - 7])
    assert found.recording.signal.shape[1] < RATE * SECONDS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no EDF or BDF file"),
        (b"hello", "no EDF or BDF file"),
        (b"0" + b" " * 255, "no EDF or BDF file"),
        (b"\x00" * 5000, "no EDF or BDF file"),
        (b"\xffBIOSEMI" + b" " * 300, "no EDF or BDF file"),
        (b"PK\x03\x04" + b"x" * 3000, "no EDF or BDF file"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_file(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(data)
    assert caught.value.param == "file"


@pytest.mark.parametrize("place", [168, 184, 236, 244, 252, 256, 256 + 96, 256 + 104, 256 + 112, 256 + 120, 256 + 216])
def test_headers_with_other_bytes(place: int) -> None:
    """Of one channel: whatever is wrong is said, or the file is read."""
    for other in (b"\xff" * 8, b"-1      ", b"0       ", b"1e999   ", b"abc     ", b"99999999"):
        data = bytearray(written(signal("Cz")))
        data[place : place + 8] = other
        try:
            read(bytes(data))
        except InputError as error:
            assert error.param in ("file", "unit", "ch_names"), error.message


def test_two_channels_with_one_name() -> None:
    with pytest.raises(InputError, match="two channels called 'Cz'"):
        read(written(signal("Cz"), signal("Cz", seed=1)))


def test_nothing_that_is_eeg() -> None:
    with pytest.raises(InputError, match="no channel that is EEG"):
        read(written(signal("ECG"), signal("EMG submental")))


def test_gaps() -> None:
    """EDF+D: the second record begins later than the first one ends."""
    data = written(signal("Cz"), annotations=[edfio.EdfAnnotation(0.5, None, "x")], data_record_duration=1)
    with pytest.raises(InputError, match="has gaps"):
        read(data.replace(b"+2\x14\x14", b"+7\x14\x14", 1))
