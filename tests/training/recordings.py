"""Made-up recordings: slow waves that neighbouring channels share, so that a hidden sample can be guessed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import edfio
import numpy as np

Mark = tuple[float, float | None, str]
NAMES = ("Fp1", "Fp2", "C3", "C4", "O1", "O2")


def signal(seconds: float, rate: float, channels: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    rates, phases = rng.uniform(4, 12, (4, 1)), rng.uniform(0, 6.3, (4, 1))
    waves = np.sin(2 * np.pi * rates * time + phases)
    return 25 * rng.uniform(0.3, 1, (channels, 4)) @ waves + rng.standard_normal((channels, len(time)))


def write_edf(file: Path, *, seconds: float = 40, rate: int = 100, channels: int = 6, seed: int = 0) -> Path:
    return _write(file, signal(seconds, rate, channels, seed), rate, ())


def write_marked(file: Path, events: Sequence[Mark], *, seconds: float = 40, rate: int = 100, seed: int = 0) -> Path:
    """With annotations: onset, duration and text. Where the text ends in 1, there is a rhythm of 10 Hz at the back."""
    rows = signal(seconds, rate, 6, seed)
    time = np.arange(rows.shape[1]) / rate
    for onset, duration, text in events:
        inside = (time >= onset) & (time < onset + (duration or 0.0)) & text.endswith("1")
        rows[4:] += 60 * inside * np.sin(2 * np.pi * 10 * time)
    return _write(file, rows, rate, events)


def _write(file: Path, rows: np.ndarray, rate: int, events: Sequence[Mark]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    edfio.Edf(
        [
            edfio.EdfSignal(row, rate, label=f"EEG {name}-REF", physical_dimension="uV", physical_range=(-400, 400))
            for row, name in zip(rows, NAMES, strict=False)
        ],
        annotations=[edfio.EdfAnnotation(*event) for event in events],
    ).write(file)
    return file


def write_npz(file: Path, *, seconds: float = 40, rate: float = 128, channels: int = 4, seed: int = 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, signal=signal(seconds, rate, channels, seed), rate=rate, names=np.array(NAMES[:channels]), unit="uV")
    return file
