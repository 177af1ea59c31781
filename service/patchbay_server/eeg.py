"""A request's recordings as windows of the model that is asked, and what was done to them, as the answer says it.

Knows nothing of how models answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.errors import InputError
from patchbay.models.neuript.preprocess import Windows, windows
from patchbay.models.neuript.recording import Recording
from patchbay.models.neuript.steps import RATE, Steps
from patchbay.models.signals import SignalInput
from patchbay_server.recordings import RecordingRequest
from patchbay_server.schemas import MAX_INPUTS

PREPROCESSING = "preprocessing"  # of a model's config


@dataclass(frozen=True, slots=True)
class Prepared:
    """`found`: of each recording. `steps`: what was done to all of them."""

    recordings: Sequence[Recording]
    found: Sequence[Windows]
    steps: Steps

    @property
    def inputs(self) -> list[SignalInput]:
        return [item for windows in self.found for item in windows.inputs]

    @property
    def places(self) -> list[dict[str, Any]]:
        """Of each window: its trial, where there are several, and when it is, in seconds."""
        length = _whole(self.steps.window_seconds)
        return [
            {"index": 0, **({"trial": trial} if len(self.found) > 1 else {}), "t0": start, "t1": start + length}
            for trial, windows in enumerate(self.found)
            for start in windows.starts
        ]

    def describe(self) -> dict[str, Any]:
        """The `recording` and `preprocessing` objects of an answer."""
        first, recording = self.found[0], self.recordings[0]
        channels = first.montage.channels
        rejected = [
            {**({"trial": trial} if len(self.found) > 1 else {}), "t0": one.start, "reason": one.reason}
            for trial, windows in enumerate(self.found)
            for one in windows.rejected
        ]
        return {
            "recording": {
                "seconds": recording.seconds,
                "sfreq": recording.rate,
                "channels": [channel.name for channel in channels],
                "trials": len(self.found),
                "windows": sum(len(windows.starts) for windows in self.found),
            },
            "preprocessing": {
                "window_s": _whole(self.steps.window_seconds),
                "stride_s": _whole(self.steps.stride_seconds or self.steps.window_seconds),
                "done": list(first.done),
                "dropped": first.dropped,
                "rejected": rejected,
                "positions_mm": {channel.name: list(channel.position) for channel in channels},
            },
        }


def steps_of(asked: RecordingRequest, backbone: Backbone, deltas: Mapping[str, Delta], head: str | None) -> Steps:
    """As the model was trained: what the delta says whose head answers, or else the base; then what the request says.

    `deltas` by the names that the request uses. Raises InputError where several deltas were trained on recordings that
    were prepared in different ways and the request does not say which of them is meant.
    """
    known = {name: delta.manifest.config.get(PREPROCESSING) for name, delta in deltas.items()}
    if head is not None and known.get(head):
        known = {head: known[head]}
    told = [found for found in known.values() if found]
    if any(found != told[0] for found in told):
        names = " and ".join(repr(name) for name, found in known.items() if found)
        raise InputError(
            f"{names} were trained on other windows or channels: say whose are meant with 'head'", param="head"
        )
    base: Any = getattr(backbone.architecture.config, PREPROCESSING, None)
    trained = told[0] if told else base
    return _asked(Steps.of(trained) if trained else Steps(), asked)


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


def prepared(recordings: Sequence[Recording], steps: Steps, onsets: Sequence[float] | None) -> Prepared:
    """Raises InputError for what cannot be read, and where no window is left, or more than an answer may have."""
    starts = None if onsets is None else [onset + (steps.onset_seconds or 0.0) for onset in onsets]
    found = []
    for trial, recording in enumerate(recordings):
        try:
            found.append(windows(recording, steps, starts))
        except InputError as error:
            where = f"trial {trial}: " if len(recordings) > 1 else ""
            raise InputError(f"{where}{error.message}", param=error.param) from error
    count = sum(len(one.starts) for one in found)
    if count > MAX_INPUTS:
        raise InputError(f"{count} windows are more than {MAX_INPUTS}: take a longer stride", param="stride_s")
    if not count:
        reason = next(one.reason for windows in found for one in windows.rejected)
        raise InputError(f"no window is left: all were rejected ({reason}); 'reject': false keeps them", param="reject")
    return Prepared(recordings, found, steps)
