"""Bias and variance of regions are those of real draws, and the rule weighs them as it says."""

from __future__ import annotations

import pytest
import torch
from tests.compress.problems import flat, random_tensors, vector_of

from patchbay.compress.region import LONGER, Regions
from patchbay.compress.sampled import Sampled, region_weights

GROUPS = 4
VECTOR = vector_of(random_tensors(seed=3, a=(60, 50), b=(40, 70)))
SAMPLED = Sampled(VECTOR, GROUPS)
TAU = torch.cat([VECTOR.read(name).flatten() for name in VECTOR.names]).double()


def regions(ratio: float) -> Regions:
    found = Regions.of(VECTOR, SAMPLED.edges)
    return Regions(found.magnitude, found.energy, ratio)


def test_sums_are_those_of_the_largest_entries() -> None:
    for inside, edge in enumerate(SAMPLED.edges.tolist()):
        kept = TAU[TAU.abs() >= edge]
        assert float(regions(1.0).magnitude[inside]) == pytest.approx(float(kept.abs().sum()), rel=1e-9)
        assert float(regions(1.0).energy[inside]) == pytest.approx(float(kept.square().sum()), rel=1e-9)


def test_error_of_a_draw_is_bias_and_variance() -> None:
    keep, draws = 200, 60
    for inside in (3, 4):
        error = 0.0
        for seed in range(draws):
            drawn = flat(dict(SAMPLED.parts(region_weights(GROUPS, inside, 1.0), keep, seed)))
            error += float((drawn - TAU).square().sum()) / draws
        found = regions(1.0)
        lost = found.energy[-1] - found.energy[inside - 1]
        variance = found.magnitude[inside - 1] ** 2 / keep - found.energy[inside - 1]
        assert error == pytest.approx(float(lost + variance), rel=0.1)


def test_louder_vectors_and_fewer_entries_get_smaller_regions() -> None:
    everything = range(1, GROUPS + 1)
    by_ratio = [regions(ratio).best(200, everything)[0] for ratio in (1e-4, 0.01, 0.1, 1.0, 100.0)]
    assert by_ratio == sorted(by_ratio, reverse=True) and by_ratio[0] == GROUPS and by_ratio[-1] < GROUPS
    by_keep = [regions(0.1).best(keep, everything)[0] for keep in (1, 20, 200, 2000)]
    assert by_keep == sorted(by_keep) and by_keep[0] < by_keep[-1]


def test_only_allowed_regions_are_chosen() -> None:
    assert regions(100.0).best(200, [3, 4])[0] in (3, 4)
    assert regions(1e-4).best(200, [2])[0] == 2


def test_where_most_is_lost_the_rest_is_drawn_longer() -> None:
    assert regions(100.0).best(200, [1]) == (1, LONGER)
    assert regions(100.0).best(200, [GROUPS]) == (GROUPS, 1.0)
