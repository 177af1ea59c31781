"""What is measured on the full task vector while it is written: errors for the manifest, two numbers a neuron."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from patchbay.compress.prune import CHUNK, chunks
from patchbay.delta import NeuronStatistics
from patchbay.delta.manifest import Statistics

LARGEST = torch.finfo(torch.float32).max


@dataclass
class Norms:
    """Sums over the whole vector for relative error and sigma."""

    error: float = 0.0
    square: float = 0.0
    kept: float = 0.0
    total: float = 0.0

    def add(self, tau: torch.Tensor, delta: torch.Tensor) -> None:
        for full, kept in zip(_pieces(tau), _pieces(delta), strict=True):
            self.error += float((full - kept).square().sum())
            self.square += float(full.square().sum())
            self.kept += float(kept.abs().sum())
            self.total += float(full.abs().sum())

    def statistics(self) -> Statistics:
        sigma = max(0.0, 1.0 - self.kept / self.total) if self.total else 0.0
        return Statistics(relative_error=(self.error / self.square) ** 0.5 if self.square else 0.0, sigma=sigma)


def squared_norm(tensor: torch.Tensor) -> float:
    return sum(float(piece.square().sum()) for piece in _pieces(tensor))


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """In float64, piece by piece: a copy of the largest tensor in float64 would be the peak of memory."""
    return (piece.double() for piece in chunks(tensor))


def neuron_statistics(tau: torch.Tensor, base: torch.Tensor, axis: int) -> NeuronStatistics:
    """Energy |tau_r|^2 and cosine <tau_r, w_r> / (|tau_r| |w_r|) of every neuron r, an index of `axis`; fp32 [neurons].

    The cosine is 0 where either row is.
    """
    rows, weights = (tensor.movedim(axis, 0).flatten(1) for tensor in (tau, base))
    at_once = max(1, CHUNK // max(1, rows.shape[1]))
    pairs = zip(rows.split(at_once), weights.split(at_once), strict=True)  # type: ignore[no-untyped-call]
    energy, cosine = zip(*(_energy_and_cosine(*pair) for pair in pairs), strict=True)
    # Squares of weights beyond 1e19 are no fp32 numbers; such a fine-tune is refused when it answers, not here.
    return NeuronStatistics(
        torch.cat(energy).clamp(max=LARGEST).float(), torch.cat(cosine).nan_to_num(0.0, 0.0, 0.0).float()
    )


def _energy_and_cosine(rows: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights = weights.to(torch.float32)
    energy = torch.linalg.vecdot(rows, rows).double()
    lengths = (energy * torch.linalg.vecdot(weights, weights).double()).sqrt()
    return energy, torch.where(lengths > 0, torch.linalg.vecdot(rows, weights).double() / lengths, 0.0)
