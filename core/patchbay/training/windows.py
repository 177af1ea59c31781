"""Recordings in a folder as windows of a model, and batches of them. Knows nothing of models and of labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from patchbay.errors import InputError
from patchbay.models.neuript.preprocess import Windows, windows
from patchbay.models.neuript.steps import Steps
from patchbay.models.signals import signal_batch
from patchbay.training.channels import check_channels
from patchbay.training.files import load

Tensors = dict[str, torch.Tensor]
OnFile = Callable[[Path, int, int], None]
OnLeftOut = Callable[[Path, str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """The windows of one recording, in order of time."""

    path: Path
    windows: Windows

    def take(self, numbers: Sequence[int]) -> Source:
        """The windows with these numbers; those of a range are not copied."""
        starts = tuple(self.windows.starts[number] for number in numbers)
        signal = self.windows.signal
        taken = signal[numbers.start : numbers.stop] if isinstance(numbers, range) else signal[list(numbers)]
        return Source(self.path, replace(self.windows, signal=taken, starts=starts))


def sources(
    paths: Sequence[Path],
    steps: Steps,
    on_file: OnFile = lambda *_: None,
    on_left_out: OnLeftOut = lambda *_: None,
) -> list[Source]:
    """`on_file(path, number, of)` before each, `on_left_out(path, why)` for one that is too short for a window. A
    source of which all windows were rejected has none.

    What cannot be read, or lacks one of the channels that were asked for, raises InputError, which names the file.
    """
    found = []
    for number, path in enumerate(paths):
        on_file(path, number, len(paths))
        recording = load(path).recording
        if recording.seconds < steps.window_seconds:
            on_left_out(path, shorter(recording.seconds, steps))
            continue
        try:
            check_channels(recording.names, steps.channels)
            found.append(Source(path, windows(recording, steps)))
        except InputError as error:
            raise InputError(f"{path}: {error.message}", param=error.param) from error
    return found


def shorter(seconds: float, steps: Steps) -> str:
    return f"its {seconds:g} s are shorter than a window of {steps.window_seconds:g}"


def split(found: Sequence[Source], share: float) -> tuple[list[Source], list[Source]]:
    """The last `share` of each recording's windows, rounded down, is the second part: never windows drawn from between
    others, which are next to the same.
    """
    first, second = [], []
    for source in found:
        count = len(source.windows.signal)
        cut = count - int(count * share)
        first.append(source.take(range(cut)))
        second.append(source.take(range(cut, count)))
    return first, [source for source in second if len(source.windows.signal)]


def rows_of(batch: Tensors, part: slice) -> Tensors:
    return {name: tensor[part] for name, tensor in batch.items()}


class Batches:
    """All windows of some recordings, by number; those with fewer channels are padded, and say so."""

    def __init__(self, found: Sequence[Source]) -> None:
        self._inputs = [item for source in found for item in source.windows.inputs]

    def __len__(self) -> int:
        return len(self._inputs)

    @property
    def largest(self) -> tuple[int, int]:
        """The most channels, and the samples of a window; none of both where there is no window."""
        shapes = [tuple(item.signal.shape) for item in self._inputs]
        return (max(channels for channels, _ in shapes), shapes[0][1]) if shapes else (0, 0)

    def apart(self, most: int) -> list[int]:
        """Numbers of at most so many windows, as far apart as can be."""
        count = min(most, len(self))
        return [round(number * len(self) / count) for number in range(count)]

    def of(self, numbers: Sequence[int]) -> Tensors:
        """`signal` [B, D, T], `positions`, `lobes` and, where channels differ in number, `channel_mask`."""
        return signal_batch([self._inputs[number] for number in numbers])

    def epoch(self, size: int, seed: int) -> Iterator[list[int]]:
        """Every window once, in an order that the seed says; a last batch that would be smaller is left out."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        for first in range(0, len(order) - size + 1, size):
            yield order[first : first + size]
