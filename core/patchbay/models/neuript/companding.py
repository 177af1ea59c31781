"""A-law: large amplitudes are pressed together, so that a blink does not outweigh a rhythm.

The textbook's formula has 1 + ln A below, which is negative for A = 1/4; the authors' code has e + ln A.
"""

from __future__ import annotations

import math

import torch

A = 0.25
KNEE_UV = 1 / A
SCALE = math.e + math.log(A)


def compand(signal: torch.Tensor) -> torch.Tensor:
    """y = sign(x) A |x| / K up to 4 microvolts, sign(x) (1 + ln(A |x|)) / K from there on, with K = e + ln A."""
    size = A * signal.abs()
    pressed = torch.where(size < 1, size, 1 + size.clamp_min(1.0).log())
    return signal.sign() * pressed / SCALE


def expand(companded: torch.Tensor) -> torch.Tensor:
    """Back to microvolts."""
    size = companded.abs() * SCALE
    return companded.sign() * torch.where(size < 1, size, (size - 1).exp()) / A
