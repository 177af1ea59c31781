"""Layers with experts: (r) to (v) of the specification."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from patchbay.models.neuript.config import NeurIPTConfig
from patchbay.models.neuript.moe import ExpertFeedForward, FeedForward, imbalance

EXPERTS = 4


def layer(**changes: object) -> ExpertFeedForward:
    torch.manual_seed(0)
    return ExpertFeedForward(NeurIPTConfig.of_size("test", **changes), EXPERTS).eval()


def drawn(seed: int = 1, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 7, 48, generator=torch.Generator().manual_seed(seed))


def by_hand(moe: ExpertFeedForward, x: torch.Tensor) -> torch.Tensor:
    """The paper's formula, token by token and expert by expert."""
    found = []
    for token in x.reshape(-1, x.shape[-1]):
        logits = moe.router(token)
        best = logits.topk(2).indices
        gates = torch.softmax(logits[best], 0) if moe._is_normed else torch.softmax(logits, 0)[best]
        routed = sum(gate * moe.experts[int(number)](token) for gate, number in zip(gates, best, strict=True))
        found.append(routed + moe.shared(token))
    return torch.stack(found).view(x.shape)


@pytest.mark.parametrize("gate_norm", ["chosen", "all"])
def test_the_formula(gate_norm: str) -> None:
    moe = layer(gate_norm=gate_norm)
    torch.testing.assert_close(moe(drawn())[0], by_hand(moe, drawn()), atol=1e-5, rtol=1e-5)


def test_swiglu() -> None:
    feed, x = FeedForward(48, 16), drawn()
    gate, value = functional.linear(x, feed.up.weight, feed.up.bias).split(16, -1)
    expected = functional.linear(gate * torch.sigmoid(gate) * value, feed.down.weight, feed.down.bias)
    torch.testing.assert_close(feed(x), expected)


def test_gates() -> None:
    """(r): half of the experts, weights that sum to 1."""
    gates, chosen, shares = layer()._route(drawn())
    assert torch.equal(gates > 0, chosen) and chosen.sum(-1).unique().tolist() == [2]
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, 7))
    torch.testing.assert_close(shares.sum(-1), torch.ones(3, 7))
    authors, _, _ = layer(gate_norm="all")._route(drawn())
    assert bool((authors.sum(-1) < 1).all()) and torch.equal(authors > 0, chosen)


def test_a_row_is_answered_as_it_is_alone() -> None:
    """Nothing is dropped, whoever else comes to an expert."""
    moe, x = layer(), drawn(rows=5)
    together, _ = moe(x)
    for row in range(5):
        torch.testing.assert_close(together[row : row + 1], moe(x[row : row + 1])[0], atol=1e-6, rtol=1e-5)
    assert len({tuple(row) for row in moe._route(x)[1].sum(1).tolist()}) > 1, "else rows need no padding"


def test_gradients() -> None:
    """(s): experts that no token comes to get none, the shared one always does."""
    moe = layer()
    with torch.no_grad():
        moe.router.bias.copy_(torch.tensor([50.0, 50.0, 0.0, 0.0]))
    moe(drawn())[0].square().sum().backward()
    for number, expert in enumerate(moe.experts):
        grads = [parameter.grad for parameter in expert.parameters()]
        if number < 2:
            assert all(grad is not None and bool(grad.any()) for grad in grads)
        else:
            assert all(grad is None or not bool(grad.any()) for grad in grads)
    assert moe.shared.up.weight.grad is not None and bool(moe.shared.up.weight.grad.any())


def auxiliary(bias: list[float], real: torch.Tensor | None = None) -> float:
    moe = layer(router_noise=0.0).train()
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.bias.copy_(torch.tensor(bias))
    _, usage = moe(drawn(), real)
    return float(0.008 * imbalance(usage).detach())


def test_the_loss_of_uneven_use() -> None:
    """(t): none where all experts get as much, more and more where one gets more."""
    assert float(imbalance(torch.full((2, EXPERTS), 5.25))) == pytest.approx(0, abs=1e-6)
    uneven = [auxiliary([bias, 0.0, 0.0, 0.0]) for bias in (0.5, 1.0, 2.0, 4.0)]
    assert 0 < uneven[0] < uneven[1] < uneven[2] < uneven[3]
    assert layer()(drawn())[1] is None, "there is none where nothing is trained"


def test_the_loss_by_hand() -> None:
    """w CV^2 of the shares, and of the gates, which all go to the first two."""
    shares, gates = torch.softmax(torch.tensor([2.0, 1.0, 0, 0]), 0), torch.softmax(torch.tensor([2.0, 1.0]), 0)
    loads = torch.cat((gates, torch.zeros(2)))
    expected = sum(float(each.var() / each.mean() ** 2) for each in (shares, loads))
    assert auxiliary([2.0, 1.0, 0.0, 0.0]) == pytest.approx(0.008 * expected, rel=1e-4)


def test_padding_does_not_count_for_the_loss() -> None:
    moe = layer(router_noise=0.0).train()
    x, real = drawn(), torch.ones(3, 7, dtype=torch.bool)
    real[:, 5:] = False
    torch.testing.assert_close(moe(x, real)[1], moe(x[:, :5])[1])


def test_noise_is_for_training() -> None:
    """(u)."""
    moe, x = layer(router_noise=3.0), drawn()
    assert torch.equal(moe(x)[0], moe(x)[0])
    moe.train()
    assert not torch.equal(moe(x)[0], moe(x)[0])
