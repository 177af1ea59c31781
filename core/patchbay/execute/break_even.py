"""From which size on a delta is better written into the base than read beside it: measured where both are done.

Knows nothing of requests and recipes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from patchbay.backbone import Backbone
from patchbay.delta import SparseRows
from patchbay.delta.packed import PackedRows
from patchbay.execute.kernels import compile_entries
from patchbay.execute.kernels.packed import can_pack
from patchbay.execute.trial import trial_inputs

TRIES = 3  # of which the fastest counts
SIDE, DENSITY = 1536, 0.5  # of the matrix that is read for its speed


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
    generator = torch.Generator().manual_seed(0)
    positions = torch.nonzero(torch.rand(SIDE * SIDE, generator=generator) < DENSITY).flatten().int()
    values = torch.randn(len(positions), generator=generator).bfloat16().float()
    rows = SparseRows((SIDE, SIDE), positions, values)
    kept = PackedRows.of(rows, transposed=False) if can_pack(SIDE, device) else rows
    kernel, x = compile_entries(kept, False, device), torch.ones(1, SIDE, device=device)
    return kept.num_bytes / _fastest(lambda: kernel.product(x), device)


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
