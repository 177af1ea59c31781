"""From a recording to what the model reads: referenced, filtered, at 64 Hz, in windows, companded.

The same steps for every recording: they are part of what the model's input means. Knows nothing of files and of labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from scipy import signal as filters  # type: ignore[import-untyped]

from patchbay.errors import InputError
from patchbay.models.neuript.channels import (
    ALIKE,
    IN_NO_PAIR,
    NOT_ASKED,
    NOT_EEG,
    SAME_AS_AVERAGE,
    UNKNOWN,
    chosen,
    derived,
    identical,
    lacking,
    placed,
    shown_lacking,
    without_flat,
)
from patchbay.models.neuript.companding import compand
from patchbay.models.neuript.montage import Montage
from patchbay.models.neuript.recording import Recording, Signal, check_unit, checked, implausible, plain_unit
from patchbay.models.neuript.rests import Rests
from patchbay.models.neuript.steps import RATE, Steps
from patchbay.models.signals import SignalInput

OUTSIDE = "not within the recording"
LOUDEST_UV, FAINTEST_UV = 100.0, 3.0
ORDER = 4
NOTCH_QUALITY = 30.0
SETTLING_S = 10.0  # of the band's lower edge: as much is mirrored at both ends
MOST_DENOMINATOR = 10_000
MOST_SAMPLES = 1 << 27  # of all windows of a recording: a gigabyte in double precision
PLAIN = Steps()
HARMLESS = (NOT_EEG, NOT_ASKED, UNKNOWN, IN_NO_PAIR)  # reasons for which a channel is left out as it should be


@dataclass(frozen=True, slots=True)
class Rejected:
    """A window that was left out, and the channels because of which."""

    start: float
    reason: str
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Windows:
    """`signal`: companded fp32 [N, D, T] at 64 Hz; `starts` in seconds from the recording's beginning. `dropped`:
    channel -> why; `done`: what was made of the recording, in order; `warnings`: what an answer may be worse for.
    """

    signal: torch.Tensor
    starts: tuple[float, ...]
    montage: Montage
    rejected: tuple[Rejected, ...]
    dropped: dict[str, str]
    done: tuple[str, ...]
    warnings: tuple[str, ...] = ()

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
    _check_length(given, steps)
    own, dropped = given.positions or {}, dict(given.dropped)
    kept, wanted = chosen(given.signal, given.names, own, steps, dropped)
    done = [f"to microvolts from {recording.unit}"]
    found = filtered(kept, given.rate, steps, done)
    rests = Rests.of(kept, wanted, given.rate, steps.window_seconds)
    check_unit(found[:, rests.moving], wanted, plain_unit(recording.unit))
    # Before the reference: a dead channel less the average is the average, and with another one it is that.
    found, names = without_flat(found, wanted, dropped)
    rests = rests.of_channels(names)
    odd = (*implausible(found[:, rests.moving], names, steps.reference), *identical(kept, wanted, dropped))
    notes = (*given.notes, *_lacks_band(given.rate, steps), *odd)
    made, names = derived(found, names, steps, dropped, done)
    found, names = without_flat(made, names, dropped, ALIKE if steps.pairs else SAME_AS_AVERAGE)
    montage = placed(names, own)
    return _windows(resampled(found, given.rate, done), steps, starts, montage, rests, dropped, done, notes)


def _windows(
    signal: Signal,
    steps: Steps,
    starts: Sequence[float] | None,
    montage: Montage,
    rests: Rests,
    dropped: dict[str, str],
    done: list[str],
    notes: tuple[str, ...],
) -> Windows:
    names = [channel.name for channel in montage.channels]
    cut, begins, outside = _cut(signal, steps, starts)
    still, said = rests.reasons(begins, steps.window_seconds, rejects=steps.rejects)
    reasons = [
        why or (_reason(window, names) if steps.rejects else None) for window, why in zip(cut, still, strict=True)
    ]
    rejected = tuple(Rejected(start, *why) for start, why in zip(begins, reasons, strict=True) if why)
    fine = [number for number, why in enumerate(reasons) if not why]
    found = compand(torch.from_numpy(np.ascontiguousarray(cut[fine])).float())
    done.append("A-law companded (A = 0.25)")
    kept = tuple(begins[number] for number in fine)
    warnings = (*notes, *said, *_warnings(steps, montage, dropped))
    return Windows(found, kept, montage, (*rejected, *outside), dropped, tuple(done), warnings)


def _warnings(steps: Steps, montage: Montage, dropped: dict[str, str]) -> list[str]:
    """Of channels that a model would have read."""
    missing = lacking(steps, montage, dropped)
    if steps.channels is not None or steps.pairs is not None:
        return [shown_lacking(steps, missing, dropped)] if missing else []
    return [f"{name} is left out: {why}" for name, why in dropped.items() if why not in HARMLESS]


def _lacks_band(rate: float, steps: Steps) -> list[str]:
    high = steps.band_hz[1]
    return [f"at {rate:g} Hz nothing above {rate / 2:g} Hz is recorded, and up to {high:g} is read"] * (high > rate / 2)


def _check_length(recording: Recording, steps: Steps) -> None:
    count = math.ceil(recording.signal.shape[1] * _ratio(recording.rate))
    if count < round(steps.window_seconds * RATE):
        rows, samples = recording.signal.shape
        turned = f"; the signal has {rows} channels of {samples} samples: is it turned?" if rows > samples else ""
        raise InputError(
            f"the recording has {recording.seconds:.3g} s and a window {steps.window_seconds:g}: send more, or ask for "
            f"shorter windows{turned}",
            param="window_s",
        )


def filtered(signal: Signal, rate: float, steps: Steps, done: list[str]) -> Signal:
    """[channels, samples], band-passed, forwards and backwards so that nothing is delayed, and without the mains where
    they are recorded.
    """
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


def resampled(signal: Signal, rate: float, done: list[str]) -> Signal:
    """At 64 Hz."""
    ratio = _ratio(rate)
    if ratio == 1:
        return signal
    found: Signal = filters.resample_poly(signal, ratio.numerator, ratio.denominator, axis=1)
    done.append(f"resampled from {rate:g} to {RATE} Hz")
    return found


def _ratio(rate: float) -> Fraction:
    return Fraction(RATE / rate).limit_denominator(MOST_DENOMINATOR)


def _cut(signal: Signal, steps: Steps, starts: Sequence[float] | None) -> tuple[Signal, list[float], list[Rejected]]:
    """[N, D, T], where each begins, in seconds, and what cannot be cut."""
    length = round(steps.window_seconds * RATE)
    stride = max(1, round((steps.stride_seconds or steps.window_seconds) * RATE))
    last = signal.shape[1] - length
    asked = list(range(0, last + 1, stride)) if starts is None else [round(start * RATE) for start in starts]
    firsts = [first for first in asked if 0 <= first <= last]
    if len(firsts) * len(signal) * length > MOST_SAMPLES:
        raise InputError(
            f"{len(firsts):,} windows of {len(signal)} channels and {length} samples are too many to hold: take a "
            "longer stride, or the recording in pieces",
            param="stride_s",
        )
    outside = [Rejected(first / RATE, OUTSIDE) for first in asked if not 0 <= first <= last]
    cut = [signal[:, first : first + length] for first in firsts]
    stacked = np.stack(cut) if cut else np.zeros((0, len(signal), length))
    return stacked, [first / RATE for first in firsts], outside


def _reason(window: Signal, names: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """Why a window is none to read (paper, appendix E.1), and by which channels."""
    largest = np.abs(window).max(1)
    kinds = {
        f"over {LOUDEST_UV:g} uV": largest > LOUDEST_UV,
        f"a channel within {FAINTEST_UV:g} uV": largest < FAINTEST_UV,
        f"a channel never within {FAINTEST_UV:g} uV of zero": (window.min(1) > FAINTEST_UV)
        | (window.max(1) < -FAINTEST_UV),
    }
    for reason, found in kinds.items():
        if found.any():
            return reason, tuple(name for name, is_why in zip(names, found, strict=True) if is_why)
    return None
