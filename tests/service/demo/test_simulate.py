from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.signal import periodogram

from patchbay.models.neuript import edf
from patchbay_server.demo.eeg_tasks import CHANNELS
from patchbay_server.demo.simulate import RATE, TRIAL_S, potentials, simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("simulated")
    simulate(made, CHANNELS, trials=6)
    return made


def power(signal: np.ndarray, low: float, high: float) -> float:
    rates, found = periodogram(signal, RATE)
    return float(found[(rates >= low) & (rates < high)].mean())


def test_a_dipole_is_seen_near_it() -> None:
    """V = q r / (4 pi s r^3): 20 nAm, 4 cm away in its direction, are 3 uV; across it nothing."""
    from patchbay.models.neuript.montage import electrode_positions  # noqa: PLC0415

    below = np.array([electrode_positions()["Cz"]]) - [[0.0, 0.0, 40.0]]
    seen = 20 * potentials(["Cz", "O1"], below, np.array([[0.0, 0.0, 7.0]]))
    assert seen[0, 0] == pytest.approx(1e6 * 20e-9 / (4 * np.pi * 0.33 * 0.04**2), rel=1e-6)
    assert abs(seen[1, 0]) < 0.3 * seen[0, 0]
    assert potentials(["Cz"], below, np.array([[1.0, 0.0, 0.0]]))[0, 0] == pytest.approx(0, abs=1e-9)


def test_runs_as_physionet_has_them(folder: Path) -> None:
    assert [path.stem[-2:] for path in sorted(folder.iterdir())] == ["01", "02", "03", "06", "07", "10", "11", "14"]
    for path in folder.iterdir():
        found = edf.read(path)
        assert found.recording.names == CHANNELS and found.recording.rate == RATE
        assert 3 < np.median(found.recording.signal.std(1)) < 60, "of the size of EEG, in microvolts"
        marked = path.stem[-2:] not in ("01", "02")
        assert {event.text for event in found.events} == ({"T1", "T2"} if marked else set())


def test_closed_eyes_have_alpha_at_the_back(folder: Path) -> None:
    opened, closed = (edf.read(folder / f"S001R0{run}.edf").recording.signal for run in (1, 2))
    back = CHANNELS.index("O1")
    assert power(closed[back], 8, 12) > 3 * power(opened[back], 8, 12)


def test_a_moving_hand_has_less_mu_on_the_other_side(folder: Path) -> None:
    mu: dict[str, list[float]] = {"T1": [], "T2": []}
    for run in ("03", "07", "11"):
        found = edf.read(folder / f"S001R{run}.edf")
        for event in found.events:
            inside = slice(round(event.onset * RATE), round((event.onset + TRIAL_S) * RATE))
            sides = [power(found.recording.signal[CHANNELS.index(name), inside], 9, 13) for name in ("C3", "C4")]
            mu[event.text].append(np.log(sides[0] / sides[1]))
    assert np.mean(mu["T1"]) > np.mean(mu["T2"]) + 0.5, "left: less over C4, right: less over C3"


def test_a_seed_is_a_subject(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        simulate(tmp_path / name, CHANNELS[:2], seed=seed, trials=2)
    first, same, other = (edf.read(tmp_path / name / "S001R03.edf").recording.signal for name in "abc")
    assert np.array_equal(first, same) and not np.allclose(first, other)
