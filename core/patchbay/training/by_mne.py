"""Recordings in formats that MNE reads, where it is installed. Knows nothing of models and of labels."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from patchbay.errors import InputError
from patchbay.models.neuript.edf import Event
from patchbay.models.neuript.recording import Recording, Signal

ENDINGS = (".fif", ".fif.gz", ".gdf", ".cnt", ".set", ".vhdr")
LEAST_GAP = 8  # samples: fewer may be a signal's own


def read(path: Path) -> tuple[Recording, tuple[Event, ...]]:
    """Its EEG channels, in microvolts, and its annotations, in seconds from the first sample.

    Raises InputError without MNE, and for a file that it cannot read.
    """
    try:
        mne = importlib.import_module("mne")
    except ImportError:
        raise InputError("this kind of file is read by MNE: pip install 'patchbay[eeg]'", param="data") from None
    try:
        raw = mne.io.read_raw(path, preload=True, verbose="error")
        found = _recording(raw)
        return replace(found, signal=_bridged(found.signal)) if path.suffix.lower() == ".gdf" else found, _events(raw)
    except Exception as error:  # whatever a file's bytes provoke in MNE
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"MNE cannot read it: {reason}", param="data") from error


def _recording(raw: Any) -> Recording:
    """MNE has volts, and calls channels EEG that are none by their names: those are left to who reads them."""
    chosen = raw.copy().pick("eeg", exclude=())
    names = tuple(chosen.ch_names)
    return Recording(np.asarray(chosen.get_data(), np.float64) * 1e6, float(raw.info["sfreq"]), names, "uV")


def _bridged(signal: Signal) -> Signal:
    """Between runs GDF files have samples that are missing: NaN, or all channels at the lowest number there is. A step
    of millivolts would ring for seconds in a filter, so a straight line stands there; one channel alone may be so low.
    """
    missing = np.isnan(signal).all(0) | (signal == np.where(np.isnan(signal), np.inf, signal).min(1)[:, None]).all(0)
    edges = np.flatnonzero(np.diff(np.r_[False, missing, False].astype(np.int8)))
    for begin, end in edges.reshape(-1, 2):
        if end - begin < LEAST_GAP:
            missing[begin:end] = False
    if not missing.any() or missing.all():
        return signal
    places = np.arange(signal.shape[1])
    return np.stack([np.interp(places, places[~missing], row[~missing]) for row in signal])


def _events(raw: Any) -> tuple[Event, ...]:
    """MNE counts from when the amplifier began, which may be before the first sample that was kept."""
    first = float(raw.first_time) if raw.annotations.orig_time is not None else 0.0
    return tuple(
        Event(float(each["onset"]) - first, float(each["duration"]), str(each["description"]))
        for each in raw.annotations
    )
