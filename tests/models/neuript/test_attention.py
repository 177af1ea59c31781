"""Attention in slices is attention: no more than some scores are written down at once, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from patchbay.models.neuript import NeurIPTConfig
from patchbay.models.neuript import attention as module
from patchbay.models.neuript.attention import Attention


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCORES", 2 * 4 * 9 * 9)  # of two groups


def drawn(rows: int, groups: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, groups, length, 48, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def made(dropout: float) -> Attention:
    torch.manual_seed(0)
    return Attention(NeurIPTConfig.of_size("test", dropout=dropout))


def by_hand(attention: Attention, x: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    rows = []
    for row, group in [(row, group) for row in range(x.shape[0]) for group in range(x.shape[1])]:
        seen = None if visible is None else visible[row, group][None, None]
        rows.append(attention(x[row, group][None, None], visible=seen))
    return torch.cat(rows).view(x.shape)


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.usefixtures("small_slices")
def test_slices_are_the_whole(is_masked: bool) -> None:
    attention, x = made(0.0), drawn(3, 5, 9)
    visible = torch.rand(3, 5, 9) < 0.6 if is_masked else None
    expected = by_hand(attention, x, visible)
    expected.square().sum().backward()
    wanted = x.grad.clone()
    x.grad = None
    found = attention(x, visible=visible)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(x.grad, wanted, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, visible=visible), expected.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("small_slices")
def test_scores_are_not_kept() -> None:
    attention, x, sizes = made(0.1).train(), drawn(2, 8, 40), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda each: (sizes.append(each.numel()), each)[1], lambda each: each
    ):
        found = attention(x)
    assert max(sizes) <= x.numel() < 16 * 4 * 40 * 40, "of all groups"
    found.sum().backward()
    assert x.grad is not None and bool(x.grad.any())


@pytest.mark.usefixtures("small_slices")
def test_the_same_dropout_forwards_and_backwards() -> None:
    """The output is linear in the values' weights: their product with the gradient is the output, if what was dropped
    forwards is dropped backwards.
    """
    attention, x = made(0.5).train(), drawn(1, 6, 9)
    with torch.no_grad():
        attention.value.bias.zero_()
        attention.output.bias.zero_()
    weight, total = attention.value.weight, attention(x).sum()
    (gradient,) = torch.autograd.grad(total, weight)
    torch.testing.assert_close((gradient * weight).sum(), total, atol=1e-4, rtol=1e-4)
