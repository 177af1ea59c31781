"""Codes of places: (h) to (l) of the specification, and its table of the paper's twenty channels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.models.neuript.config import axis_widths
from patchbay.models.neuript.embedding import ORIGIN_MM, STEPS_PER_MM, electrode_encoding, sinusoids, time_encoding
from patchbay.models.neuript.montage import PAPER_20, Montage

WIDTH = 48
MILLIMETRES = st.floats(-200, 200)
POINTS = st.tuples(MILLIMETRES, MILLIMETRES, MILLIMETRES)
# The authors' whole-number codes, with Fp1-F3 at place 12.
CODES = (
    "8 47 0, 0 32 0, 0 15 1, 8 1 4, 38 48 0, 47 33 0, 47 15 1, 38 1 4, 1 24 11, 14 25 28, 33 25 27, 46 25 11, "
    "11 49 8, 6 35 19, 6 15 21, 11 0 13, 35 49 8, 41 35 19, 41 15 21, 36 0 13"
)


def test_sines_at_even_places_and_cosines_at_odd_ones() -> None:
    found = sinusoids(torch.tensor([0.0, 3.0]), 4)
    expected = [[0, 1, 0, 1], [math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]]
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(time_encoding(5, WIDTH, torch.device("cpu"))[3], sinusoids(torch.tensor(3), WIDTH))


def test_the_papers_channels_have_its_codes() -> None:
    """Before rounding the fixed map is the authors' own, which they make from these very channels."""
    montage = Montage.of(PAPER_20)
    expected = torch.tensor([[float(step) for step in code.split()] for code in CODES.split(",")])
    steps = (montage.positions.double() - torch.tensor(ORIGIN_MM)) * STEPS_PER_MM
    assert torch.equal(steps.round().abs(), expected.double())
    fixed, stretched = (electrode_encoding(montage.positions, WIDTH, way) for way in ("fixed", "stretched"))
    rounded = torch.cat([sinusoids(expected[:, axis], 16) for axis in range(3)], -1)
    torch.testing.assert_close(stretched, rounded)
    assert 0 < float((fixed - rounded).abs().max()) < 0.5


@given(st.lists(POINTS, min_size=2, max_size=6), st.integers(0, 5))
def test_a_code_is_of_its_own_coordinates_alone(points: list[tuple[float, float, float]], which: int) -> None:
    """(h): whatever the other channels are, and in whatever order; (l): far outside of the head, too."""
    which %= len(points)
    together = electrode_encoding(torch.tensor(points), WIDTH)
    alone = electrode_encoding(torch.tensor(points[which : which + 1]), WIDTH)
    assert torch.equal(together[which], alone[0]) and bool(torch.isfinite(together).all())


@given(POINTS, MILLIMETRES)
def test_each_axis_has_features_of_its_own(point: tuple[float, float, float], other: float) -> None:
    """(k), for all three."""
    ends = [0, *torch.tensor(axis_widths(WIDTH)).cumsum(0).tolist()]
    for axis in range(3):
        moved = [*point]
        moved[axis] = other
        first, second = electrode_encoding(torch.tensor([point, moved]), WIDTH)
        same = torch.ones(WIDTH, dtype=torch.bool)
        same[ends[axis] : ends[axis + 1]] = False
        assert torch.equal(first[same], second[same])


def test_axes_are_not_interchangeable() -> None:
    """(j)."""
    codes = electrode_encoding(torch.tensor([[10.0, 20, 30], [20, 10, 30], [30, 20, 10], [10, 30, 20]]), WIDTH)
    distances = torch.cdist(codes, codes) + 9 * torch.eye(4)
    assert float(distances.min()) > 0.1


def test_padding_has_no_extent() -> None:
    real = Montage.of(["Fpz-Cz", "Pz-Oz", "C3", "T7"]).positions
    padded = torch.cat((real, torch.zeros(2, 3)))[None]
    mask = torch.tensor([[True] * 4 + [False] * 2])
    found = electrode_encoding(padded, WIDTH, "stretched", mask)[0, :4]
    torch.testing.assert_close(found, electrode_encoding(real, WIDTH, "stretched"))


@pytest.mark.parametrize("coordinates", ["fixed", "stretched"])
def test_batches_are_rows(coordinates: str) -> None:
    first, second = (Montage.of(names).positions for names in (["Fp1", "Cz", "O2"], ["T7", "T8", "Oz"]))
    together = electrode_encoding(torch.stack((first, second)), WIDTH, coordinates)
    for found, alone in zip(together, (first, second), strict=True):
        torch.testing.assert_close(found, electrode_encoding(alone, WIDTH, coordinates))
