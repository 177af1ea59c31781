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
from patchbay.models.neuript.recording import checked

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
        assert found.recording.dropped == {"ECG": "no EEG by its name"}
        assert "Somebody" not in repr(found)


def test_bdf() -> None:
    made = signal("Cz", kind=edfio.BdfSignal)
    found = read(written(made, kind=edfio.Bdf)).recording
    np.testing.assert_allclose(found.signal, [made.data])


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1), ("mV", 1e3), ("V", 1e6), ("UV", 1)])
def test_units(unit: str, factor: float) -> None:
    made = signal("Cz", unit=unit)
    found = read(written(made)).recording
    assert found.unit == {"UV": "uV"}.get(unit, unit)
    np.testing.assert_allclose(checked(found).signal, [factor * made.data])


def test_several_units() -> None:
    made = [signal("Cz", unit="mV"), signal("C3", unit="uV")]
    found = read(written(*made)).recording
    assert found.unit == "uV" and not found.notes
    np.testing.assert_allclose(found.signal, [1e3 * made[0].data, made[1].data])


@pytest.mark.parametrize(("sign", "encoding"), [("\u00b5", "latin-1"), ("\u00b5", "utf-8"), ("\u03bc", "utf-8")])
def test_the_sign_of_micro(sign: str, encoding: str) -> None:
    """There are two of it, of which Latin-1 has one."""
    made = signal("Cz", unit="xV")
    data = written(made).replace(b"xV      ", f"{sign}V".encode(encoding).ljust(8), 1)
    found = read(data).recording
    assert found.unit == "uV"
    np.testing.assert_allclose(found.signal, [made.data])


def test_a_unit_that_is_no_voltage() -> None:
    made = signal("Cz", unit=".V")
    with pytest.raises(InputError, match=r"channel 'Cz' is in '\.V' by its file") as caught:
        read(written(made))
    assert caught.value.param == "unit"
    found = read(written(made), unit="mV").recording
    assert found.unit == "mV" and found.notes == (
        "channels were taken to be in mV, as the request says, and not in '.V', as the file does",
    )
    np.testing.assert_allclose(found.signal, [made.data])


@pytest.mark.parametrize(("own", "given", "is_noted"), [("uV", "uV", False), ("uV", None, False), ("uV", "mV", True)])
def test_a_unit_beside_the_files_own(own: str, given: str | None, is_noted: bool) -> None:
    found = read(written(signal("Cz", unit=own), signal("C3", unit=own)), unit=given).recording
    assert found.unit == (given or own) and bool(found.notes) is is_noted


def test_channels_at_another_rate() -> None:
    found = read(written(signal("C3"), signal("C4"), signal("Cz", rate=100), signal("SpO2", rate=1)))
    assert found.recording.names == ("C3", "C4")
    assert found.recording.dropped == {"SpO2": "no EEG by its name", "Cz": "recorded at 100 Hz"}


def test_a_file_that_was_cut_off() -> None:
    data = written(signal("Cz"))
    assert not read(data).recording.notes
    found = read(data[: -RATE * 2 - 7]).recording
    assert found.signal.shape[1] < RATE * SECONDS
    assert found.notes == ("the file was cut off: it has 2 of the 4 s that its header says, and those were read",)
    short = bytearray(data)
    short[236:244] = b"2       "
    found = read(bytes(short)).recording
    assert found.seconds == 4 and found.notes == ("the header says 2 s and the file has 4, all of which were read",)
    unknown = bytearray(data)
    unknown[236:244] = b"-1      "
    assert not read(bytes(unknown)).recording.notes, "a file that is still written says nothing of its end"


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


@pytest.mark.parametrize("length", [9, 100, 255, 256, 300, 511])
def test_a_header_that_is_cut_off(tmp_path: Path, length: int) -> None:
    data = written(signal("Cz"))
    (tmp_path / "x.edf").write_bytes(data[:length])
    needed = 512 if length >= 256 else 256
    for source in (data[:length], tmp_path / "x.edf"):
        with pytest.raises(InputError, match=f"cut off in its header: {length} of {needed} bytes are there") as caught:
            read(source)
        assert caught.value.param == "file"


def test_a_header_without_samples() -> None:
    for length in (512, 600):
        with pytest.raises(InputError, match="the file has a header and no samples"):
            read(written(signal("Cz"))[:length])


def test_a_header_for_other_signals() -> None:
    data = bytearray(written(signal("Cz"), signal("C3")))
    data[252:256] = b"1   "
    with pytest.raises(InputError, match="says that it has 768 bytes, and that of 1 signals has 512: it is damaged"):
        read(bytes(data))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (236, "the header's number of records is 'abc', which is no number: it is damaged"),
        (244, "the header's length of a record is 'abc', which is no number"),
        (252, "the header's number of signals is 'abc', which is no number"),
        (256 + 216, "its header lacks a number where one belongs"),
    ],
)
def test_a_text_where_a_number_belongs(place: int, said: str) -> None:
    data = bytearray(written(signal("Cz")))
    width = 4 if place == 252 else 8
    data[place : place + width] = b"abc".ljust(width)
    with pytest.raises(InputError, match=said) as caught:
        read(bytes(data))
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


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        (104, "200", "where digits from -32768 to 32767 are 200 to 200 uV: the file is damaged"),
        (120, "32767", "where digits from 32767 to 32767 are -200 to 200 uV"),
        (120, "-3.2e4", "channel 'C3' has no numbers where its header says its range"),
    ],
)
def test_a_channel_without_a_gain(field: int, text: str, said: str) -> None:
    """One digit would be read as 1 uV. What is not read needs none."""

    def second(label: str) -> bytes:
        data, place = bytearray(written(signal("Cz"), signal(label, seed=1))), 256 + 2 * field + 8
        data[place : place + 8] = text.encode().ljust(8)
        return bytes(data)

    assert read(second("ECG")).recording.names == ("Cz",)
    with pytest.raises(InputError, match=said) as caught:
        read(second("C3"))
    assert caught.value.param == "file" and "channel 'C3'" in caught.value.message


def test_two_channels_with_one_name() -> None:
    with pytest.raises(InputError, match="two channels called 'Cz'"):
        read(written(signal("Cz"), signal("Cz", seed=1)))


def test_nothing_that_is_eeg() -> None:
    with pytest.raises(InputError, match="no channel that is EEG"):
        read(written(signal("ECG"), signal("EMG submental")))
