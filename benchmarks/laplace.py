"""Differences like a fine-tune's, drawn rather than trained: matrices with all-MiniLM's shapes, then pruned.

Knows nothing of encodings and files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from patchbay.compress.prune import KeepLargest, KeepRandom, num_kept
from patchbay.delta import SparseRows

HIDDEN, INNER = 384, 1536  # of all-MiniLM-L6
LAYER = dict.fromkeys(("query", "key", "value", "attention"), (HIDDEN, HIDDEN))
LAYER |= {"intermediate": (INNER, HIDDEN), "output": (HIDDEN, INNER)}
SCALE = 1e-3  # of the differences
NUM_LEVELS = 4


@dataclass(frozen=True, slots=True)
class Kept:
    """What a pruner left of every matrix, and the seeds of its positions where they were drawn."""

    rows: Mapping[str, SparseRows]
    seeds: Mapping[str, int]

    @property
    def parameters(self) -> int:
        return sum(math.prod(rows.shape) for rows in self.rows.values())

    @property
    def density(self) -> float:
        return sum(len(rows.positions) for rows in self.rows.values()) / self.parameters


def draw(entries: int) -> dict[str, torch.Tensor]:
    """fp32 differences of one word embedding and of whole layers, which share `entries` about as in all-MiniLM-L6."""
    layers = entries // 2 // sum(map(math.prod, LAYER.values()))
    shapes = {f"{index}.{name}": shape for index in range(layers) for name, shape in LAYER.items()}
    shapes["words"] = ((entries - sum(map(math.prod, shapes.values()))) // HIDDEN, HIDDEN)
    generator = np.random.default_rng(0)
    drawn = {name: generator.laplace(0, SCALE, shape).astype(np.float32) for name, shape in sorted(shapes.items())}
    return {name: torch.from_numpy(difference) for name, difference in drawn.items()}


def keep(matrices: Mapping[str, torch.Tensor], density: float, *, seeded: bool) -> Kept:
    """The largest entries of all matrices together, or as many at positions drawn from seeds."""
    sizes = {name: matrix.numel() for name, matrix in matrices.items()}
    count = num_kept(density, sum(sizes.values()))
    if seeded:
        drawn = KeepRandom(sizes, count, seed=0)
        rows = {name: drawn(name, matrix) for name, matrix in matrices.items()}
        return Kept(rows, {name: drawn.seed_of(name) for name in rows})
    largest = KeepLargest(matrices.__getitem__, matrices, count)
    return Kept({name: largest(name, matrix) for name, matrix in matrices.items()}, {})


def to_levels(rows: SparseRows) -> SparseRows:
    """Magnitudes as the means of their quarters: four of them, equally frequent, since `levels` holds few."""
    values = rows.values.numpy()
    magnitude = np.abs(values)
    index = np.searchsorted(np.quantile(magnitude, np.arange(1, NUM_LEVELS) / NUM_LEVELS), magnitude)
    sums, counts = np.bincount(index, magnitude, NUM_LEVELS), np.bincount(index, minlength=NUM_LEVELS)
    signed = np.copysign((sums / np.maximum(counts, 1))[index], values).astype(np.float32)
    return SparseRows(rows.shape, rows.positions, torch.from_numpy(signed))
