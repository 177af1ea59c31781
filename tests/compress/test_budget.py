"""Densities and what they cost."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay.compress.budget import density_of


@given(st.floats(0, 1.58))
def test_density_of_solves_its_equation(bits: float) -> None:
    density = density_of(bits)
    if density in (0.0, 1.0):
        assert bits == pytest.approx(density * math.log2(3), abs=1e-3)
        return
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    assert entropy + density == pytest.approx(bits, abs=1e-6)


def test_density_of_its_ends() -> None:
    assert density_of(0.0) == pytest.approx(0.0, abs=1e-12)
    assert density_of(1.585) == density_of(40.0) == 1.0
