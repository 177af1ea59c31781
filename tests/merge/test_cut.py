from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.merge.cut import find_cuts, largest

SIZES = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),  # often equal
    st.floats(0, 2**100, width=32),
    st.sampled_from([1.0, 1.0 + 2**-23, 2**-149, 2**-126, 3.4e38]),  # neighbours, subnormal, the largest
)


def in_order(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The reference: a stable sort."""
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[torch.sort(scores, descending=True, stable=True).indices[:count]] = True
    return mask


@given(st.lists(SIZES, max_size=40), st.data())
def test_exactly_the_largest_and_of_equal_ones_the_first(values: list[float], data: st.DataObject) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    count = data.draw(st.integers(0, len(values)))
    mask, rest = largest(scores, count).mask(scores)
    assert torch.equal(mask, in_order(scores, count))
    assert int(mask.sum()) == count
    assert rest.ties == 0


@given(st.lists(SIZES, min_size=1, max_size=40), st.data())
def test_over_several_tensors_as_over_one(values: list[float], data: st.DataObject) -> None:
    scores = torch.tensor([values, values[::-1]], dtype=torch.float32)
    edges = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    tensors = [scores[:, a:b] for a, b in pairwise([0, *edges, len(values)])]
    counts = [data.draw(st.integers(0, len(values))) for _ in scores]
    totals: list[tuple[int, int]] = []

    def count(row: int, total: int) -> int:
        totals.append((row, total))
        return counts[row]

    for row, cut in enumerate(find_cuts(lambda: tensors, count)):
        masks = []
        for tensor in tensors:
            mask, cut = cut.mask(tensor[row].contiguous())
            masks.append(mask)
        assert torch.equal(torch.cat(masks), in_order(scores[row], counts[row]))
    assert totals == [(0, len(values)), (1, len(values))]


@pytest.mark.parametrize(("count", "stands_for"), [(0, 1.0), (1, 3.0), (2, 1.5), (3, 1.0), (5, 1.0)])
def test_what_each_kept_number_stands_for(count: int, stands_for: float) -> None:
    assert largest(torch.tensor([0.0, 2.0, 1.0, 0.0, 3.0]), count).stands_for == stands_for


def test_of_nothing() -> None:
    assert find_cuts(lambda: [], lambda row, total: 0) == []
    assert largest(torch.zeros(3), 2).stands_for == 1.0
