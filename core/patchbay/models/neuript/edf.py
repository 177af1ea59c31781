"""EDF and BDF files as recordings, with their annotations. What a file says of a patient is never read.

Knows nothing of models.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edfio import read_bdf, read_edf

from patchbay.errors import InputError
from patchbay.models.neuript.recording import MICROVOLTS, Recording, is_eeg

BDF_MAGIC = b"\xffBIOSEMI"
_DIMENSIONS: Mapping[str, str] = {"uv": "uV", "microvolt": "uV", "microvolts": "uV", "mv": "mV", "v": "V"}


@dataclass(frozen=True, slots=True)
class Event:
    """In seconds from the recording's beginning; `duration` None where the file has none."""

    onset: float
    duration: float | None
    text: str


@dataclass(frozen=True, slots=True)
class EdfFile:
    """`recording` is in microvolts. `dropped`: channel -> why it is not in it."""

    recording: Recording
    events: tuple[Event, ...]
    dropped: Mapping[str, str]


def read(source: Path | bytes, *, unit: str | None = None) -> EdfFile:
    """`unit` is what channels are in, whatever the file says of them.

    Raises InputError for what is no EDF or BDF file, for one with gaps (EDF+D), and for a unit that is no voltage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that were cut off: what is there is read
            found = _opened(source)
            signals, events = found.signals, found.annotations
            has_gaps = not found.is_continuous
            channels = {signal.label: np.array(signal.data) for signal in _distinct(signals)}
    except InputError:
        raise
    except Exception as error:  # whatever a header's bytes provoke in the parser
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"this is no EDF or BDF file that can be read: {reason}", param="file") from error
    if has_gaps:
        raise InputError("the recording has gaps (EDF+D): send its pieces one by one", param="file")
    kept, dropped = _one_rate(signals)
    if not kept:
        raise InputError("the file has no channel that is EEG by its name", param="file")
    rows = [channels[signal.label] * MICROVOLTS[unit or _unit(signal)] for signal in kept]
    names = tuple(signal.label for signal in kept)
    recording = Recording(np.stack(rows), float(kept[0].sampling_frequency), names, "uV")
    return EdfFile(recording, tuple(Event(each.onset, each.duration, each.text) for each in events), dropped)


def _opened(source: Path | bytes) -> Any:
    if isinstance(source, Path):
        with source.open("rb") as file:
            magic = file.read(len(BDF_MAGIC))
    else:
        magic = source[: len(BDF_MAGIC)]
    # Many files write the sign of micro, or a name, in Latin-1, where the format has ASCII.
    return (read_bdf if magic == BDF_MAGIC else read_edf)(source, header_encoding="latin-1")


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


def _unit(signal: Any) -> str:
    written = signal.physical_dimension
    plain = re.sub("^[µμ]", "u", written.strip()).lower()
    if plain not in _DIMENSIONS:
        raise InputError(
            f"channel {signal.label!r} is in {written!r} by its file, which is no voltage: say what it is in",
            param="unit",
        )
    return _DIMENSIONS[plain]
