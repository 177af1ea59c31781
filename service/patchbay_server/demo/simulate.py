"""Made-up EEG of one subject, for who has none at hand: current dipoles in a homogeneous medium, seen by electrodes.

Rhythms and where they come from are a subject's; what can be decoded from real recordings, this does not say. Knows
nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import edfio
import numpy as np
import numpy.typing as npt

from patchbay.models.neuript.montage import electrode_positions

Signal = npt.NDArray[np.float64]
RATE = 160
CONDUCTIVITY = 0.33  # siemens a metre
CENTRE_MM = np.array([0.0, -18.0, 20.0])  # of the head
NOISE_DIPOLES, NOISE_NAM = 80, 60.0
ALPHA_HZ, ALPHA_NAM = 10.0, 100.0
MU_HZ = 11.0
# Over the left hand's area, which is that of the right hand, the right's and the feet's: of who is right-handed. A head
# reads means over lobes, and both hands are in one: were they alike, it could not tell which of them moves.
MU_NAM = np.array([[110.0], [50.0], [80.0]])
SUPPRESSED = 0.3  # of a rhythm's size while its limb moves
TRIAL_S, REST_S = 4.1, 2.0
# Where rhythms come from, in millimetres.
VISUAL = np.array([[-15.0, -80.0, 25.0], [15.0, -80.0, 25.0]])
HANDS = np.array([[-42.0, -12.0, 60.0], [42.0, -12.0, 60.0]])
FEET = np.array([[0.0, -12.0, 75.0]])
MOTOR = {"left": (False, True, False), "right": (True, False, False)}
LIMBS = {"fists": (True, True, False), "feet": (False, False, True)}


@dataclass(frozen=True, slots=True)
class Subject:
    """Dipoles, in millimetres, and rhythms: every subject's are a little elsewhere."""

    visual: Signal
    motor: Signal
    noise: Signal
    shift_hz: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Subject:
        def near(places: Signal) -> Signal:
            return np.asarray(places + rng.normal(0, 4, places.shape))

        directions = rng.normal(size=(NOISE_DIPOLES, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        depths = rng.uniform(30, 65, (NOISE_DIPOLES, 1))
        motor = near(np.concatenate((HANDS, FEET)))
        return cls(near(VISUAL), motor, CENTRE_MM + depths * directions, float(rng.normal(0, 0.5)))


def simulate(folder: Path, channels: Sequence[str], *, seed: int = 0, trials: int = 15, rest_s: float = 60.0) -> None:
    """Runs of one subject as PhysioNet has them: S001R01 and R02 are eyes open and closed, R03, R07 and R11 fists (T1
    left, T2 right), R06, R10 and R14 both fists (T1) and both feet (T2). `rest_s`: how long eyes are open, and closed.
    """
    rng = np.random.default_rng(seed)
    subject = Subject.draw(rng)
    for run, closed in ((1, 0.25), (2, 1.0)):
        _write(folder / f"S001R{run:02}.edf", channels, _rest(subject, channels, rest_s, closed, rng), ())
    for runs, kinds in (((3, 7, 11), MOTOR), ((6, 10, 14), LIMBS)):
        for run in runs:
            signal, marks = _moving(subject, channels, kinds, trials, rng)
            _write(folder / f"S001R{run:02}.edf", channels, signal, marks)


def potentials(channels: Sequence[str], places: Signal, moments: Signal) -> Signal:
    """uV a nAm at each electrode [channels, dipoles]: q (r - r_q) / (4 pi s |r - r_q|^3), q along `moments`."""
    electrodes = np.array([electrode_positions()[name] for name in channels])
    apart = (electrodes[:, None] - places[None]) * 1e-3
    unit = moments / np.linalg.norm(moments, axis=1, keepdims=True)
    along = (apart * unit[None]).sum(2)
    found: Signal = 1e-3 * along / (4 * np.pi * CONDUCTIVITY * np.linalg.norm(apart, axis=2) ** 3)
    return found


def _rest(subject: Subject, channels: Sequence[str], seconds: float, alpha: float, rng: np.random.Generator) -> Signal:
    samples = round(seconds * RATE)
    rhythm = np.stack([_rhythm(ALPHA_HZ + subject.shift_hz, samples, rng) for _ in subject.visual])
    seen = potentials(channels, subject.visual, subject.visual - CENTRE_MM) @ (alpha * ALPHA_NAM * rhythm)
    return np.asarray(_noise(subject, channels, samples, rng) + seen)


def _moving(
    subject: Subject,
    channels: Sequence[str],
    kinds: Mapping[str, tuple[bool, ...]],
    trials: int,
    rng: np.random.Generator,
) -> tuple[Signal, list[tuple[float, float, str]]]:
    seconds = trials * (TRIAL_S + REST_S)
    gains = np.ones((len(subject.motor), round(seconds * RATE)))
    marks = []
    for trial in range(trials):
        onset = REST_S + trial * (TRIAL_S + REST_S)
        number = int(rng.integers(2)) if trial > 1 else trial
        inside = slice(round(onset * RATE), round((onset + TRIAL_S) * RATE))
        gains[list(list(kinds.values())[number]), inside] = SUPPRESSED
        marks.append((onset, TRIAL_S, f"T{number + 1}"))
    rhythm = np.stack([_rhythm(MU_HZ + subject.shift_hz, gains.shape[1], rng) for _ in subject.motor])
    seen = potentials(channels, subject.motor, subject.motor - CENTRE_MM) @ (gains * MU_NAM * rhythm)
    return np.asarray(_noise(subject, channels, gains.shape[1], rng) + seen), marks


def _noise(subject: Subject, channels: Sequence[str], samples: int, rng: np.random.Generator) -> Signal:
    """Sources whose power falls with the rate, 1 / f."""
    size = (NOISE_DIPOLES, samples // 2 + 1)
    spectrum = rng.normal(size=size) + 1j * rng.normal(size=size)
    rates = np.fft.rfftfreq(samples, 1 / RATE)
    spectrum *= np.where(rates < 0.3, 0.0, 1 / np.sqrt(np.maximum(rates, 0.3)))
    sources = np.fft.irfft(spectrum, samples, axis=1)
    sources /= sources.std(axis=1, keepdims=True)
    moments = rng.normal(size=subject.noise.shape)
    return np.asarray(potentials(channels, subject.noise, moments) @ (NOISE_NAM * sources))


def _rhythm(rate: float, samples: int, rng: np.random.Generator) -> Signal:
    """Of size 1, with a phase that wanders and a size that waxes and wanes."""
    time = np.arange(samples) / RATE
    phase = 2 * np.pi * rate * time + np.cumsum(rng.normal(0, 0.08, samples)) + rng.uniform(0, 2 * np.pi)
    waxing = 1 + 0.4 * np.sin(2 * np.pi * 0.2 * time + rng.uniform(0, 2 * np.pi))
    return np.asarray(waxing * np.sin(phase))


def _write(file: Path, channels: Sequence[str], rows: Signal, marks: Sequence[tuple[float, float, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = rows[:, : rows.shape[1] // RATE * RATE]
    signals = [
        edfio.EdfSignal(row, RATE, label=name, physical_dimension="uV", physical_range=(-1000, 1000))
        for row, name in zip(np.clip(whole, -1000, 1000), channels, strict=True)
    ]
    kept = [edfio.EdfAnnotation(*mark) for mark in marks if mark[0] + mark[1] <= whole.shape[1] / RATE]
    edfio.Edf(signals, annotations=kept).write(file)
