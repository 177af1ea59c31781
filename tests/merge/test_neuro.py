"""The plan of NeuroMerging is what the published decomposition gives: against an SVD of the T x d differences."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay.merge.elect import elect_mean
from patchbay.merge.neuro import neuron_weights

SEEDS = st.integers(0, 2**32 - 1)
MODEST = settings(max_examples=40)


def merged(weights: torch.Tensor, taus: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(parallel, orthogonal) [R, d] of weights [R, d] and differences [R, T, d], through Gram matrices."""
    projections = (taus @ weights[:, :, None]).squeeze(-1)
    along, across, betas = neuron_weights(taus @ taus.mT, projections, weights.square().sum(1))
    return along[:, None] * weights, (betas[:, :, None] * taus).sum(1) - across[:, None] * weights


def published(weight: torch.Tensor, taus: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of one neuron [d], [T, d], as the paper writes it."""
    energy = weight.square().sum()
    along = taus @ weight / energy if energy > 0 else torch.zeros(len(taus), dtype=taus.dtype)
    orthogonal = taus - along[:, None] * weight
    directions = torch.linalg.svd(orthogonal, full_matrices=False)[2]
    return elect_mean(along) * weight, elect_mean(orthogonal @ directions.T) @ directions


def random_rows(seed: int, rows: int = 5, tasks: int = 3, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return weights, torch.randn(rows, tasks, width, generator=generator, dtype=torch.float64)


def close(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("weight", "taus", "parallel", "orthogonal"),
    [
        ((1, 0, 0), ((1, 2, 0), (-0.5, 1, 1)), (1, 0, 0), (0, 1.3618033989, 1.0854101966)),
        ((3, 4), ((1, 0), (0, 2), (-1, 1)), (0.48, 0.64), (-1.04, 0.78)),
    ],
)
def test_golden_values(weight: object, taus: object, parallel: object, orthogonal: object) -> None:
    rows = [torch.tensor([given], dtype=torch.float64) for given in (weight, taus, parallel, orthogonal)]
    found = merged(rows[0], rows[1])
    close(found[0], rows[2], 1e-10)
    close(found[1], rows[3], 1e-10)


@MODEST
@given(SEEDS, st.integers(1, 8))
def test_gram_matrices_give_what_the_decomposition_gives(seed: int, tasks: int) -> None:
    weights, taus = random_rows(seed, tasks=tasks)
    expected = [published(weight, differences) for weight, differences in zip(weights, taus, strict=True)]
    for found, wanted in zip(merged(weights, taus), zip(*expected, strict=True), strict=True):
        close(found, torch.stack(wanted), 1e-10 * float(taus.abs().max()))


@MODEST
@given(SEEDS)
def test_the_orthogonal_part_is_orthogonal(seed: int) -> None:
    weights, taus = random_rows(seed)
    close((merged(weights, taus)[1] * weights).sum(1), torch.zeros(5, dtype=torch.float64))


@MODEST
@given(SEEDS)
def test_one_task_is_split_and_identical_tasks_are_one(seed: int) -> None:
    weights, taus = random_rows(seed, tasks=1)
    for count in (1, 3):
        parallel, orthogonal = merged(weights, taus.expand(-1, count, -1))
        close(parallel + orthogonal, taus[:, 0])
        close((orthogonal * weights).sum(1), torch.zeros(5, dtype=torch.float64))


@MODEST
@given(SEEDS)
def test_the_order_of_tasks_and_of_rows_does_not_matter(seed: int) -> None:
    weights, taus = random_rows(seed)
    expected = merged(weights, taus)
    for order in permutations(range(3)):
        for found, wanted in zip(merged(weights, taus[:, order]), expected, strict=True):
            close(found, wanted)
    for found, wanted in zip(merged(weights.flip(0), taus.flip(0)), expected, strict=True):
        close(found, wanted.flip(0))


@MODEST
@given(SEEDS, st.floats(0.1, 10), st.sampled_from([1, -1]))
def test_it_is_homogeneous_odd_and_blind_to_the_length_of_the_weights(seed: int, factor: float, sign: int) -> None:
    weights, taus = random_rows(seed)
    parallel, orthogonal = merged(weights, taus)
    scaled = merged(weights * -factor, taus * sign * factor)
    close(scaled[0], sign * factor * parallel)
    close(scaled[1], sign * factor * orthogonal)


@MODEST
@given(SEEDS)
def test_inputs_may_be_rotated(seed: int) -> None:
    weights, taus = random_rows(seed)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    for found, wanted in zip(merged(weights @ rotation, taus @ rotation), merged(weights, taus), strict=True):
        close(found, wanted @ rotation)


def test_nothing_merged_is_nothing() -> None:
    weights, taus = random_rows(0)
    for part in merged(weights, torch.zeros_like(taus)):
        assert not part.any()


def test_a_neuron_without_weights_elects_over_all_of_the_difference() -> None:
    weights, taus = random_rows(1)
    parallel, orthogonal = merged(torch.zeros_like(weights), taus)
    assert not parallel.any()
    close(orthogonal, torch.stack([published(w, t)[1] for w, t in zip(torch.zeros_like(weights), taus, strict=True)]))


def test_opposite_tasks_cancel() -> None:
    weights, taus = random_rows(2, tasks=1)
    for part in merged(weights, torch.cat([taus, -taus], 1)):
        close(part, torch.zeros_like(part))


@pytest.mark.parametrize(("second", "expected"), [(3.0, 2.0), (-3.0, -3.0), (-0.5, 1.0)])
def test_two_tasks_on_one_line(second: float, expected: float) -> None:
    """Of equal sign: the mean. Of opposite sign: the side with more mass."""
    weights, taus = random_rows(3, tasks=1)
    single = merged(weights, taus)[1]
    along = (taus[:, 0] * weights).sum(1) / weights.square().sum(1)
    orthogonal = taus - (along[:, None] * weights)[:, None]
    close(merged(weights, torch.cat([orthogonal, second * orthogonal], 1))[1], expected * single)


@MODEST
@given(SEEDS, st.integers(2, 6))
def test_no_direction_is_longer_than_in_the_task_that_has_most_of_it(seed: int, tasks: int) -> None:
    weights, taus = random_rows(seed, tasks=tasks)
    for weight, differences, found in zip(weights, taus, merged(weights, taus)[1], strict=True):
        orthogonal = differences - (differences @ weight / weight.square().sum())[:, None] * weight
        directions = torch.linalg.svd(orthogonal, full_matrices=False)[2]
        most = (orthogonal @ directions.T).abs().amax(0)
        assert bool(((found @ directions.T).abs() <= most + 1e-9).all())
