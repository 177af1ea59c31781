"""Two numbers a neuron that merges need beside a delta, in two bytes: how far its row moved and in which direction."""

from __future__ import annotations

import numpy as np
import torch

from patchbay.delta.codecs import Bytes
from patchbay.delta.codecs.grid import from_grid, to_grid
from patchbay.delta.delta import NeuronStatistics
from patchbay.errors import MalformedDelta

ENERGY_STEPS = 2  # grid points an octave
COSINE_STEPS = 15  # codes on either side of 0


def encode_neurons(statistics: NeuronStatistics) -> tuple[bytes, bytes]:
    """The `neuron_energy` and `neuron_cosine` streams.

    Energies fall on a grid of half octaves below the largest (an energy of 0 is exact), cosines on steps of 1/15.
    """
    maximum, points = to_grid(statistics.energy.to(torch.float32).numpy(), ENERGY_STEPS)
    codes = points + np.uint8(1)  # 1 is the largest energy; ZERO wraps to 0, an unchanged row
    cosine = np.rint(np.clip(statistics.cosine.to(torch.float32).numpy(), -1, 1) * np.float32(COSINE_STEPS))
    return maximum.astype("<f4").tobytes() + codes.tobytes(), (cosine + COSINE_STEPS).astype(np.uint8).tobytes()


def decode_neurons(energy: Bytes, cosine: Bytes, num_neurons: int) -> NeuronStatistics:
    """fp32 [num_neurons] each. Raises MalformedDelta."""
    if len(energy) != 4 + num_neurons or len(cosine) != num_neurons:
        raise MalformedDelta(f"{len(energy)} and {len(cosine)} bytes of statistics for {num_neurons} neurons")
    codes = np.frombuffer(energy[4:], np.uint8)
    points = codes - np.uint8(1)
    steps = np.frombuffer(cosine, np.uint8)
    if (steps > 2 * COSINE_STEPS).any():
        raise MalformedDelta(f"a cosine's code is above {2 * COSINE_STEPS}")
    found = from_grid(np.frombuffer(energy[:4], "<f4")[0], points, ENERGY_STEPS)
    cosines = (steps.astype(np.float32) - np.float32(COSINE_STEPS)) / np.float32(COSINE_STEPS)
    return NeuronStatistics(torch.from_numpy(found), torch.from_numpy(cosines))
