"""From a recording to what the model reads: referenced, filtered, at 64 Hz, in windows, companded.

The same steps for every recording: they are part of what the model's input means. Knows nothing of files and of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from scipy import signal as filters  # type: ignore[import-untyped]

from patchbay.errors import InputError
from patchbay.models.neuript.companding import compand
from patchbay.models.neuript.montage import Montage, Position, electrodes_of, find_channel
from patchbay.models.neuript.recording import FLAT_UV, Recording, Signal, check_unit, checked, is_eeg
from patchbay.models.neuript.steps import RATE, Steps
from patchbay.models.signals import SignalInput

LOUDEST_UV, FAINTEST_UV = 100.0, 3.0
ORDER = 4
NOTCH_QUALITY = 30.0
SETTLING_S = 10.0  # of the band's lower edge: as much is mirrored at both ends
MOST_DENOMINATOR = 10_000
MOST_SAMPLES = 1 << 27  # of all windows of a recording: a gigabyte in double precision
PLAIN = Steps()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A window that was left out."""

    start: float
    reason: str


@dataclass(frozen=True, slots=True)
class Windows:
    """`signal`: companded fp32 [N, D, T] at 64 Hz; `starts` in seconds from the recording's beginning. `dropped`:
    channel -> why; `done`: what was made of the recording, in order.
    """

    signal: torch.Tensor
    starts: tuple[float, ...]
    montage: Montage
    rejected: tuple[Rejected, ...]
    dropped: dict[str, str]
    done: tuple[str, ...]

    @property
    def inputs(self) -> list[SignalInput]:
        """As a backbone takes them."""
        positions, lobes = self.montage.positions, self.montage.lobes
        return [SignalInput(signal, positions, lobes) for signal in self.signal]


def windows(recording: Recording, steps: Steps = PLAIN, starts: Sequence[float] | None = None) -> Windows:
    """One every stride, or those that begin at `starts`, in seconds; where the recording has no such samples they are
    among the rejected.

    Raises InputError, whose `param` is what is wrong: the unit, the rate, a channel, the length.
    """
    given = checked(recording)
    kept, names, dropped = _eeg(given, steps)
    done = [f"to microvolts from {recording.unit}"]
    filtered = _filtered(kept, given.rate, steps, done)
    check_unit(filtered, names, recording.unit)
    signal, names = _referenced(filtered, names, steps, dropped, done)
    signal, names = _without_flat(signal, names, dropped)
    montage = Montage.of(names, given.positions)
    resampled = _resampled(signal, given.rate, done)
    cut, begins, outside = _cut(resampled, steps, starts)
    reasons = [_reason(window) if steps.rejects else None for window in cut]
    rejected = tuple(Rejected(start, why) for start, why in zip(begins, reasons, strict=True) if why)
    fine = [number for number, why in enumerate(reasons) if not why]
    found = compand(torch.from_numpy(np.ascontiguousarray(cut[fine])).float())
    done.append("A-law companded (A = 0.25)")
    kept_starts = tuple(begins[number] for number in fine)
    return Windows(found, kept_starts, montage, (*rejected, *outside), dropped, tuple(done))


def _eeg(recording: Recording, steps: Steps) -> tuple[Signal, list[str], dict[str, str]]:
    """Channels that are EEG, those that are asked for; a name that looks like it and has no place raises InputError."""
    own = recording.positions or {}
    dropped = {name: "no EEG by its name" for name in recording.names if not is_eeg(name)}
    kept = [number for number, name in enumerate(recording.names) if name not in dropped]
    if not kept:
        raise InputError("no channel is EEG by its name", param="ch_names")
    if steps.channels is None:
        names = [recording.names[number] for number in kept]
        for name in names:
            find_channel(name, own.get(name))
        return recording.signal[kept], names, dropped
    known = {_known(recording.names[number], own): number for number in kept}
    wanted = {_known(name, own): name for name in steps.channels}
    dropped |= {recording.names[number]: "not asked for" for name, number in known.items() if name not in wanted}
    dropped |= {written: "not recorded" for name, written in wanted.items() if name not in known}
    order = [known[name] for name in wanted if name in known]
    if not order:
        raise InputError(f"none of the channels {', '.join(steps.channels[:5])} ... is recorded", param="ch_names")
    return recording.signal[order], [recording.names[number] for number in order], dropped


def _known(name: str, own: Mapping[str, Position]) -> str:
    """As the system writes it, or as it is where the system does not know it."""
    electrodes = electrodes_of(name)
    return name if electrodes is None or name in own else "-".join(electrodes)


def _filtered(signal: Signal, rate: float, steps: Steps, done: list[str]) -> Signal:
    """Band-passed, forwards and backwards so that nothing is delayed, and without the mains where it is recorded."""
    low, high = steps.band_hz
    highest = 0.45 * rate
    is_open = high >= highest
    band, kind = (low, "highpass") if is_open else ((low, high), "bandpass")
    passes = filters.butter(ORDER, band, kind, fs=rate, output="sos")
    found = _both_ways(passes, signal, rate)
    shown = f"high-pass from {low:g} Hz" if is_open else f"band-pass {low:g} to {high:g} Hz"
    done.append(f"{shown} (Butterworth, order {ORDER}, both ways)")
    if steps.line_hz is not None and steps.line_hz < highest:
        notch = filters.tf2sos(*filters.iirnotch(steps.line_hz, NOTCH_QUALITY, rate))
        found = _both_ways(notch, found, rate)
        done.append(f"notch at {steps.line_hz:g} Hz")
    return found


