"""Windows of recordings as inputs: signals of any number of channels, padded to one batch.

Knows nothing of files, of rates and of names of channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from patchbay.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class SignalInput:
    """One window as a model reads it: fp32 `signal` [D, T], `positions` [D, 3] in millimetres, bool `lobes` [D, 5]."""

    signal: torch.Tensor
    positions: torch.Tensor
    lobes: torch.Tensor


def signal_batch(items: Sequence[SignalInput]) -> dict[str, torch.Tensor]:
    """`signal` [B, D, T], `positions` [B, D, 3], `lobes` [B, D, 5], and where windows differ in their channels a
    `channel_mask` [B, D] that is False for padding.

    Raises InputError where they differ in length.
    """
    length = items[0].signal.shape[1]
    for index, item in enumerate(items):
        if item.signal.shape[1] != length:
            raise InputError(
                f"window {index} has {item.signal.shape[1]} samples, window 0 {length}: send them apart", param="input"
            )
    most = max(len(item.signal) for item in items)
    batch = {
        name: torch.stack([_padded(getattr(item, name), most) for item in items]) for name in SignalInput.__slots__
    }
    counts = torch.tensor([len(item.signal) for item in items])
    if int(counts.min()) < most:
        batch["channel_mask"] = torch.arange(most) < counts[:, None]
    return batch


def signal_inputs(batch: Mapping[str, torch.Tensor]) -> list[SignalInput]:
    """What `signal_batch` was made of. Raises InputError for tensors that are no such batch."""
    missing = [name for name in SignalInput.__slots__ if name not in batch]
    if missing:
        raise InputError(f"windows of recordings have {', '.join(SignalInput.__slots__)}: {missing[0]!r} is not there")
    signal, positions, lobes = (batch[name] for name in SignalInput.__slots__)
    mask = batch.get("channel_mask", torch.ones(signal.shape[:2], dtype=torch.bool))
    for name, tensor, rank in (("positions", positions, 3), ("lobes", lobes, 3), ("channel_mask", mask, 2)):
        if signal.dim() != 3 or tensor.dim() != rank or tensor.shape[:2] != signal.shape[:2]:
            raise InputError(f"{name!r} {list(tensor.shape)} does not fit a 'signal' of {list(signal.shape)}")
    if not bool(torch.isfinite(signal.float()).all() and torch.isfinite(positions.float()).all()):
        raise InputError("windows contain NaN or infinity")
    rows = zip(signal.float(), positions.float(), lobes.bool(), mask.bool(), strict=True)
    return [SignalInput(one[own], where[own], lobe[own]) for one, where, lobe, own in rows]


def _padded(rows: torch.Tensor, most: int) -> torch.Tensor:
    return torch.cat((rows, rows.new_zeros(most - len(rows), *rows.shape[1:])))
