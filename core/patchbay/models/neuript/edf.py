"""EDF and BDF files as recordings, with their annotations. What a file says of a patient is never read.

Knows nothing of models.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edfio import read_bdf, read_edf

from patchbay.errors import InputError
from patchbay.models.neuript.edf_records import BDF_MAGIC, COUNT, SECONDS, SIGNALS, Records, check_times
from patchbay.models.neuript.recording import MICROVOLTS, Recording, is_eeg, plain_unit
from patchbay.models.neuript.signatures import SIGNATURE_BYTES, what_it_is

EDF_MAGIC = b"0       "
_HEADER_BYTES = slice(184, 192)  # of the header: how long it is
_NUMBERS: Mapping[str, tuple[slice, type[int] | type[float]]] = {
    "number of records": (COUNT, int),
    "length of a record": (SECONDS, float),
    "number of signals": (SIGNALS, int),
}
_NO_ANNOTATION = "No valid annotations"
_NO_NUMBER = ("invalid literal", "could not convert")
_DIMENSIONS: Mapping[str, str] = {"uv": "uV", "microvolt": "uV", "microvolts": "uV", "mv": "mV", "v": "V"}


@dataclass(frozen=True, slots=True)
class Event:
    """In seconds from the recording's beginning; `duration` None where the file has none."""

    onset: float
    duration: float | None
    text: str


@dataclass(frozen=True, slots=True)
class EdfFile:
    """`recording` is in its channels' unit, or in microvolts where they have several."""

    recording: Recording
    events: tuple[Event, ...]


