"""A scalar of the signal as a token, and where it is: in time, and on the head.

Knows nothing of names of channels: coordinates come in millimetres (x right, y front, z up).
"""

from __future__ import annotations

import torch
from torch import nn

from patchbay.models.neuript.config import NeurIPTConfig, axis_widths

BASE = 10_000.0
# The frame of the twenty bipolar channels that the paper trains on: their least x, y and z, and 49 over their largest
# extent. The same for every montage, so that an electrode has one code.
ORIGIN_MM = (-78.2977, -95.6184, -10.745)
STEPS_PER_MM = 0.29657651
STEPS = 49


class SignalEmbedding(nn.Module):
    """z[b, d, t] = W x[b, d, t] + b (paper, eq. 2), with the time's encoding added."""

    def __init__(self, config: NeurIPTConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(1, config.hidden_size)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """[B, D, T] in companded units -> [B, D, T, width], without positions."""
        found: torch.Tensor = self.projection(signal[..., None])
        return found


def sinusoids(positions: torch.Tensor, width: int) -> torch.Tensor:
    """[...] -> [..., width], fp32: sin(p w_j) at 2j and cos(p w_j) at 2j + 1, with w_j = 10000^(-2j / width)."""
    rates = BASE ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width)
    angles = positions[..., None].double() * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2).float()


def time_encoding(length: int, width: int, device: torch.device) -> torch.Tensor:
    """[length, width]: of sample numbers from 0."""
    return sinusoids(torch.arange(length, device=device), width)


def electrode_encoding(
    positions: torch.Tensor, width: int, coordinates: str = "fixed", real: torch.Tensor | None = None
) -> torch.Tensor:
    """[..., D, 3] in millimetres -> [..., D, width]: sinusoids of x, of y and of z, side by side (paper, eq. 1).

    Under `fixed` a channel's code depends on its own coordinates and on nothing else, and z's on z alone. `real`
    ([..., D], bool) marks the channels that are not padding: under `stretched` only they have an extent.
    """
    steps = _stretched(positions, real) if coordinates == "stretched" else _fixed(positions)
    parts = [sinusoids(steps[..., axis], part) for axis, part in enumerate(axis_widths(width))]
    return torch.cat(parts, -1)


def _fixed(positions: torch.Tensor) -> torch.Tensor:
    origin = torch.tensor(ORIGIN_MM, device=positions.device, dtype=torch.float64)
    return (positions.double() - origin) * STEPS_PER_MM


def _stretched(positions: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """0 to 49 along the recording's longest axis, in whole steps."""
    found = positions.double()
    known = found if real is None else found.masked_fill(~real[..., None], torch.inf)
    found = found - known.amin(-2, keepdim=True)
    extent = found if real is None else found.masked_fill(~real[..., None], 0.0)
    longest = extent.amax((-2, -1), keepdim=True).clamp_min(1e-9)
    return (found * (STEPS / longest)).round()
