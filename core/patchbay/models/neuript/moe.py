"""Feed-forward layers: one for every token, or some of several experts beside one that all share (PMoE).

Every token that is routed is answered: none is dropped for want of room, so that an answer does not depend on what else
is in the batch. Knows nothing of time and channels.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import nn
from torch.nn import functional

from patchbay.models.neuript.config import NeurIPTConfig

EPSILON = 1e-8


class FeedForward(nn.Module):
    """SwiGLU: W2 (SiLU(a) b), where (a, b) = W1 h."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.up(x).chunk(2, -1)
        found: torch.Tensor = self.down(functional.silu(gate) * value)
        return found


class ExpertFeedForward(nn.Module):
    """sum_e g_e FFN_e(h) + FFN_shared(h) (paper, eq. 8 to 10), e over the ceil(share E) experts of a token."""

    def __init__(self, config: NeurIPTConfig, num_experts: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.router = nn.Linear(width, num_experts)
        self.experts = nn.ModuleList(FeedForward(width, config.expert_size) for _ in range(num_experts))
        self.shared = FeedForward(width, config.intermediate_size)
        self.num_chosen = ceil(config.expert_share * num_experts)
        self._is_normed = config.gate_norm == "chosen"
        self._noise = config.router_noise

    def forward(self, x: torch.Tensor, real: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, n, width] -> the same, and in training what each expert gets [2, E]: the sums of its shares and of its
        gates over all tokens that count, of which `imbalance` makes a loss. `real` ([B, n], bool): padding does not.
        """
        gates, chosen, shares = self._route(x)
        found: torch.Tensor = self.shared(x)
        for number, expert in enumerate(self.experts):
            found = _added(found, expert, x, gates[..., number], chosen[..., number])
        return found, _usage(shares, gates, real) if self.training else None

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, n, E] each, fp32: weights that are 0 where a token goes elsewhere, where it goes, softmax over all."""
        logits = self.router(x).float()
        if self.training and self._noise:
            logits = logits + self._noise * torch.randn_like(logits)
        shares = logits.softmax(-1)
        best = logits.topk(self.num_chosen, -1).indices
        chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, value=True)
        gates = logits.masked_fill(~chosen, -torch.inf).softmax(-1) if self._is_normed else shares * chosen
        return gates, chosen, shares


def imbalance(usage: torch.Tensor) -> torch.Tensor:
    """CV^2 of what each expert gets [2, E], summed over the two: 0 where all get as much.

    It is of sums over a batch, and so not the mean of what parts of the batch have: those may differ in what they need.
    """
    return (usage.var(1) / (usage.mean(1) ** 2 + EPSILON)).sum()


def _usage(shares: torch.Tensor, gates: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    both = torch.stack((shares, gates))
    return (both if real is None else both * real[..., None]).sum((1, 2))


def _added(
    sums: torch.Tensor, expert: nn.Module, x: torch.Tensor, gate: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """`sums` plus what the expert makes of the tokens that come to it, times their gates.

    Tokens stay with their rows, each row's padded to the longest with tokens of gate 0: layers that answer every row of
    a batch under another delta need to know whose a token is.
    """
    count = int(chosen.sum(1).max())
    if not count:
        return sums
    order = chosen.to(torch.uint8).argsort(stable=True, dim=1, descending=True)[:, :count]
    index = order[..., None].expand(-1, -1, x.shape[-1])
    made = expert(x.gather(1, index)) * gate.gather(1, order)[..., None].to(x.dtype)
    return sums.scatter_add(1, index, made)
