"""Stretches in which a channel records nothing: an electrode that is off, an amplifier at its limit, a file filled up.

Looked for before filters, which make decaying waves of them. Knows nothing of references and of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter1d, minimum_filter1d  # type: ignore[import-untyped]

from patchbay.models.neuript.recording import DEAD_UV, Signal, listed

Mask = npt.NDArray[np.bool_]
Reason = tuple[str, tuple[str, ...]]  # and by which channels
SECONDS = 1.0  # in which no channel of EEG keeps within DEAD_UV
NOTHING, STILL = "nothing is recorded for a second", "a channel is flat for a second"


@dataclass(frozen=True, slots=True)
class Rests:
    """`still` [channels, begins]: whether a channel keeps within DEAD_UV for `size` samples from there on."""

    still: Mask
    names: tuple[str, ...]
    rate: float
    size: int

    @classmethod
    def of(cls, signal: Signal, names: Sequence[str], rate: float, window_seconds: float) -> Self:
        """Of a signal in microvolts. Stretches are a second long or, where windows are shorter, a window."""
        size = max(1, min(round(min(SECONDS, window_seconds) * rate), signal.shape[1]))
        # These filters look at the samples around: what begins at t has its middle size // 2 later.
        begins = slice(size // 2, size // 2 + signal.shape[1] - size + 1)
        ranges = [maximum_filter1d(row, size)[begins] - minimum_filter1d(row, size)[begins] for row in signal]
        return cls(np.stack(ranges) < DEAD_UV, tuple(names), rate, size)

    def of_channels(self, names: Sequence[str]) -> Rests:
        """Of those alone."""
        rows = [self.names.index(name) for name in names]
        return Rests(self.still[rows], tuple(names), self.rate, self.size)

    @property
    def moving(self) -> Mask:
        """[samples]: those that are in no stretch in which all channels are still; all where there would be none."""
        edges = np.zeros(self.still.shape[1] + self.size, np.int64)
        begins = np.flatnonzero(self.still.all(0))
        edges[begins] += 1
        edges[begins + self.size] -= 1
        found: Mask = edges.cumsum()[:-1] == 0
        return found if found.any() else ~found

    def reasons(
        self, starts: Sequence[float], seconds: float, *, rejects: bool
    ) -> tuple[list[Reason | None], list[str]]:
        """For each window that begins at one of `starts`, in seconds, why it is none to read, and sentences on those
        that are read all the same. One in which all channels are still at once is never read.
        """
        span = max(1, round(seconds * self.rate) - self.size + 1)
        firsts = [min(round(start * self.rate), self.still.shape[1] - 1) for start in starts]
        found: list[Reason | None] = []
        read = dict.fromkeys(self.names, 0)
        for first in firsts:
            piece = self.still[:, first : first + span]
            names = tuple(self.names[row] for row in np.flatnonzero(piece.any(1)).tolist())
            nothing = bool(piece.all(0).any())
            found.append((NOTHING, ()) if nothing else (STILL, names) if names and rejects else None)
            for name in names if found[-1] is None else ():
                read[name] += 1
        return found, _sentences(read, len(firsts))


def _sentences(read: dict[str, int], total: int) -> list[str]:
    flat = [f"{name} in {count}" for name, count in read.items() if count]
    return [f"flat for a second or more, of {total} windows, and read all the same: {listed(flat)}"] if flat else []
