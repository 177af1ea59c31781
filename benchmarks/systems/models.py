"""What is served: a base, and files with deltas of it. Knows nothing of systems and of time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.results import Line
from benchmarks.systems.shapes import draw_delta
from patchbay.backbone import Backbone


@dataclass(frozen=True, slots=True)
class Size:
    """How large deltas are: drawn ones keep a `share` of the entries, which with `signs` have one size; of trained
    ones it is the bits a parameter.
    """

    share: float
    signs: bool = False


class Model(Protocol):
    """Deltas are numbered from 0 on."""

    @property
    def base(self) -> Path:
        """The folder with the checkpoint."""
        ...

    def load(self) -> Backbone:
        """The base, anew."""
        ...

    def delta_files(self, count: int, size: Size) -> list[Path]:
        """Made now unless they were before."""
        ...

    def quality(self, count: int, size: Size) -> Line:
        """What a system's answers are worth, as fields of a line; nothing where weights are random."""
        ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """Random weights, and random entries as deltas, kept in a folder beside them."""

    base: Path

    def load(self) -> Backbone:
        return Backbone.load(self.base)

    def delta_files(self, count: int, size: Size) -> list[Path]:
        kind = f"{size.share:g}{'-signs' if size.signs else ''}"
        folder = self.base.with_name(f"{self.base.name}-deltas")
        files = [folder / f"{kind}-{number}.safetensors" for number in range(count)]
        missing = [number for number, file in enumerate(files) if not file.is_file()]
        backbone = self.load() if missing else None
        for number in missing:
            assert backbone is not None
            draw_delta(files[number], backbone, size.share, number, signs=size.signs)
        return files

    def quality(self, count: int, size: Size) -> Line:
        return {}
