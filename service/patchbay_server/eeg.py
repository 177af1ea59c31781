"""A request's recordings as windows of the model that is asked, and what was done to them, as the answer says it.

Knows nothing of how models answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.errors import InputError
from patchbay.models.neuript.channels import check_coverage
from patchbay.models.neuript.preprocess import OUTSIDE, Rejected, Windows, windows
from patchbay.models.neuript.recording import Recording, listed
from patchbay.models.neuript.steps import RATE, Steps
from patchbay.models.signals import SignalInput
from patchbay_server.recordings import RecordingRequest
from patchbay_server.schemas import MAX_INPUTS

PREPROCESSING = "preprocessing"  # of a model's config


@dataclass(frozen=True, slots=True)
class Prepared:
    """`found`: of each recording. `steps`: what was done to all of them. `onsets`: where a window begins -> the onset
    that asked for it, where any did. `departures`: sentences on what was asked for and is not as in training.
    """

    recordings: Sequence[Recording]
    found: Sequence[Windows]
    steps: Steps
    onsets: Mapping[float, float]
    departures: Sequence[str] = ()

    @property
    def inputs(self) -> list[SignalInput]:
        return [item for windows in self.found for item in windows.inputs]

    @property
    def places(self) -> list[dict[str, Any]]:
        """Of each window: its trial, where there are several, its onset, where it has one, and when it is, in
        seconds.
        """
        length = _whole(self.steps.window_seconds)
        return [
            {"index": 0, **self._place(trial, start), "t1": min(start + length, self.recordings[trial].seconds)}
            for trial, windows in enumerate(self.found)
            for start in windows.starts
        ]

    def describe(self) -> dict[str, Any]:
        """The `recording` and `preprocessing` objects of an answer."""
        first, recording = self.found[0], self.recordings[0]
        channels = {channel.name: channel for windows in self.found for channel in windows.montage.channels}
        return {
            "recording": {
                "seconds": recording.seconds,
                "sfreq": recording.rate,
                "channels": list(channels),
                "trials": len(self.found),
                "windows": sum(len(windows.starts) for windows in self.found),
            },
            "preprocessing": {
                "window_s": _whole(self.steps.window_seconds),
                "stride_s": _whole(self.steps.stride_seconds or self.steps.window_seconds),
                "done": list(first.done),
                "dropped": _told([windows.dropped.items() for windows in self.found]),
                "rejected": [
                    {**self._place(trial, one.start), "reason": one.reason}
                    for trial, windows in enumerate(self.found)
                    for one in windows.rejected
                ],
                "warnings": self._warnings(),
                "positions_mm": {name: list(channel.position) for name, channel in channels.items()},
            },
        }

    def _place(self, trial: int, start: float) -> dict[str, Any]:
        onset = {"onset": self.onsets[start]} if start in self.onsets else {}
        return {**({"trial": trial} if len(self.found) > 1 else {}), **onset, "t0": start}

    def _warnings(self) -> list[str]:
        texts = _told([[(text, "") for text in windows.warnings] for windows in self.found])
        said = [*(text + where for text, where in texts.items()), *self.departures]
        rejected = sum(len(windows.rejected) for windows in self.found)
        if self.onsets and rejected:
            said.append(f"{rejected} of {rejected + len(self.places)} onsets have no answer: 'rejected' says why")
        return said


def _told(found: Sequence[Iterable[tuple[str, str]]]) -> dict[str, str]:
    """First text of a pair -> second, with the trials that it is of where it is not of all."""
    trials: dict[tuple[str, str], list[str]] = {}
    for trial, pairs in enumerate(found):
        for pair in pairs:
            trials.setdefault(pair, []).append(str(trial))
    told: dict[str, list[str]] = {}
    for (name, text), of in trials.items():
        told.setdefault(name, []).append(text if len(of) == len(found) else f"{text} in trial {listed(of)}")
    return {name: "; ".join(texts) for name, texts in told.items()}


def steps_of(
    asked: RecordingRequest, backbone: Backbone, deltas: Mapping[str, Delta], head: str | None
) -> tuple[Steps, list[str]]:
    """As the model was trained: what the delta says whose head answers, or else the base; then what the request says,
    and sentences on where it departs from that.

    `deltas` by the names that the request uses. One that was trained as the base says nothing. Raises InputError where
    several deltas were trained on recordings that were prepared in different ways and the request does not say which of
    them is meant.
    """
    base: Any = getattr(backbone.architecture.config, PREPROCESSING, None)
    known = {name: delta.manifest.config.get(PREPROCESSING) or base for name, delta in deltas.items()}
    if head in known:
        known = {head: known[head]}
    told = [found for found in known.values() if found]
    if any(found != told[0] for found in told):
        names = " and ".join(repr(name) for name, found in known.items() if found)
        raise InputError(
            f"{names} were trained on other windows or channels: say whose are meant with 'head'", param="head"
        )
    trained = told[0] if told else base
    known_steps = Steps.of(trained) if trained else Steps()
    found = _asked(known_steps, asked)
    return found, _departures(known_steps, found) if trained else []


def _departures(trained: Steps, asked: Steps) -> list[str]:
    """Of what changes the model's input: strides and rejected windows do not."""
    pairs = {
        "window_s": (asked.window_seconds, trained.window_seconds),
        "reference": (asked.reference, trained.reference),
        "line_freq": (asked.line_hz, trained.line_hz),
    }
    return [
        f"{name} is {_shown(here)}, and the model was trained with {_shown(there)}"
        for name, (here, there) in pairs.items()
        if here != there
    ]


