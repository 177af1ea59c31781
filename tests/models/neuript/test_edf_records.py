"""EDF files whose header, bytes and times do not say the same."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import pytest

from patchbay.errors import InputError
from patchbay.models.neuript.edf import EdfFile, read

RATE, SECONDS = 160, 4
EVENTS = (edfio.EdfAnnotation(0.5, None, "blink"), edfio.EdfAnnotation(3.0, None, "late"))


def annotated(*, is_bdf: bool = False) -> bytes:
    """Four records of one second, with the time in each."""
    data = 30 * np.random.default_rng(0).standard_normal(RATE * SECONDS)
    kind: Any
    kind, whole = (edfio.BdfSignal, edfio.Bdf) if is_bdf else (edfio.EdfSignal, edfio.Edf)
    buffer = io.BytesIO()
    made = kind(data, RATE, label="Cz", physical_dimension="uV", physical_range=(-200, 200))
    whole([made], annotations=EVENTS, data_record_duration=1).write(buffer)
    return buffer.getvalue()


def saying(data: bytes, *, records: int | None = None, seconds: str | None = None, kind: bytes | None = None) -> bytes:
    found = bytearray(data)
    if records is not None:
        found[236:244] = str(records).encode().ljust(8)
    if seconds is not None:
        found[244:252] = seconds.encode().ljust(8)
    if kind is not None:
        found[192:197] = kind
    return bytes(found)


def record_bytes(data: bytes) -> int:
    return (len(data) - 3 * 256) // SECONDS


def from_both(data: bytes, file: Path) -> list[EdfFile]:
    file.write_bytes(data)
    return [read(data), read(file)]


@pytest.mark.parametrize("more", [b"\xe1", b"\x00", None], ids=["no text", "zeros", "records"])
@pytest.mark.parametrize("is_bdf", [False, True])
def test_more_records_than_the_header_says(tmp_path: Path, is_bdf: bool, more: bytes | None) -> None:
    """What is behind them may be anything, and is not looked at."""
    data = annotated(is_bdf=is_bdf)
    if more is None:
        data, said, there = saying(data, records=3), 3, 4
    else:
        data, said, there = data + more * (2 * record_bytes(data)), 4, 6
    for found in from_both(data, tmp_path / "x.edf"):
        assert found.recording.seconds == said
        assert found.recording.notes == (
            f"the header says {said} s and the file has {there}, the first {said} of which were read",
        )
        assert [event.text for event in found.events] == ["blink", "late"][: said - 2]
        np.testing.assert_array_equal(
            found.recording.signal, read(annotated(is_bdf=is_bdf)).recording.signal[:, : said * RATE]
        )


@pytest.mark.parametrize("records", [None, -1])
def test_bytes_that_are_no_whole_record(tmp_path: Path, records: int | None) -> None:
    data = saying(annotated(), records=records)
    whole = record_bytes(data)
    for found in from_both(data + b"\xe1" * 101, tmp_path / "x.edf"):
        assert found.recording.seconds == SECONDS
        assert found.recording.notes == (
            f"the file ends with 101 bytes that are no whole record of {whole}: they were left out",
        )
    more = read(data + b"\xe1" * (whole + 101)) if records is None else None
    assert more is None or [note.split()[1] for note in more.recording.notes] == ["header", "file"], "of both"


def test_a_file_that_is_still_written() -> None:
    found = read(saying(annotated(), records=-1))
    assert found.recording.seconds == SECONDS and not found.recording.notes


def test_a_file_that_was_cut_off() -> None:
    data = annotated()
    found = read(data[: -record_bytes(data) - 7])
    assert found.recording.notes == (
        "the file was cut off: it has 2 of the 4 s that its header says, and those were read",
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [(b"EDF+C", r"has gaps, which its header does not say \(EDF\+C\)"), (b"EDF+D", r"has gaps \(EDF\+D\)")],
)
def test_gaps(kind: bytes, said: str) -> None:
    """The third record begins later than the second one ends."""
    data = saying(annotated().replace(b"+2\x14\x14", b"+7\x14\x14", 1), kind=kind)
    with pytest.raises(InputError, match=f"{said}: record 3 begins at 7 s, and the one before it ends at 2") as caught:
        read(data)
    assert caught.value.param == "file"


@pytest.mark.parametrize("kind", [b"EDF+C", b"EDF+D"])
def test_records_that_overlap(kind: bytes) -> None:
    data = saying(annotated().replace(b"+2\x14\x14", b"+1\x14\x14", 1), kind=kind)
    with pytest.raises(InputError, match="has records that overlap.*: record 3 begins at 1 s, .* ends at 2"):
        read(data)


@pytest.mark.parametrize(("seconds", "kind"), [("2", b"EDF+C"), ("2", b"EDF+D"), ("0.5", b"EDF+C")])
def test_a_length_of_records_that_their_times_contradict(seconds: str, kind: bytes) -> None:
    with pytest.raises(InputError, match=f"a record has {seconds} s, and by the times .* every 1: one of") as caught:
        read(saying(annotated(), seconds=seconds, kind=kind))
    assert caught.value.param == "file"


def test_pieces_of_one_length() -> None:
    """As EDF+D has them they are gaps, and contradict nothing."""
    with pytest.raises(InputError, match=r"has gaps \(EDF\+D\): record 2 begins at 1 s, .* ends at 0.5"):
        read(saying(annotated(), seconds="0.5", kind=b"EDF+D"))


def test_annotations_that_are_none() -> None:
    data = annotated()
    with pytest.raises(InputError, match="record 3 of 4 has no time in its annotations"):
        read(data.replace(b"+2\x14\x14", b"\x00\x00\x00\x00", 1))
    with pytest.raises(InputError, match="its annotations are not UTF-8"):
        read(data.replace(b"blink", b"bl\xe1nk", 1))
    with pytest.raises(InputError, match="a record of its annotations has something else in it"):
        read(data.replace(b"+2\x14\x14", b"abcd", 1))