def _both_ways(sections: Signal, signal: Signal, rate: float) -> Signal:
    padding = min(round(SETTLING_S * rate), signal.shape[1] - 1)
    found: Signal = filters.sosfiltfilt(sections, signal, axis=1, padlen=padding)
    return found


def _referenced(
    signal: Signal, names: list[str], steps: Steps, dropped: dict[str, str], done: list[str]
) -> tuple[Signal, list[str]]:
    if steps.reference == "average":
        signal = signal - signal.mean(0, keepdims=True)
        done.append("referenced to the average of all channels")
    if steps.pairs is None:
        return signal, names
    rows = {"-".join(electrodes_of(name) or (name,)): row for name, row in zip(names, signal, strict=True)}
    made, missing = _pairs(rows, steps.pairs)
    dropped.update(missing)
    if not made:
        raise InputError("none of the bipolar channels can be made: their electrodes are not there", param="ch_names")
    done.append(f"{len(made)} bipolar channels made")
    return np.stack(list(made.values())), list(made)


def _pairs(rows: dict[str, Signal], wanted: Sequence[str]) -> tuple[dict[str, Signal], dict[str, str]]:
    """By the names that were asked for; what cannot be made, and why. A pair may have been recorded as such."""
    made, missing = {}, {}
    for pair in wanted:
        electrodes = electrodes_of(pair) or ()
        lacking = [name for name in electrodes if name not in rows]
        if "-".join(electrodes) in rows:
            made[pair] = rows["-".join(electrodes)]
        elif len(electrodes) == 2 and not lacking:
            made[pair] = rows[electrodes[0]] - rows[electrodes[1]]
        else:
            missing[pair] = f"{' and '.join(lacking) or 'a pair of electrodes'} not recorded"
    return made, missing


def _without_flat(signal: Signal, names: list[str], dropped: dict[str, str]) -> tuple[Signal, list[str]]:
    flat = np.ptp(signal, 1) < FLAT_UV
    dropped.update({name: "flat" for name, is_flat in zip(names, flat, strict=True) if is_flat})
    if flat.all():
        raise InputError("the recording is flat: every channel has one value", param="signal")
    return signal[~flat], [name for name, is_flat in zip(names, flat, strict=True) if not is_flat]


def _resampled(signal: Signal, rate: float, done: list[str]) -> Signal:
    ratio = Fraction(RATE / rate).limit_denominator(MOST_DENOMINATOR)
    if ratio == 1:
        return signal
    found: Signal = filters.resample_poly(signal, ratio.numerator, ratio.denominator, axis=1)
    done.append(f"resampled from {rate:g} to {RATE} Hz")
    return found


def _cut(signal: Signal, steps: Steps, starts: Sequence[float] | None) -> tuple[Signal, list[float], list[Rejected]]:
    """[N, D, T], where each begins, in seconds, and what cannot be cut."""
    length = round(steps.window_seconds * RATE)
    stride = max(1, round((steps.stride_seconds or steps.window_seconds) * RATE))
    if signal.shape[1] < length:
        seconds = signal.shape[1] / RATE
        raise InputError(
            f"the recording has {seconds:.3g} s and a window {steps.window_seconds:g}: send more, or ask for shorter "
            "windows",
            param="window_s",
        )
    last = signal.shape[1] - length
    asked = list(range(0, last + 1, stride)) if starts is None else [round(start * RATE) for start in starts]
    firsts = [first for first in asked if 0 <= first <= last]
    if len(firsts) * len(signal) * length > MOST_SAMPLES:
        raise InputError(
            f"{len(firsts):,} windows of {len(signal)} channels and {length} samples are too many to hold: take a "
            "longer stride, or the recording in pieces",
            param="stride_s",
        )
    outside = [Rejected(first / RATE, "not within the recording") for first in asked if not 0 <= first <= last]
    cut = [signal[:, first : first + length] for first in firsts]
    stacked = np.stack(cut) if cut else np.zeros((0, len(signal), length))
    return stacked, [first / RATE for first in firsts], outside


def _reason(window: Signal) -> str | None:
    """Why a window is none to read (paper, appendix E.1)."""
    if np.abs(window).max() > LOUDEST_UV:
        return f"over {LOUDEST_UV:g} uV"
    if (np.abs(window).max(1) < FAINTEST_UV).any():
        return f"a channel within {FAINTEST_UV:g} uV"
    if ((window.min(1) > FAINTEST_UV) | (window.max(1) < -FAINTEST_UV)).any():
        return f"a channel never within {FAINTEST_UV:g} uV of zero"
    return None
