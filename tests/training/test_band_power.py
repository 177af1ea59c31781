from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from patchbay.errors import InputError
from patchbay.models.neuript.companding import compand
from patchbay.models.neuript.montage import Montage
from patchbay.models.neuript.preprocess import Windows
from patchbay.models.neuript.steps import RATE
from patchbay.training.band_power import BANDS_HZ, band_powers, discriminant
from patchbay.training.examples import Examples
from patchbay.training.windows import Source

NAMES = ("C3", "C4")


def waves(rates: list[float], size: float = 10.0) -> torch.Tensor:
    """One window a rate, a sine in the first channel and half of it in the second."""
    time = torch.arange(4 * RATE) / RATE
    first = torch.stack([size * torch.sin(2 * torch.pi * rate * time) for rate in rates])
    return compand(torch.stack((first, first / 2), 1))


def made(signal: torch.Tensor, labels: str, names: tuple[str, ...] = NAMES) -> Examples:
    cut = Windows(signal, tuple(map(float, range(len(signal)))), Montage.of(names), (), {}, ())
    return Examples(Source(Path("x"), cut), tuple(labels), "x")


@pytest.mark.parametrize(("rate", "band"), [(2.0, 0), (6.0, 1), (10.0, 2), (20.0, 3)])
def test_a_sine_is_in_its_band(rate: float, band: int) -> None:
    found = band_powers(waves([rate])).reshape(2, len(BANDS_HZ))
    assert found.argmax(1).tolist() == [band, band]
    assert found[0, band] - found[1, band] == pytest.approx(np.log(4), abs=1e-3), (
        "half of it has a quarter of the power"
    )
    assert found[0, band] - np.delete(found[0], band).max() > 3


def test_power_is_in_microvolts_squared() -> None:
    louder, plain = (band_powers(waves([10.0], size)) for size in (20.0, 10.0))
    np.testing.assert_allclose((louder - plain).reshape(2, 4)[:, 2], np.log(4), atol=1e-3)


def test_rhythms_are_told_apart() -> None:
    rng = torch.Generator().manual_seed(0)
    slow, fast = (waves([rate] * 12) + 0.1 * torch.randn(12, 2, 4 * RATE, generator=rng) for rate in (6.0, 10.0))
    train = made(torch.cat((slow[:8], fast[:8])), "s" * 8 + "f" * 8)
    test = made(torch.cat((slow[8:], fast[8:])), "s" * 4 + "f" * 4)
    found = discriminant([train], np.array([0] * 8 + [1] * 8), [test])
    assert found.shape == (8, 2) and found.argmax(1).tolist() == [0] * 4 + [1] * 4


def test_recordings_with_other_channels_are_not_compared() -> None:
    one, other = made(waves([6.0]), "s"), made(waves([6.0]), "s", ("O1", "O2"))
    with pytest.raises(InputError, match="differ in their channels"):
        discriminant([one, replace(other, subject="y")], np.array([0, 0]), [one])
