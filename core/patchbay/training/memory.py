"""How much memory training takes, how many windows fit at once, and whether there is that much.

Windows at once follow from the model and the recordings alone, never from what is free: a run that goes on elsewhere
goes on to the same end. Knows nothing of recordings and of losses.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from patchbay.errors import InputError
from patchbay.models.neuript import NeurIPTConfig

M_MMAP_THRESHOLD = -3  # of malloc.h
BUDGET = 2 << 30  # of what lies between input and loss, on a CPU; half of a GPU's memory is its own
# Numbers kept of a token, in widths: by a block and by a decoder's layer, and what is there besides while one of them
# is gone through backwards. Measured.
BLOCK, LAYER, PASSING = 40, 65, 60
OF_PARAMETER = 28  # bytes: weight, gradient, two moments, and a copy of three where a checkpoint is read


@dataclass(frozen=True, slots=True)
class Plan:
    """`rows`: windows at once; `recomputes`: layers are gone through again for their gradients, because of one window
    all would be too much. `needed`: bytes, the model's among them.
    """

    rows: int
    recomputes: bool
    needed: int


def plan_for(
    config: NeurIPTConfig, parameters: int, windows: tuple[int, int], *, decodes: bool, device: torch.device
) -> Plan:
    """`windows`: channels and samples of the largest. `decodes`: as pre-training does, at every sample."""
    token = 4 * prod(windows) * config.hidden_size
    tokens = [1.0 / prod(config.merges[: number + 1]) for number in range(config.num_blocks)]
    layers = config.num_blocks + 1 if decodes else 0
    whole = token * (BLOCK * sum(tokens) + LAYER * layers + PASSING)
    again = token * (1 + sum(tokens) + 2 * layers + max(BLOCK, LAYER if layers else 0) + PASSING)
    budget = _budget(device)
    recomputes = whole > budget
    each = again if recomputes else whole
    rows = max(1, int(budget / each))
    return Plan(rows, recomputes, int(rows * each) + OF_PARAMETER * parameters)


def check_fits(plan: Plan, windows: tuple[int, int], device: torch.device, lower: str) -> None:
    """Raises InputError, which says `lower` than what, where not as much is free."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()
    if free is not None and plan.needed > free:
        raise InputError(
            f"training on windows of {windows[0]} channels and {windows[1]} samples takes about "
            f"{plan.needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free: {lower}",
            param="window_seconds",
        )


def free_bytes(root: Path = Path("/")) -> int | None:
    """What Linux says is available, and no more than a container has left. None where nobody says."""
    found = []
    for line in _lines(root / "proc/meminfo"):
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            found.append(int(amount.split()[0]) * 1024)
    group = root / "sys/fs/cgroup"
    limit = "".join(_lines(group / "memory.max"))
    if limit.isdigit():
        used = int("".join(_lines(group / "memory.current")) or 0)
        cached = [int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith("inactive_file ")]
        found.append(int(limit) - used + sum(cached))
    return min(found, default=None)


def give_back_at_once() -> None:
    """Tensors over a megabyte come from the system and go back to it, in glibc; elsewhere nothing is changed.

    Torch asks for aligned blocks, and glibc 2.36 finds few of those again that were freed: a step that needs 200 MB at
    a time grows to 2.5 GB in its heap. It takes some more time in the kernel, and so is for large windows alone.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").splitlines()
    except OSError:
        return []


def _budget(device: torch.device) -> float:
    return BUDGET if device.type != "cuda" else torch.cuda.get_device_properties(device).total_memory / 2