def read(source: Path | bytes, *, unit: str | None = None) -> EdfFile:
    """`unit` is what channels are in, whatever the file says of them. What is there of a file that was cut off is read,
    and the recording's notes say so, and that the file says another unit or has more than its header says.

    Raises InputError for what is no EDF or BDF file, for one with gaps (EDF+D) or with times that contradict its
    header, for a channel without a gain, and for a unit that is no voltage.
    """
    head: bytes | None = None
    try:
        head, size = _head(source)
        _check_header(head, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what was cut off, which is a note
            found, records = _opened(source, head)
            signals, events = found.signals, found.annotations
            channels = {signal.label: np.array(signal.data) for signal in _distinct(signals)}
        if not len(next(iter(channels.values()), ())):
            raise InputError("the file has a header and no samples", param="file")
        check_times(source, records)
    except InputError:
        raise
    except Exception as error:  # whatever a header's bytes provoke in the parser
        known = None if head is None else what_it_is(head)
        reason = known or f"that can be read: {_why(error)}"
        raise InputError(f"this is no EDF or BDF file {reason}", param="file") from error
    kept, dropped = _one_rate(signals)
    if not kept:
        raise InputError("the file has no channel that is EEG by its name", param="file")
    _check_gains(kept)
    names = tuple(signal.label for signal in kept)
    rows, shared = _in_one_unit([channels[name] for name in names], [unit or _unit(signal) for signal in kept])
    notes = (*records.notes(), *_other_unit(kept, unit))
    rate = float(kept[0].sampling_frequency)
    recording = Recording(rows, rate, names, shared, dropped=dropped, notes=notes)
    return EdfFile(recording, tuple(Event(each.onset, each.duration, each.text) for each in events))


def _head(source: Path | bytes) -> tuple[bytes, int]:
    """The first bytes, and how many there are in all."""
    if isinstance(source, bytes):
        return source[:SIGNATURE_BYTES], len(source)
    with source.open("rb") as file:
        return file.read(SIGNATURE_BYTES), source.stat().st_size


def _check_header(head: bytes, size: int) -> None:
    """Raises InputError for one that is cut off, of another length than its signals need, or has words for numbers."""
    if not head.startswith((EDF_MAGIC, BDF_MAGIC)):
        return
    signals, said = head[SIGNALS].strip() if len(head) >= SIGNALS.stop else b"", head[_HEADER_BYTES].strip()
    needed = 256 * (1 + int(signals)) if signals.isdigit() else 256
    if size < needed:
        raise InputError(f"the file is cut off in its header: {size} of {needed} bytes are there", param="file")
    if signals.isdigit() and said.isdigit() and int(said) != needed:
        raise InputError(
            f"the header says that it has {int(said)} bytes, and that of {int(signals)} signals has {needed}: it is "
            "damaged",
            param="file",
        )
    for name, (place, number) in _NUMBERS.items():
        text = head[place].decode("latin-1").strip()
        try:
            number(text or 0)  # one that is blank all over is no such header
        except ValueError:
            message = f"the header's {name} is {text!r}, which is no number: it is damaged"
            raise InputError(message, param="file") from None


def _why(error: Exception) -> str:
    """The parser's own words where it has any: those of Python about a text that is no number say nothing of a file."""
    if not isinstance(error, ValueError):
        return "its header contradicts itself"
    if isinstance(error, UnicodeDecodeError):
        return "its annotations are not UTF-8, as EDF+ has them"
    said = str(error).partition("\n")[0][:200]
    if said.startswith(_NO_ANNOTATION):
        return "a record of its annotations has something else in it"
    return "its header lacks a number where one belongs" if said.startswith(_NO_NUMBER) else said


def _opened(source: Path | bytes, head: bytes) -> tuple[Any, Records]:
    """Without the records that its annotations cannot be read in."""
    opens = read_bdf if head.startswith(BDF_MAGIC) else read_edf
    # Many files write the sign of micro, or a name, in Latin-1, where the format has ASCII.
    found = opens(source, header_encoding="latin-1")
    records = Records.of(source)
    return opens(records.cut(source), header_encoding="latin-1") if records.has_more else found, records


def _in_one_unit(rows: Sequence[Any], units: Sequence[str]) -> tuple[Any, str]:
    if len(set(units)) == 1:
        return np.stack(rows), units[0]
    return np.stack([row * MICROVOLTS[unit] for row, unit in zip(rows, units, strict=True)]), "uV"


def _other_unit(kept: Sequence[Any], unit: str | None) -> list[str]:
    written = {str(signal.physical_dimension).strip() for signal in kept}
    if unit is None or {_DIMENSIONS.get(plain_unit(each).lower()) for each in written} == {unit}:
        return []
    told = " and ".join(sorted(map(repr, written)))
    return [f"channels were taken to be in {unit}, as the request says, and not in {told}, as the file does"]


def _distinct(signals: Sequence[Any]) -> Sequence[Any]:
    labels = [signal.label for signal in signals]
    twice = next((label for label in labels if labels.count(label) > 1 and is_eeg(label)), None)
    if twice is not None:
        raise InputError(f"the file has two channels called {twice!r}: rename or remove one", param="ch_names")
    return signals


def _one_rate(signals: Sequence[Any]) -> tuple[list[Any], dict[str, str]]:
    """EEG by its name, at the rate that most of it has; and why others are not."""
    dropped = {signal.label: "no EEG by its name" for signal in signals if not is_eeg(signal.label)}
    eeg = [signal for signal in signals if signal.label not in dropped]
    if not eeg:
        return [], dropped
    rate, _ = Counter(signal.sampling_frequency for signal in eeg).most_common(1)[0]
    dropped |= {s.label: f"recorded at {s.sampling_frequency:g} Hz" for s in eeg if s.sampling_frequency != rate}
    return [signal for signal in eeg if signal.sampling_frequency == rate], dropped


def _check_gains(kept: Sequence[Any]) -> None:
    """Raises InputError where a digit is no number of the unit: edfio takes it for one, and says nothing."""
    for signal in kept:
        try:
            digits, values = signal.digital_range, signal.physical_range
        except ValueError:
            message = f"channel {signal.label!r} has no numbers where its header says its range: the file is damaged"
            raise InputError(message, param="file") from None
        if digits.min == digits.max or values.min == values.max:
            raise InputError(
                f"channel {signal.label!r} has no gain by its header, where digits from {digits.min} to {digits.max} "
                f"are {values.min:g} to {values.max:g} {signal.physical_dimension}: the file is damaged",
                param="file",
            )


def _unit(signal: Any) -> str:
    written = signal.physical_dimension
    plain = plain_unit(written).lower()
    if plain not in _DIMENSIONS:
        raise InputError(
            f"channel {signal.label!r} is in {written!r} by its file, which is no voltage: say what it is in",
            param="unit",
        )
    return _DIMENSIONS[plain]
