"""AAMP masks: (a) to (g) of the specification."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.models.neuript.masking import amplitude_mask, random_mask, shown

SHAPE = (3, 4, 50)
RATIOS = st.floats(0.0, 1.0)
SEEDS = st.integers(0, 2**32 - 1)


def signal(seed: int, *, ties: bool = False) -> torch.Tensor:
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    return drawn.round() if ties else drawn


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def compand(x: torch.Tensor) -> torch.Tensor:
    """Any strictly increasing function will do."""
    return torch.asinh(3 * x)


@given(RATIOS, SEEDS, st.booleans())
def test_every_channel_has_as_many_hidden(ratio: float, seed: int, ties: bool) -> None:
    """(a), and (f): also where samples are equal."""
    x = signal(seed, ties=ties)
    for mask in (amplitude_mask(x, ratio, seeded(seed)), random_mask(x, ratio, seeded(seed))):
        assert mask.dtype == torch.bool
        assert mask.sum(-1).unique().tolist() == [round(SHAPE[-1] * ratio)]


def test_a_constant_channel_has_as_many_hidden() -> None:
    mask = amplitude_mask(torch.zeros(SHAPE), 0.5, seeded(0))
    assert mask.sum(-1).unique().tolist() == [25]


@given(st.floats(0.02, 0.98), SEEDS)
def test_hidden_samples_are_those_between_two_amplitudes(ratio: float, seed: int) -> None:
    """(b) and (c)."""
    x = signal(seed)
    mask = amplitude_mask(x, ratio, seeded(seed))
    ranks = x.argsort(-1).argsort(-1)
    for channel, hidden, rank in zip(x.flatten(0, 1), mask.flatten(0, 1), ranks.flatten(0, 1), strict=True):
        inside = sorted(rank[hidden].tolist())
        assert inside == list(range(inside[0], inside[0] + len(inside)))
        low, high = channel[hidden].min(), channel[hidden].max()
        others = channel[~hidden]
        assert bool(((others < low) | (others > high)).all())


@given(RATIOS, SEEDS, st.floats(0.01, 100), st.floats(-10, 10))
def test_the_mask_is_of_ranks_alone(ratio: float, seed: int, scale: float, offset: float) -> None:
    """(d)."""
    x = signal(seed).double()
    mask = amplitude_mask(x, ratio, seeded(seed))
    assert torch.equal(mask, amplitude_mask(scale * x + offset, ratio, seeded(seed)))
    assert torch.equal(mask, amplitude_mask(compand(x), ratio, seeded(seed)))


@pytest.mark.parametrize("ratio", [0.2, 0.36, 0.5])
@pytest.mark.parametrize("xi", [0.0, 0.1, 0.3, 0.46, 0.72, 0.9])
def test_the_mask_of_the_negative_is_mirrored(ratio: float, xi: float) -> None:
    """(d), where the window's two halves are equal, or it is shifted to an end."""
    x = signal(1)
    at = torch.full(SHAPE[:2], xi)
    count, length = round(SHAPE[-1] * ratio), SHAPE[-1]
    first = min(max(round(xi * length) - count // 2, 0), length - count)
    mirrored = torch.full(SHAPE[:2], (length - first - count + count // 2) / length)
    assert torch.equal(amplitude_mask(x, ratio, seeded(0), at), amplitude_mask(-x, ratio, seeded(0), mirrored))


def test_seeds_and_channels() -> None:
    """(e): the same again with the same seed; channels draw by themselves."""
    x = signal(0)[:1, :1].expand(SHAPE)
    mask = amplitude_mask(x, 0.1, seeded(5))
    assert torch.equal(mask, amplitude_mask(x, 0.1, seeded(5)))
    assert not torch.equal(mask, amplitude_mask(x, 0.1, seeded(6)))
    assert len(mask.flatten(0, 1).unique(dim=0)) > 8


def test_middle_amplitudes_are_hidden_most() -> None:
    """Shifting the window at its ends, at a ratio of a half: a quarter of the time at the ends, three in the middle."""
    x = torch.arange(100.0).expand(400, 10, 100)
    share = amplitude_mask(x, 0.5, seeded(0)).float().mean((0, 1))
    torch.testing.assert_close(share[[0, 49, 99]], torch.tensor([0.25, 0.75, 0.25]), atol=0.03, rtol=0)


@given(st.integers(0, 4 * 3 * 10), SEEDS)
def test_what_stands_in_place_of_hidden_samples(count: int, seed: int) -> None:
    """(g)."""
    before = 1 + torch.arange(4 * 3 * 10.0).reshape(4, 3, 10)
    hidden = torch.zeros(120, dtype=torch.bool)
    hidden[torch.randperm(120, generator=seeded(seed))[:count]] = True
    hidden = hidden.view(4, 3, 10)
    found = shown(before, hidden, seeded(seed))
    assert torch.equal(found.hidden, hidden) and torch.equal(found.signal[~hidden], before[~hidden])
    assert int(found.masked.sum()) == round(0.8 * count) and not bool(found.masked[~hidden].any())
    changed = (found.signal != before) & ~found.masked
    assert int(changed.sum()) <= round(0.1 * count), "another sample may be the same one"
    assert set(found.signal[changed].tolist()) <= set(before.flatten().tolist())


def test_all_or_nothing_of_the_masks_token() -> None:
    before, hidden = torch.randn(2, 2, 5), torch.ones(2, 2, 5, dtype=torch.bool)
    assert bool(shown(before, hidden, seeded(0), (1, 0)).masked.all())
    nothing = shown(before, hidden, seeded(0), (0, 0))
    assert torch.equal(nothing.signal, before) and not bool(nothing.masked.any())


def test_some_rows_of_what_is_shown() -> None:
    whole = shown(torch.randn(4, 2, 5), torch.ones(4, 2, 5, dtype=torch.bool), seeded(0))
    part = whole.rows(slice(1, 3))
    assert torch.equal(part.masked, whole.masked[1:3]) and torch.equal(part.signal, whole.signal[1:3])
