"""When a delta is read beside the base and when it is written into it, for a turn or for one product: measured on the
machine that does both.

Knows nothing of requests and recipes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial

import torch

from patchbay.backbone import Backbone
from patchbay.delta import SparseRows
from patchbay.delta.delta import KeptRows
from patchbay.delta.packed import PackedRows
from patchbay.execute.kernels import Kernel, compile_entries
from patchbay.execute.kernels.packed import can_pack
from patchbay.execute.trial import trial_inputs

TRIES = 3  # of which the fastest counts
SIDE = 1536  # of the matrix that stands for all
DENSE, SPARSE = 0.5, 0.05  # its densities: one to be read for a speed, one as deltas have it
COUNTS = (64, 128, 256, 512, 1024)  # inputs


def break_even_bytes(backbone: Backbone) -> int:
    """T(1) r: what is read of deltas, at r bytes a second, in the time that the base takes for one row by itself.

    K requests on K deltas of n bytes each take T(K) + K n / r a step beside the base, and K T(1) one after another with
    the base patched: sharing the step is worth more as long as n / r < T(1). T(K) and the patching are left out, as
    they weigh about the same (110 M parameters: 65 ms for eight rows, where one takes 38, and 14 a step for patching).
    """
    return int(_step_seconds(backbone) * _bytes_per_second(backbone.device))


@torch.inference_mode()
def _step_seconds(backbone: Backbone) -> float:
    inputs = trial_inputs(backbone, 1, 2)
    return _fastest(lambda: backbone.model(**inputs), backbone.device)


@cache
def _bytes_per_second(device: torch.device) -> float:
    """The machine's, whatever the model: measured once."""
    kept, kernel = _sample(DENSE, device)
    x = torch.ones(1, SIDE, device=device)
    return kept.num_bytes / _fastest(lambda: kernel.product(x), device)


@cache
def merged_from(device: torch.device) -> int:
    """Inputs of one plan from which on a matrix is merged for one product and dropped again: the base's product is to
    be made in any case, and from here on what a delta adds to it takes longer than merging.
    """
    _, kernel = _sample(SPARSE, device)
    base, one = torch.zeros(SIDE, SIDE, dtype=torch.bfloat16, device=device), torch.ones(1, device=device)

    def merge() -> torch.Tensor:
        dense = base.float()
        kernel.add_to(dense, one)
        return dense.to(base.dtype)

    merging = _fastest(merge, device)
    for count in COUNTS:
        x = torch.ones(count, SIDE, device=device)
        if _fastest(partial(kernel.product, x), device) > merging:
            return count
    return 2 * COUNTS[-1]


def _sample(density: float, device: torch.device) -> tuple[KeptRows, Kernel]:
    """A matrix's entries as this machine keeps them in memory, and their kernel."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.nonzero(torch.rand(SIDE * SIDE, generator=generator) < density).flatten().int()
    values = torch.randn(len(positions), generator=generator).bfloat16().float()
    rows = SparseRows((SIDE, SIDE), positions, values)
    kept = PackedRows.of(rows, transposed=False) if can_pack(SIDE, device) else rows
    return kept, compile_entries(kept, False, device)


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds. Once more before it counts: what runs first has to be made ready."""
    found: list[float] = []
    for _ in range(1 + TRIES):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])
