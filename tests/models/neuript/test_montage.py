from __future__ import annotations

import pytest
import torch
from tests.models.neuript.names import PHYSIONET

from patchbay.errors import InputError
from patchbay.models.neuript import Lobe, Montage
from patchbay.models.neuript.montage import BCIC_16, PAPER_20, PAPER_22, SEED_V_17, SLEEP_2, electrode_positions
from patchbay.models.neuript.montage import find_channel as find


def test_positions_are_those_of_the_system() -> None:
    for name, expected in {
        "Fp1": (-29.4, 83.9, -7.0),
        "Cz": (0.4, -9.2, 100.2),
        "T7": (-84.2, -16.0, -9.3),
        "P8": (73.1, -73.1, -2.5),
        "Oz": (0.1, -114.9, 14.7),
        "A2": (85.8, -25.0, -68.0),
    }.items():
        assert find(name).position == pytest.approx(expected, abs=0.06)
    assert len(electrode_positions()) == 345


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Fp1", "Fp1"),
        ("FP1", "Fp1"),
        ("fp1", "Fp1"),
        ("Fc5.", "FC5"),
        ("C3..", "C3"),
        ("EEG FP1-REF", "Fp1"),
        ("EEG Fp1-LE", "Fp1"),
        ("eeg c3-A2", "C3"),
        ("EEG C3-A1A2", "C3"),
        ("EEG CZ-Avg", "Cz"),
        (" Oz ", "Oz"),
        ("T3", "T7"),
        ("T4", "T8"),
        ("T5", "P7"),
        ("T6", "P8"),
        ("EEG T5-REF", "P7"),
        ("EEG Fpz-Cz", "Fpz-Cz"),
        ("EEG Fp1-CPz", "Fp1-CPz"),
        ("Fp1 - F7", "Fp1-F7"),
        ("T4-A2", "T8-A2"),
        ("A1-T3", "A1-T7"),
    ],
)
def test_names_as_recordings_write_them(written: str, name: str) -> None:
    assert find(written).name == name


def test_old_and_new_names_are_one_place() -> None:
    """(i)."""
    for old, new in (("T3", "T7"), ("T4", "T8"), ("T5", "P7"), ("T6", "P8"), ("F7-T3", "F7-T7")):
        assert find(old) == find(new)


def test_a_pair_is_at_its_midpoint_whichever_comes_first() -> None:
    for first, second in (("Fpz", "Cz"), ("C3", "T7")):
        middle = (torch.tensor(find(first).position) + torch.tensor(find(second).position)) / 2
        for pair in (f"{first}-{second}", f"{second}-{first}"):
            assert find(pair).position == pytest.approx(middle.tolist())


@pytest.mark.parametrize(
    ("name", "near"),
    [("Fpp1", "Fp1"), ("CC3", "C3"), ("Q7", None), ("", None), ("C3-X9", None), ("C3-C3", None), ("Fp1-F7-T3", None)],
)
def test_a_name_without_a_position(name: str, near: str | None) -> None:
    with pytest.raises(InputError, match="no position is known for channel") as caught:
        find(name)
    assert caught.value.param == "ch_names" and "ch_pos_mm" in caught.value.message
    assert near is None or near in caught.value.message.partition("did you mean")[2]


def test_a_position_of_its_own() -> None:
    montage = Montage.of(["E17", "Cz"], {"E17": (1.0, 90.0, 2.0), "Cz": (0.0, 0.0, 99.0)})
    assert montage.positions.tolist() == [[1, 90, 2], [0, 0, 99]]
    assert [channel.name for channel in montage.channels] == ["E17", "Cz"]
    assert montage.channels[0].lobes == (Lobe.FRONTAL,)


@pytest.mark.parametrize("names", [["Cz", "CZ"], ["T3", "T7"], ["EEG C3-REF", "C3"]])
def test_one_channel_twice(names: list[str]) -> None:
    with pytest.raises(InputError, match=r"is there twice, as (Cz|T7|C3)"):
        Montage.of(names)


OFFICIAL = {
    Lobe.FRONTAL: {0, 4, 12, 16},
    Lobe.PARIETAL: {8, 9, 10, 11, 13, 14, 17, 18},
    Lobe.OCCIPITAL: {3, 7, 15, 19},
    Lobe.TEMPORAL_LEFT: {1, 2, 8},
    Lobe.TEMPORAL_RIGHT: {5, 6, 11},
}
OFFICIAL_22 = [{0, 4, 14, 18}, {9, 10, 11, 12, 15, 16, 19, 20}, {3, 7, 17, 21}, {1, 2, 8, 9}, {5, 6, 12, 13}]


def inside(montage: Montage) -> list[set[int]]:
    return [set(column.nonzero()[:, 0].tolist()) for column in montage.lobes.T]


def test_lobes_of_the_papers_channels() -> None:
    assert inside(Montage.of(PAPER_20, overlapping=True)) == list(OFFICIAL.values())
    assert inside(Montage.of(PAPER_22, overlapping=True)) == OFFICIAL_22
    by_default = inside(Montage.of(PAPER_20))
    assert [found | {8, 11} for found in by_default] == [lobe | {8, 11} for lobe in OFFICIAL.values()]


@pytest.mark.parametrize("names", [PAPER_20, PAPER_22, BCIC_16, SLEEP_2, SEED_V_17, PHYSIONET])
def test_every_channel_is_in_one_lobe(names: tuple[str, ...]) -> None:
    montage = Montage.of(names)
    assert montage.lobes.sum(1).tolist() == [1] * len(names)
    assert montage.positions.shape == (len(names), 3)


@pytest.mark.parametrize(
    ("lobe", "names"),
    [
        (Lobe.FRONTAL, "Fpz AF7 AFz F1 F9 FCz FC5 F7"),
        (Lobe.PARIETAL, "Cz C5 CP3 CPz P1 Pz P5 C2"),
        (Lobe.OCCIPITAL, "PO7 POz O1 Oz Iz PO10"),
        (Lobe.TEMPORAL_LEFT, "FT7 FT9 T7 T9 TP7 TP9 P7 P9 T3 T5 A1 M1"),
        (Lobe.TEMPORAL_RIGHT, "FT8 FT10 T8 T10 TP8 P8 P10 T4 T6 A2"),
    ],
)
def test_lobes_by_name(lobe: Lobe, names: str) -> None:
    assert [find(name).lobes for name in names.split()] == [(lobe,)] * len(names.split())


def test_lobes_mirror() -> None:
    """What is left of the middle is on the left, for all 345."""
    sides = {Lobe.TEMPORAL_LEFT: Lobe.TEMPORAL_RIGHT, Lobe.TEMPORAL_RIGHT: Lobe.TEMPORAL_LEFT}
    for name in electrode_positions():
        bare = name.rstrip("h")
        letters = bare.rstrip("0123456789z")
        if bare == letters or bare.endswith("z"):
            continue
        number = int(bare.removeprefix(letters))
        other = f"{letters}{number + 1 if number % 2 else number - 1}{name[len(bare) :]}"
        [lobe], [mirrored] = find(name).lobes, find(other).lobes
        assert mirrored == sides.get(lobe, lobe), (name, other)
