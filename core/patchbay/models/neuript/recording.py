"""A recording as it comes: channels by name in some unit, at some rate. What it must be, and what cannot be.

Knows nothing of files and of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from patchbay.errors import InputError
from patchbay.models.neuript.montage import Position
from patchbay.models.neuript.references import references_of
from patchbay.models.neuript.steps import MOST_CHANNELS

Signal = npt.NDArray[np.float64]
MICROVOLTS: Mapping[str, float] = {"uV": 1.0, "mV": 1e3, "V": 1e6}
LEAST_RATE = 40.0  # in Hz: below, the band that the model reads is not there
# Robust deviations of a channel that EEG has, generously: outside of them the unit is another one.
PLAUSIBLE_UV = (0.5, 500.0)
USUAL_UV = (1.5, 150.0)  # of a typical channel: outside of them a factor of ten may be lost
FLAT_UV = 1e-6  # what is left of a constant by a filter
DEAD_UV = PLAUSIBLE_UV[0]  # from its least to its most: a channel of recorded EEG does more
# Of an electrode from the frame's origin, which is inside the head: those of the 10-05 system are 81 to 122 away.
NEAREST_MM, FARTHEST_MM = 40.0, 250.0
SHOWN = 8  # names in a message
_NO_EEG = re.compile(
    r"\s*(ecg|ekg|emg|eog|hEOG|vEOG|loc|roc|resp|spo2|sao2|osat|pulse|pleth|photic|ibi|bursts|suppr|status|trig|sti\b"
    r"|stim|dc\d|cq_|gyro|acc|mag[xyz]|time|counter|interp|marker|event|annot|temp|battery|airflow|thor|abdo|snore)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Recording:
    """`signal` [channels, samples] in `unit`. `positions`, in millimetres, are of channels that the system lacks.
    `dropped`: channels of the file that are not in it -> why. `notes`: what else whoever reads the answer should know.
    """

    signal: Signal
    rate: float
    names: tuple[str, ...]
    unit: str
    positions: Mapping[str, Position] | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return float(self.signal.shape[1] / self.rate)


def checked(recording: Recording) -> Recording:
    """In microvolts, with a note where names say different references. Raises InputError for what no recording is."""
    signal, names = np.asarray(recording.signal, np.float64), recording.names
    if signal.ndim != 2 or not signal.size:
        raise InputError(f"a recording has channels and samples, not the shape {list(signal.shape)}", param="signal")
    if len(names) != len(signal):
        turned = "; the signal is [channels][samples], and seems to be turned: transpose it"
        hint = turned if len(names) == signal.shape[1] or len(signal) > signal.shape[1] else ""
        raise InputError(f"{len(signal)} channels have {len(names)} names: give one a channel{hint}", param="ch_names")
    if len(signal) > MOST_CHANNELS:
        raise InputError(f"{len(signal)} channels are more than {MOST_CHANNELS}", param="signal")
    if not (np.isfinite(recording.rate) and recording.rate >= LEAST_RATE):
        raise InputError(f"a rate of {recording.rate:g} Hz is below {LEAST_RATE:g}", param="sfreq")
    unit = plain_unit(recording.unit)
    if unit not in MICROVOLTS:
        raise InputError(f"{recording.unit!r} is no unit: give uV, mV or V", param="unit")
    for name, channel in zip(names, signal, strict=True):
        if not np.isfinite(channel).all():
            place = int(np.argmin(np.isfinite(channel)))
            raise InputError(f"channel {name!r} has NaN or infinity at sample {place}", param="signal")
    _check_positions(recording.positions or {}, (*names, *recording.dropped))
    notes = (*recording.notes, *_mixed(names))
    return replace(recording, signal=signal * MICROVOLTS[unit], unit="uV", notes=notes)


def _mixed(names: Sequence[str]) -> list[str]:
    found = references_of([name for name in names if is_eeg(name)])
    told = "; ".join(f"{reference} of {listed(channels)}" for reference, channels in found.items())
    return [f"names say different references ({told}): the channels do not compare with each other"] * (len(found) > 1)


def plain_unit(written: str) -> str:
    """With `u` for micro: Unicode has two signs of it, each of which is two letters where UTF-8 was read as Latin-1."""
    return re.sub("^(?:\u00c2\u00b5|\u00ce\u00bc|[\u00b5\u03bc])", "u", written.strip())


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many there are more."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def is_eeg(name: str) -> bool:
    """Not by its name something else: a heart, an eye, a muscle, a trigger."""
    return _NO_EEG.match(name) is None


def _check_positions(positions: Mapping[str, Position], names: Sequence[str]) -> None:
    for name, where in positions.items():
        if name not in names:
            raise InputError(
                f"a position is given for {name!r}, and no channel is called so: they are {listed(names)}",
                param="ch_pos_mm",
            )
        distance = float(np.linalg.norm(where))
        if not _is_on_head(distance):
            fits = [unit for unit, mm in (("metres", 1e3), ("centimetres", 10.0)) if _is_on_head(distance * mm)]
            hint = f": in {fits[0]} it would be; multiply by {1000 if fits[0] == 'metres' else 10}" if fits else ""
            raise InputError(
                f"the position of {name!r} is {distance:.3g} mm from the head's middle, where no electrode is{hint}",
                param="ch_pos_mm",
            )


def _is_on_head(distance: float) -> bool:
    return NEAREST_MM <= distance <= FARTHEST_MM


def check_unit(signal: Signal, names: Sequence[str], unit: str) -> None:
    """Of a signal in microvolts whose slow drifts are gone. Raises InputError, with the unit that it seems to be in,
    where half of the channels are larger or smaller than any EEG, or all are flat.
    """
    deviations = _swings(signal)
    swinging = deviations[deviations > FLAT_UV]
    if not len(swinging):
        shown = ", ".join(names[:3])
        raise InputError(f"the recording is flat: every channel ({shown} ...) has one value", param="signal")
    typical = float(np.median(swinging))
    low, high = PLAUSIBLE_UV
    if low <= typical <= high:
        return
    fitting = [other for other, factor in MICROVOLTS.items() if low <= typical * factor / MICROVOLTS[unit] <= high]
    hint = f"as {fitting[0]!r} it would be EEG" if fitting else _of_no_unit(typical, unit)
    raise InputError(
        f"a typical channel swings by {typical:.3g} uV where the unit is {unit!r}, which no EEG does ({low:g} to "
        f"{high:g}): {hint}",
        param="unit",
    )


def _of_no_unit(typical: float, unit: str) -> str:
    """What makes EEG of numbers that no other unit does."""
    power = round(np.log10((PLAUSIBLE_UV[0] * PLAUSIBLE_UV[1]) ** 0.5 / typical))
    is_nano = unit == "uV" and power == -3
    meant = "are they in nV?" if is_nano else "an amplifier's counts are multiplied by what one of them is"
    return f"1e{power} times as much would be EEG; {meant}"


def implausible(signal: Signal, names: Sequence[str], reference: str) -> tuple[str, ...]:
    """What to say of channels that swing as no EEG does, where a typical one does not, and of a typical one that swings
    as little EEG does. Flat ones are none of them.
    """
    low, high = PLAUSIBLE_UV
    swings = _swings(signal)
    typical = float(np.median(swings[swings > FLAT_UV]))
    least, most = USUAL_UV
    shared = ", and by the average is in all others, too: leave it out" if reference == "average" else ""
    unusual = (
        f"a typical channel swings by {typical:.3g} uV, where {least:g} to {most:g} are usual: is the unit right, and "
        "the gain?"
    )
    return (unusual,) * (not least <= typical <= most) + tuple(
        f"{name} swings by {swing:.3g} uV, which no EEG does ({low:g} to {high:g}): it may be in another unit, or "
        f"loose{shared}"
        for name, swing in zip(names, swings.tolist(), strict=True)
        if swing > FLAT_UV and not low <= swing <= high
    )


def _swings(signal: Signal) -> Signal:
    """A standard deviation for every channel, by medians: bursts and drifts do not count."""
    deviations: Signal = 1.4826 * np.median(np.abs(signal - np.median(signal, 1, keepdims=True)), 1)
    return deviations
