"""Recordings in a folder as windows of a model, and batches of them. Knows nothing of models and of labels."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from patchbay.errors import InputError
from patchbay.models.neuript import edf
from patchbay.models.neuript.preprocess import Steps, Windows, windows
from patchbay.models.neuript.recording import Recording

EDF_ENDINGS = (".edf", ".bdf")
ENDINGS = (*EDF_ENDINGS, ".npz")
FIELDS = ("signal", "rate", "names", "unit")
MAX_NPZ_BYTES = 8 << 30
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Source:
    """The windows of one recording, in order of time."""

    path: Path
    windows: Windows

    def part(self, first: int, last: int) -> Source:
        signal = self.windows.signal[first:last]
        return Source(self.path, replace(self.windows, signal=signal, starts=self.windows.starts[first:last]))


def files_in(folder: Path) -> list[Path]:
    """Every recording below the folder, by name. Raises InputError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        raise InputError(f"{folder} has no recording: {', '.join(ENDINGS)} are read", param="data")
    return found


def load(path: Path) -> Recording:
    """An EDF or BDF file; or an .npz with `signal` [channels, samples], `rate`, `names` and `unit`.

    Raises InputError, which names the file.
    """
    try:
        return edf.read(path).recording if path.suffix.lower() in EDF_ENDINGS else _from_npz(path)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", param=error.param) from error


def sources(
    paths: Sequence[Path], steps: Steps, on_file: Callable[[Path, int, int], None] = lambda *_: None
) -> list[Source]:
    """`on_file(path, number, of)` before each. What cannot be read raises InputError, which names the file.

    A recording too short for a window, or of which all are rejected, gives none.
    """
    found = []
    for number, path in enumerate(paths):
        on_file(path, number, len(paths))
        recording = load(path)
        if recording.seconds < steps.window_seconds:
            continue
        try:
            found.append(Source(path, windows(recording, steps)))
        except InputError as error:
            raise InputError(f"{path}: {error.message}", param=error.param) from error
    return [source for source in found if len(source.windows.signal)]


def split(found: Sequence[Source], share: float) -> tuple[list[Source], list[Source]]:
    """The last `share` of each recording's windows, rounded down, is the second part: never windows drawn from between
    others, which are next to the same.
    """
    first, second = [], []
    for source in found:
        count = len(source.windows.signal)
        cut = count - int(count * share)
        first.append(source.part(0, cut))
        second.append(source.part(cut, count))
    return first, [source for source in second if len(source.windows.signal)]


class Batches:
    """All windows of some recordings, by number; those with fewer channels are padded, and say so."""

    def __init__(self, found: Sequence[Source]) -> None:
        self._sources = list(found)
        self._places = [(source, row) for source in self._sources for row in range(len(source.windows.signal))]

    def __len__(self) -> int:
        return len(self._places)

    def of(self, numbers: Sequence[int]) -> Tensors:
        """`signal` [B, D, T], `positions`, `lobes` and, where channels differ in number, `channel_mask`."""
        places = [self._places[number] for number in numbers]
        most = max(source.windows.signal.shape[1] for source, _ in places)
        rows = [_padded(source.windows, row, most) for source, row in places]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        if bool(batch["channel_mask"].all()):
            del batch["channel_mask"]
        return batch

    def epoch(self, size: int, seed: int) -> Iterator[list[int]]:
        """Every window once, in an order that the seed says; a last batch that would be smaller is left out."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        for first in range(0, len(order) - size + 1, size):
            yield order[first : first + size]


def _padded(found: Windows, row: int, channels: int) -> Tensors:
    signal, montage = found.signal[row], found.montage
    missing = channels - len(signal)
    parts = {
        "signal": signal,
        "positions": montage.positions,
        "lobes": montage.lobes,
        "channel_mask": torch.ones(len(signal), dtype=torch.bool),
    }
    return {name: torch.cat((part, part.new_zeros(missing, *part.shape[1:]))) for name, part in parts.items()}


def _from_npz(path: Path) -> Recording:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_NPZ_BYTES:
                raise InputError(f"it holds more than {MAX_NPZ_BYTES:,} bytes", param="data")
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in FIELDS if name not in arrays]
            if missing:
                raise InputError(f"it has no {missing[0]!r}: signal, rate, names and unit are read", param="data")
            signal, rate, names, unit = (arrays[name] for name in FIELDS)
            return Recording(
                signal.astype(np.float64), float(rate), tuple(map(str, names.reshape(-1))), str(unit.reshape(-1)[0])
            )
    except InputError:
        raise
    except Exception as error:  # whatever an archive's bytes provoke in numpy
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"this is no .npz that can be read: {reason}", param="data") from error
