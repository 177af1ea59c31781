"""Which channels are read: lists, doubles, dead ones, references and pairs, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.neuript.test_preprocess import NAMES, PLAIN, recording

from patchbay.errors import InputError
from patchbay.models.neuript.channels import check_coverage, chosen, derived
from patchbay.models.neuript.companding import expand
from patchbay.models.neuript.montage import electrode_positions
from patchbay.models.neuript.preprocess import Windows, windows
from patchbay.models.neuript.recording import Recording
from patchbay.models.neuript.steps import Steps

FOUR = replace(PLAIN, channels=("C4", "C3", "Cz", "O1"))
PAIRS = replace(PLAIN, pairs=("Fp1-C3", "C3-Cz", "Cz-C4", "C3-O1"))


def coverage(steps: Steps, found: Windows) -> None:
    check_coverage(steps, found.montage, found.dropped)


def with_dead(name: str, value: float = 7.0) -> Recording:
    made = recording()
    made.signal[NAMES.index(name)] = value
    return made


@pytest.mark.parametrize("steps", [PLAIN, FOUR, PAIRS])
@pytest.mark.parametrize("other", ["C3", "EEG C3-REF", "c3.."])
def test_a_channel_twice(steps: Steps, other: str) -> None:
    """Whatever is read: the names may be shifted against the signals."""
    names = tuple(other if name == "O2" else name for name in NAMES)
    with pytest.raises(InputError, match=f"channel 'C3' is there twice, as C3 and {other}") as caught:
        windows(recording(names=names), steps)
    assert caught.value.param == "ch_names"


def test_a_list_is_read_in_its_order() -> None:
    found = windows(recording(), FOUR)
    assert [channel.name for channel in found.montage.channels] == ["C4", "C3", "Cz", "O1"]
    assert found.dropped == dict.fromkeys(("Fp1", "Fp2", "O2"), "not asked for") and not found.warnings
    coverage(FOUR, found)


@pytest.mark.parametrize("name", ["T3", "EEG T7-REF", "t7"])
def test_a_channel_with_a_place_of_its_own_is_still_of_the_list(name: str) -> None:
    steps, place = replace(PLAIN, channels=("T7", "C3")), (-80.0, -20.0, -10.0)
    found = windows(recording(names=(name, *NAMES[1:]), positions={name: place}), steps)
    assert [channel.name for channel in found.montage.channels] == ["T7", "C3"]
    assert found.montage.channels[0].position == place


@pytest.mark.parametrize("reference", ["recorded", "average"])
def test_a_dead_channel_is_as_one_that_is_not_there(reference: str) -> None:
    """It is no part of the average either, nor is it the average afterwards."""
    steps, without = replace(PLAIN, reference=reference), [name for name in NAMES if name != "C3"]
    found = windows(with_dead("C3"), steps)
    plain = recording()
    rows = plain.signal[[NAMES.index(name) for name in without]]
    wanted = windows(replace(plain, signal=rows, names=tuple(without)), steps)
    torch.testing.assert_close(found.signal, wanted.signal, rtol=0, atol=0)
    assert found.dropped == {"C3": "flat"} and found.warnings == ("C3 is left out: flat",)


def test_what_an_amplifier_makes_of_an_open_input_is_dead_too() -> None:
    made = with_dead("C3")
    made.signal[NAMES.index("C3")] += np.random.default_rng(0).integers(0, 2, made.signal.shape[1]) * 0.1
    assert windows(made, PLAIN).dropped == {"C3": "flat"}


def test_pairs_of_a_dead_electrode_are_not_made() -> None:
    """They would be the other electrode."""
    found = windows(with_dead("O1"), PAIRS)
    assert [channel.name for channel in found.montage.channels] == ["Fp1-C3", "C3-Cz", "Cz-C4"]
    assert found.dropped == {"Fp2": "in no pair that is read", "O2": "in no pair that is read"} | {
        "O1": "flat",
        "C3-O1": "O1 flat",
    }
    assert found.warnings == ("of the 4 channels that the model was trained on it reads 3: without C3-O1 (O1 flat)",)


def test_bridged_electrodes() -> None:
    """One signal in two channels: their difference is nothing."""
    made = recording()
    made.signal[NAMES.index("Cz")] = made.signal[NAMES.index("C3")]
    assert windows(made, PAIRS).dropped["C3-Cz"] == "its electrodes do not differ"


def test_the_average_of_one_channel() -> None:
    with pytest.raises(InputError, match="'C3' alone is nothing") as caught:
        windows(recording(), replace(PLAIN, channels=("C3",), reference="average"))
    assert caught.value.param == "reference"


@pytest.mark.parametrize("dead", [True, False])
def test_a_lobe_that_is_lost(dead: bool) -> None:
    """The head would read zeros where it has learnt to read O1."""
    made = with_dead("O1") if dead else recording(names=("Fp1", "Fp2", "C3", "Cz", "C4", "P3", "O2"))
    found = windows(made, FOUR)
    why = "flat" if dead else "not recorded"
    assert len(found.montage.channels) == 3 and f"without O1 ({why})" in found.warnings[0]
    with pytest.raises(InputError, match=rf"without O1 \({why}\) nothing is left .* in the lobe 'occipital'") as caught:
        coverage(FOUR, found)
    assert caught.value.param == "ch_names"


def test_a_channel_is_missing_beside_others_of_its_lobe() -> None:
    found = windows(with_dead("Cz"), FOUR)
    coverage(FOUR, found)
    assert found.warnings == ("of the 4 channels that the model was trained on it reads 3: without Cz (flat)",)


def test_pairs_of_a_lobe_that_is_lost() -> None:
    steps = replace(PLAIN, pairs=("Cz-C4", "O1-O2"))
    with pytest.raises(InputError, match=r"without O1-O2 \(O1 flat\) nothing is left .* in the lobe 'occipital'"):
        coverage(steps, windows(with_dead("O1"), steps))
    coverage(steps, windows(recording(), steps))


def test_a_name_that_may_be_another_one_misspelt() -> None:
    """Not where nothing is missing: a recording may have more than the system names."""
    more = recording(names=("Fp1", "Fp2", "C3", "Cz", "C4", "O1", "O11"))
    found = windows(more, FOUR)
    coverage(FOUR, found)
    assert found.dropped["O11"] == "not asked for, and no name of the 10-05 system"
    assert found.warnings == ()
    for name, channel in (("Cz1", "Cz"), ("01", "O1"), ("ol", "O1")):
        names = tuple(name if each == channel else each for each in ("Fp1", "Fp2", "C3", "Cz", "C4", "O1", "X9"))
        with pytest.raises(InputError, match=f"'{name}' is unknown, and {channel}, which the model reads") as caught:
            coverage(FOUR, windows(recording(names=names), FOUR))
        assert caught.value.param == "ch_names"


def test_a_name_that_nobody_knows_is_told_where_something_is_missing() -> None:
    (told,) = windows(recording(names=("Fp1", "Fp2", "C3", "Ch6", "C4", "O1", "O2")), FOUR).warnings
    assert told.endswith("without Cz (not recorded); Ch6 is no name of the 10-05 system")


def test_none_of_the_list_is_there() -> None:
    with pytest.raises(InputError, match="channels C5, C6 is recorded, and no others are read: Fp1, Fp2, .* O2 are"):
        windows(recording(), replace(PLAIN, channels=("C5", "C6")))


def test_why_a_channel_of_the_list_is_missing() -> None:
    """What the file's reader left out is not `not recorded`."""
    made = recording(names=("Fp1", "Fp2", "C3", "Cz", "C4", "P3", "O2"), dropped={"EEG O1-REF": "recorded at 100 Hz"})
    found = windows(made, FOUR)
    assert "O1" not in found.dropped and "without O1 (recorded at 100 Hz)" in found.warnings[0]
    assert windows(made, PLAIN).warnings == ("EEG O1-REF is left out: recorded at 100 Hz",)


