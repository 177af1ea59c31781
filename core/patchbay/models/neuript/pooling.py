"""What a head reads of an encoder: for every level and lobe, the mean over the lobe's channels and over time (IILP).

Knows nothing of names of channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def lobe_means(level: torch.Tensor, lobes: torch.Tensor) -> torch.Tensor:
    """[B, D, T, width] and the channels' lobes [B, D, 5] (bool) -> [B, 5, width] (paper, eq. 11 and 12).

    A lobe without channels is zero. Channels that are padding are in no lobe.
    """
    channels = level.float().mean(2)
    weights = lobes.to(channels.dtype)
    sums = torch.einsum("bdl,bdw->blw", weights, channels)
    return (sums / weights.sum(1)[..., None].clamp_min(1.0)).to(level.dtype)


def pooled(levels: Sequence[torch.Tensor], lobes: torch.Tensor) -> torch.Tensor:
    """[B, levels * 5 * width]: level by level, the lobes' means (paper, eq. 13 and 14)."""
    return torch.cat([lobe_means(level, lobes).flatten(1) for level in levels], 1)
