"""One compression: the task vector, what is prunable in it, and the judge that scores candidates, if there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from patchbay.compress.calibration import Judge
from patchbay.compress.parts import DensePart, LowRankPart, Part, Pruner, SparsePart, Vector
from patchbay.compress.record import Record
from patchbay.compress.search import Point
from patchbay.delta import Delta, Manifest

Parts = Mapping[str, Part]


@dataclass(frozen=True, slots=True)
class _Read(Mapping[str, torch.Tensor]):
    """Tensors that are read anew each time."""

    names: Mapping[str, None]
    read: Callable[[str], torch.Tensor]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Problem:
    """`manifest`, `whole` (norms, biases, tiny matrices) and the three behind it are what all candidates share."""

    vector: Vector
    manifest: Manifest
    whole: Mapping[str, torch.Tensor]
    added: Mapping[str, torch.Tensor]
    copied: Mapping[str, torch.Tensor]
    appended: Mapping[str, torch.Tensor]
    record: Record
    judge: Judge | None = None

    def candidate(self, parts: Parts) -> Delta:
        """The delta of these parts, before its values are encoded."""
        sparse = {name: part.rows for name, part in parts.items() if isinstance(part, SparsePart)}
        dense = {name: part.difference for name, part in parts.items() if isinstance(part, DensePart)}
        factored = {name: part.factors for name, part in parts.items() if isinstance(part, SparsePart | LowRankPart)}
        return Delta(
            self.manifest,
            sparse,
            {**self.whole, **dense},
            self.added,
            self.copied,
            {},
            appended=self.appended,
            factors={name: factors for name, factors in factored.items() if factors is not None},
        )

    def full(self) -> Delta:
        """The whole fine-tune. Its matrices are read when they are asked for: in memory they are a second model."""
        vectors = _Read({**dict.fromkeys(self.whole), **dict.fromkeys(self.vector.names)}, self._difference)
        return Delta(self.manifest, {}, vectors, self.added, self.copied, {}, appended=self.appended)

    def _difference(self, name: str) -> torch.Tensor:
        return self.whole[name] if name in self.whole else self.vector.read(name)

    def prune(self, pruner: Pruner) -> Parts:
        """All parts of a pruner, in memory."""
        return {name: pruner(name, self.vector.read(name)) for name in self.vector.names}

    def score(self, point: Point, parts: Callable[[], Parts]) -> float:
        """One evaluation of the judge, or a recorded one. Raises BudgetSpent."""
        judge = self.judge
        assert judge is not None, "a search is only started with calibration inputs"
        return self.record(point, lambda: judge.score(self.candidate(parts())))
