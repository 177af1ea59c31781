"""Multi-head attention among the tokens of a group: a channel's samples, or a moment's channels.

Projections see the batch's rows in front, whatever the groups are. Knows nothing of time and channels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from patchbay.models.neuript.config import NeurIPTConfig


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
        found = functional.scaled_dot_product_attention(
            self._heads(self.query(x)),
            self._heads(self.key(source)),
            self._heads(self.value(source)),
            attn_mask=None if visible is None else _allowed(visible),
            dropout_p=self.dropout if self.training else 0.0,
        )
        joined: torch.Tensor = self.output(found.transpose(1, 2).reshape(x.shape))
        return joined

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, G, N, width] -> [B G, heads, N, width / heads]."""
        return x.reshape(-1, x.shape[2], self.num_heads, x.shape[3] // self.num_heads).transpose(1, 2)


def _allowed(visible: torch.Tensor) -> torch.Tensor:
    """[B, G, N] -> [B G, 1, N, N]: rows ask, columns are asked."""
    keys = visible.reshape(-1, 1, 1, visible.shape[-1])
    itself = torch.eye(visible.shape[-1], dtype=torch.bool, device=visible.device)
    return keys | itself
