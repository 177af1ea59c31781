"""PCB against the formula of the authors' evolution-strategy code, written as it is there: sorts of whole vectors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.merge.stacks import merged, numbers, stacks_of

from patchbay.errors import InvalidRecipe

QUICK = settings(max_examples=20, deadline=None)  # a merge makes histograms of 65,536 numbers


def clamped(rows: torch.Tensor, low: float, high: float) -> torch.Tensor:
    count, ordered = rows.shape[1], rows.sort(1).values
    return rows.clamp(ordered[:, int(count * low), None], ordered[:, int(count * (1 - high) - 1), None])


def normalized(rows: torch.Tensor) -> torch.Tensor:
    least, most = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return (rows - least) / (most - least)


def by_formula(terms: torch.Tensor, ratio: float) -> torch.Tensor:
    sizes = clamped(terms.abs(), 0.01, 0.01)
    signed = terms.sign() * normalized(sizes)
    intra = torch.exp(len(terms) * normalized(sizes) ** 2)
    inter = torch.stack([torch.tanh(one * signed).sum(0) for one in signed])
    shares = normalized(clamped((intra * inter).clamp(min=0), 1 - ratio, 0))
    return (terms.sign() * sizes * shares).sum(0) / shares.sum(0).clamp(min=1e-12)


def split(terms: torch.Tensor, cut: int) -> dict[str, torch.Tensor]:
    """As a matrix and a vector."""
    return {"a": terms[:, : 2 * cut].reshape(len(terms), 2, cut), "b": terms[:, 2 * cut :]}


def pcb(terms: torch.Tensor, ratio: float) -> torch.Tensor:
    found = merged("pcb", stacks_of(split(terms, 30)), ratio=ratio)
    return torch.cat([found["a"].flatten(), found["b"]])


@QUICK
@given(st.integers(0, 999), st.integers(1, 4), st.sampled_from([0.05, 0.2, 0.9]), st.sampled_from([1.0, 0.3]))
def test_formula(seed: int, count: int, ratio: float, density: float) -> None:
    """Of dense terms, and of pruned ones, where most scores are 0."""
    terms = numbers(seed, count, 250) ** 3
    terms = torch.where(numbers(seed + 1, count, 250).abs() < density, terms, 0.0)
    assert torch.allclose(pcb(terms, ratio), by_formula(terms, ratio), rtol=1e-4, atol=1e-5)


def test_only_winners_are_kept() -> None:
    terms = numbers(5, 3, 400)
    found = pcb(terms, 0.05)
    assert 20 <= int(torch.count_nonzero(found)) <= 60  # 20 of each term, which agree on some


def test_entries_that_terms_agree_on_win_first() -> None:
    """Ten entries of each of the two stand out, five of them are the same ones."""
    terms = torch.full((2, 400), 1e-3)
    terms[0, :5] = terms[1, 5:10] = terms[:, 10:15] = 1.0
    assert pcb(terms, 0.02).nonzero().flatten().tolist() == list(range(10, 15))
    assert pcb(terms, 0.05).nonzero().flatten().tolist() == list(range(15))
    assert pcb(terms, 0.05)[:15].tolist() == [1.0] * 15


@QUICK
@given(st.integers(0, 99))
def test_laws(seed: int) -> None:
    terms = numbers(seed, 3, 200)
    found = pcb(terms, 0.1)
    assert torch.allclose(pcb(terms[[2, 0, 1]], 0.1), found, atol=1e-6)
    assert torch.allclose(pcb(8 * terms, 0.1), 8 * found, atol=1e-5)
    assert torch.allclose(pcb(-terms, 0.1), -found, atol=1e-6)
    weights = [2.0, 1.0, -1.0]
    weighted = merged("pcb", stacks_of({"a": terms}, weights), ratio=0.1)["a"]
    assert torch.allclose(weighted, pcb(terms * torch.tensor(weights)[:, None], 0.1), atol=1e-6)


def test_terms_that_keep_less_than_a_hundredth_are_not_clamped_to_nothing() -> None:
    terms = torch.zeros(1, 400)
    terms[0, :2] = torch.tensor([3.0, 2.0])
    assert pcb(terms, 0.05)[:2].tolist() == [3.0, 2.0]


def test_zeros() -> None:
    assert not pcb(torch.zeros(2, 100), 0.05).any()
    assert pcb(torch.stack([numbers(1, 100), torch.zeros(100)]), 0.05).isfinite().all()
    assert merged("pcb", stacks_of({})) == {}


def test_drawn_sizes_do_not_compete() -> None:
    terms = torch.where(numbers(1, 2, 1000) > 0, 1.0, 0.0)
    found = merged("pcb", stacks_of({"a": terms}, is_sampled=True), ratio=0.1)["a"]
    kept = int(torch.count_nonzero(found))
    assert 150 < kept <= 200
    assert float(found.sum()) == pytest.approx(0.5 * kept * 10, rel=0.15)  # one of five stays, and counts five times
    whole = merged("pcb", stacks_of({"a": terms}, is_sampled=True), ratio=0.9)["a"]
    assert torch.equal(whole, merged("nps", stacks_of({"a": terms}))["a"])


@pytest.mark.parametrize("ratio", [-0.1, 1.5])
def test_a_ratio_that_is_no_share(ratio: float) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        merged("pcb", stacks_of({"a": numbers(1, 2, 3)}), ratio=ratio)
    assert caught.value.param == "params.ratio"
