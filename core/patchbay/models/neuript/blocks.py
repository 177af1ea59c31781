"""The encoder's block: neighbours in time are merged, each channel looks along its time, each moment across channels.

Knows nothing of what a channel is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from patchbay.models.neuript.attention import Attention
from patchbay.models.neuript.config import NeurIPTConfig
from patchbay.models.neuript.moe import ExpertFeedForward, FeedForward

Usages = tuple[torch.Tensor, ...]  # of one layer with experts each, [2, E]


class Merge(nn.Module):
    """`factor` neighbouring tokens, side by side -> LayerNorm -> Linear: a quarter or half of the tokens is left."""

    def __init__(self, config: NeurIPTConfig, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.norm = nn.LayerNorm(factor * config.hidden_size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(factor * config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, D, T, width] -> [B, D, ceil(T / factor), width]."""
        batch, channels, _, width = x.shape
        padded = repeated(x, self.factor, 2)
        found: torch.Tensor = self.projection(
            self.norm(padded.reshape(batch, channels, padded.shape[2] // self.factor, self.factor * width))
        )
        return found

    def of_mask(self, visible: torch.Tensor) -> torch.Tensor:
        """[B, D, T] bool: a merged token is hidden where all of its parts are."""
        padded = repeated(visible, self.factor, 2)
        return padded.reshape(*padded.shape[:2], -1, self.factor).any(-1)


def repeated(x: torch.Tensor, factor: int, axis: int) -> torch.Tensor:
    """With its last tokens once more, until `factor` divides their number; the last one alone where they are few."""
    length = x.shape[axis]
    missing = -length % factor
    if not missing:
        return x
    tail = x.narrow(axis, length - missing, missing) if missing <= length else None
    if tail is None:
        tail = x.narrow(axis, length - 1, 1).expand(*x.shape[:axis], missing, *x.shape[axis + 1 :])
    return torch.cat((x, tail), axis)


class Stage(nn.Module):
    """z + MSA(LN(z)), then + F(LN(.)) (paper, eq. 15 to 20), within each group of tokens."""

    def __init__(self, config: NeurIPTConfig, num_experts: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.feed_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.feed = (
            ExpertFeedForward(config, num_experts) if num_experts else FeedForward(width, config.intermediate_size)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, z: torch.Tensor, visible: torch.Tensor | None = None, real: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Usages]:
        """[B, G, N, width] -> the same, and in training what experts get. `visible` and `real` ([B, G, N], bool): what
        others may see, and what is not padding.
        """
        z = z + self.dropout(self.attention(self.attention_norm(z), visible=visible))
        made, usages = self._fed(self.feed_norm(z), real)
        return z + self.dropout(made), usages

    def _fed(self, h: torch.Tensor, real: torch.Tensor | None) -> tuple[torch.Tensor, Usages]:
        if not isinstance(self.feed, ExpertFeedForward):
            return self.feed(h), ()
        routed, usage = self.feed(h.flatten(1, 2), None if real is None else real.flatten(1, 2))
        return routed.view(h.shape), () if usage is None else (usage,)


class Block(nn.Module):
    """Merge (where `merge` > 1), the stage along time, the stage across channels: full attention, without a router."""

    def __init__(self, config: NeurIPTConfig, merge: int = 1, num_experts: int = 0) -> None:
        super().__init__()
        self.merge = Merge(config, merge) if merge > 1 else None
        self.time = Stage(config, num_experts)
        self.channels = Stage(config, num_experts)

    def forward(
        self,
        z: torch.Tensor,
        electrodes: torch.Tensor | None = None,
        visible: torch.Tensor | None = None,
        real: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Usages]:
        """[B, D, T, width] -> [B, D, T', width], and in training what the experts of both stages get. `electrodes`
        ([B, D, width]) is added before the second stage.

        `visible` [B, D, T'] and `real` [B, D], bool, are of the tokens after merging and of the channels.
        """
        if self.merge is not None:
            z = self.merge(z)
        there = None if real is None else real[:, :, None].expand(z.shape[:3])
        z, usages = self.time(z, visible, there)
        if electrodes is not None:
            z = z + electrodes[:, :, None].to(z.dtype)
        z = z.transpose(1, 2)
        turned = [None if mask is None else mask.transpose(1, 2) for mask in (visible, there)]
        z, more = self.channels(z, *turned)
        return z.transpose(1, 2), (*usages, *more)


def run(layer: nn.Module, *inputs: Any, recomputes: bool) -> Any:
    """What the layer makes of the inputs. In training with `recomputes` nothing in between is kept for the gradients:
    it is made again when they are wanted, with the same dropout.
    """
    if recomputes and layer.training:
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
