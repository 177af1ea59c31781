"""Multi-head attention among the tokens of a group: a channel's samples, or a moment's channels.

Projections see the batch's rows in front, whatever the groups are. Knows nothing of time and channels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from patchbay.models.neuript.config import NeurIPTConfig

SCORES = 1 << 22  # written down at once: 16 MB
Groups = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d_h)) V by heads, with biases everywhere."""

    def __init__(self, config: NeurIPTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.num_heads, self.dropout = config.num_heads, config.dropout

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor | None = None, visible: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x [B, G, N, width] -> the same, from `memory` [B, G, M, width] or x itself.

        `visible` ([B, G, N], bool) of x itself: a token that is not is seen by itself alone, so that its content
        reaches nobody.
        """
        source = x if memory is None else memory
        query, key, value = (self._heads(each) for each in (self.query(x), self.key(source), self.value(source)))
        seen = None if visible is None else visible.reshape(-1, visible.shape[-1])
        found = _in_slices((query, key, value, seen), self.dropout if self.training else 0.0)
        joined: torch.Tensor = self.output(found.transpose(1, 2).reshape(x.shape))
        return joined

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, G, N, width] -> [B G, heads, N, width / heads]."""
        return x.reshape(-1, x.shape[2], self.num_heads, x.shape[3] // self.num_heads).transpose(1, 2)


def _in_slices(groups: Groups, dropout: float) -> torch.Tensor:
    """[groups, heads, N, width / heads]. On CPUs torch writes all scores [groups, heads, N, M] down where there is
    dropout or a mask: there some groups are answered at a time, and again when their gradients are wanted.
    """
    query, key, value, visible = groups
    each = max(1, SCORES // (query.shape[1] * query.shape[2] * key.shape[2]))
    if query.is_cuda or each >= len(query) or (visible is None and not dropout):
        return _answered(groups, dropout)
    found = []
    for first in range(0, len(query), each):
        part = slice(first, first + each)
        some = (query[part], key[part], value[part], None if visible is None else visible[part])
        is_trained = torch.is_grad_enabled()
        found.append(
            checkpoint(_answered, some, dropout, use_reentrant=False) if is_trained else _answered(some, dropout)
        )
    return torch.cat(found)


def _answered(groups: Groups, dropout: float) -> torch.Tensor:
    query, key, value, visible = groups
    mask = None if visible is None else _allowed(visible)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def _allowed(visible: torch.Tensor) -> torch.Tensor:
    """[groups, N] -> [groups, 1, N, N]: rows ask, columns are asked."""
    itself = torch.eye(visible.shape[-1], dtype=torch.bool, device=visible.device)
    return visible[:, None, None] | itself