def _shown(value: float | str | None) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else repr(value)


def _whole(seconds: float) -> float:
    """Of as many samples as are read."""
    return max(1, round(seconds * RATE)) / RATE


def _asked(steps: Steps, asked: RecordingRequest) -> Steps:
    fields = {
        "window_seconds": asked.window_s,
        "stride_seconds": asked.stride_s,
        "reference": asked.reference,
        "line_hz": asked.line_freq,
        "rejects": asked.reject,
    }
    names = {"window_seconds": "window_s", "stride_seconds": "stride_s", "line_hz": "line_freq"}
    changes = {name: value for name, value in fields.items() if value is not None}
    for name, value in changes.items():
        try:
            steps = Steps.of({**steps.to_config(), name: value})
        except InputError as error:
            message = error.message.replace(f"{PREPROCESSING}.{name}", names.get(name, name))
            raise InputError(message, param=names.get(name, name)) from error
    return replace(steps, onset_seconds=steps.onset_seconds if asked.onsets else None)


def prepared(
    recordings: Sequence[Recording], steps: Steps, onsets: Sequence[float] | None, departures: Sequence[str] = ()
) -> Prepared:
    """Raises InputError for what cannot be read, where no window is left, or more than an answer may have, and where
    channels that the model lists are lacking and it would read zeros.
    """
    starts = None if onsets is None else [onset + (steps.onset_seconds or 0.0) for onset in onsets]
    found = []
    for trial, recording in enumerate(recordings):
        try:
            found.append(windows(recording, steps, starts))
            check_coverage(steps, found[-1].montage, found[-1].dropped)
        except InputError as error:
            where = f"trial {trial}: " if len(recordings) > 1 else ""
            raise InputError(f"{where}{error.message}", param=error.param) from error
    count = sum(len(one.starts) for one in found)
    if count > MAX_INPUTS:
        raise InputError(f"{count} windows are more than {MAX_INPUTS}: take a longer stride", param="stride_s")
    if not count:
        raise _none_left([one for windows in found for one in windows.rejected], recordings[0], steps)
    asked = zip(starts or (), onsets or (), strict=True)
    begins = {round(start * RATE) / RATE: onset for start, onset in asked}
    return Prepared(recordings, found, steps, begins, departures)


def _none_left(rejected: Sequence[Rejected], recording: Recording, steps: Steps) -> InputError:
    counts = Counter(one.reason for one in rejected)
    if set(counts) == {OUTSIDE}:
        first = rejected[0].start
        return InputError(
            f"no window is left: those of all onsets are {OUTSIDE}, which has {recording.seconds:g} s; the first would "
            f"be from {first:g} to {first + steps.window_seconds:g} s",
            param="onsets",
        )
    told = ", ".join(f"{count} {why}" if len(counts) > 1 else why for why, count in counts.items())
    return InputError(f"no window is left: all were rejected ({told}); 'reject': false keeps them", param="reject")