def test_places_of_electrodes_move_their_pairs() -> None:
    moved = {"Cz": (10.0, -9.0, 100.0)}
    found, plain = windows(recording(positions=moved), PAIRS), windows(recording(), PAIRS)
    middle = np.mean([electrode_positions()["C3"], moved["Cz"]], axis=0)
    assert found.montage.channels[1].position == pytest.approx(tuple(middle))
    assert found.montage.channels[0] == plain.montage.channels[0] and found.montage != plain.montage
    assert windows(recording(positions={"O2": (30.0, -110.0, 9.0)}), PAIRS).montage == plain.montage


@given(st.permutations(NAMES), st.sampled_from(["recorded", "average"]), st.sampled_from([None, PAIRS.pairs]))
def test_it_is_a_matrix(names: list[str], reference: str, pairs: tuple[str, ...] | None) -> None:
    """That of unit vectors."""
    steps = Steps(reference=reference, pairs=pairs)
    signal = np.random.default_rng(0).standard_normal((len(names), 5))
    made, unit = ([*derived(*chosen(each, names, {}, steps, {}), steps, {}, [])] for each in (signal, np.eye(7)))
    assert made[1] == unit[1]
    np.testing.assert_allclose(made[0], unit[0] @ signal, atol=1e-12)


def test_the_average_is_of_what_is_read() -> None:
    found = windows(recording(), replace(FOUR, reference="average"))
    assert float(expand(found.signal).mean(1).abs().max()) < 0.05
    assert "referenced to the average of 4 channels" in found.done
