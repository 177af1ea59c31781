"""What a recording's names say of its reference, and whether it is one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay.models.neuript.montage import PAPER_20, PAPER_22, SLEEP_2
from patchbay.models.neuript.preprocess import windows
from patchbay.models.neuript.recording import Recording
from patchbay.models.neuript.references import UNSAID, references_of

ONE = ("Fp1", "F3", "C3", "O1", "Fz", "Pz")


def recorded(*names: str) -> Recording:
    signal = 30 * np.random.default_rng(0).standard_normal((len(names), 1024))
    return Recording(signal, 128.0, names, "uV")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("EEG C3-A2", "F3", "O1"), {"A2": ["EEG C3-A2"], UNSAID: ["F3", "O1"]}),
        (("C3-M2", "C4-M1", "O1 - M2"), {"M2": ["C3-M2", "O1 - M2"], "M1": ["C4-M1"]}),
        (("EEG FP1-REF", "EEG F3-Ref", "EEG C3-LE"), {"REF": ["EEG FP1-REF", "EEG F3-Ref"], "LE": ["EEG C3-LE"]}),
        (("C3-A1A2", "C4-A1+A2", "O1-LE"), {"LE": ["C3-A1A2", "C4-A1+A2", "O1-LE"]}),
        (("C3-AVG", "C4-AR"), {"AVG": ["C3-AVG", "C4-AR"]}),
        (("Fp1-Cz", "C3"), {"Cz": ["Fp1-Cz"], UNSAID: ["C3"]}),
        (("Fp1-Cz", "F3-Cz"), {"Cz": ["Fp1-Cz", "F3-Cz"]}),
        (("C3-Cz", "Fp1-F7"), {}),
        (("Fp1-F7", "C3-A2"), {"A2": ["C3-A2"]}),
        (("C3-REF", "X9", "X9-LE"), {"REF": ["C3-REF"]}),
        (("C3-LE", "A2-A1", "A1", "M1-M2"), {"LE": ["C3-LE"]}),
    ],
)
def test_references(names: tuple[str, ...], found: dict[str, list[str]]) -> None:
    assert references_of(names) == found


@pytest.mark.parametrize("names", [PAPER_20, PAPER_22, SLEEP_2])
def test_bipolar_montages_mix_nothing(names: tuple[str, ...]) -> None:
    assert len(references_of(names)) <= 1


@given(st.sampled_from(("", "-REF", "-LE", "-A1", "-M2", "-AVG", "-Cz")), st.sampled_from(("", "-REF", "-A2", "-M1")))
def test_one_that_is_another(most: str, other: str) -> None:
    """Something is said of it exactly where the two differ."""
    found = references_of([*(f"EEG {name}{most}" for name in ONE), f"T7{other}"])
    assert len(found) == 1 + (most != other)


def test_it_is_warned_of() -> None:
    (said,) = [text for text in windows(recorded("C3-M2", "C4-M1", "ECG-REF")).warnings if "reference" in text]
    assert said == (
        "names say different references (M2 of C3-M2; M1 of C4-M1): the channels do not compare with each other"
    )
    for names in (("C3-M2", "C4-M2", "ECG"), ("C3", "C4"), ("Fp1-F7", "F7-T3", "ECG-REF")):
        assert not [text for text in windows(recorded(*names)).warnings if "reference" in text]
