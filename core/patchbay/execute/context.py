"""Which rows of the running batch belong to which plan, and what that means for one tensor of the model.

A batch has B rows (sequences, images); every layer's input has them in front, alone or times some number of tokens.
Knows nothing of layers and of who made the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property

import torch

from patchbay.errors import PatchInProgress
from patchbay.execute.active import ActivePlan
from patchbay.execute.kernels import Kernel

Rows = slice | torch.Tensor
_RUNNING: ContextVar[Batch | None] = ContextVar("batch", default=None)


@dataclass(frozen=True)
class Segment:
    """`rows` of the batch run under `plan`, or under the base where it is None."""

    rows: tuple[int, ...]
    plan: ActivePlan | None


@dataclass(frozen=True, slots=True)
class Work:
    """What one matrix costs a batch: `scale` [B, out] or [B, 1] of the base's product; for each delta the batch's rows
    that use it; and of all these, one delta after the other, the row [N] and its coefficients [N, out] or [N, 1].
    """

    scale: torch.Tensor | None
    terms: tuple[tuple[Kernel, Rows], ...]
    rows: torch.Tensor
    coefficients: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Segments that cover rows 0 to B - 1, each once. What tensors need is worked out when they first ask: a batch that
    runs again (the next token) has it ready.
    """

    segments: tuple[Segment, ...]
    device: torch.device
    _work: dict[str, Work | None] = field(default_factory=dict)
    _values: dict[str, torch.Tensor | None] = field(default_factory=dict)

    @cached_property
    def num_rows(self) -> int:
        return sum(len(segment.rows) for segment in self.segments)

    def changes(self, name: str | None) -> bool:
        """Whether any row has another tensor than the base's."""
        return name is not None and any(s.plan is not None and s.plan.changes(name) for s in self.segments)

    def work(self, name: str) -> Work | None:
        """For a matrix; None where no row changes it."""
        if name not in self._work:
            self._work[name] = self._find_work(name) if self.changes(name) else None
        return self._work[name]

    def values(self, name: str | None, base: torch.Tensor) -> torch.Tensor | None:
        """For a tensor that is no matrix: every row's own, [B, *shape]; None where no row changes it."""
        if name is None:
            return None
        if name not in self._values:
            self._values[name] = self._find_values(name, base) if self.changes(name) else None
        return self._values[name]

    def narrowed(self, segment: Segment) -> Batch:
        """The batch that one segment's rows are by themselves."""
        alone = Segment(tuple(range(len(segment.rows))), segment.plan)
        return Batch((alone,), self.device)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """[B, tokens, width] of a layer's input or output, whichever way it has the rows in front.

        Raises ValueError where it has not: then nobody can tell which plan a row belongs to.
        """
        if x.shape[0] % self.num_rows or (x.dim() > 2 and x.shape[0] != self.num_rows):
            raise ValueError(f"a tensor of shape {list(x.shape)} in a batch of {self.num_rows} rows")
        return x.reshape(self.num_rows, -1, x.shape[-1])

    def _find_values(self, name: str, base: torch.Tensor) -> torch.Tensor:
        found = base.expand(self.num_rows, *base.shape).clone()
        for segment in self.segments:
            if segment.plan is not None and segment.plan.changes(name):
                found[list(segment.rows)] = segment.plan.merged(name)
        return found

    def _find_work(self, name: str) -> Work:
        used: dict[int, tuple[Kernel, list[int], list[torch.Tensor]]] = {}
        scales: dict[int, torch.Tensor] = {}
        for segment in self.segments:
            if segment.plan is None:
                continue
            for delta, coefficients in segment.plan.terms(name):
                entry = used.setdefault(id(delta), (delta.kernels[name], [], []))
                entry[1].extend(segment.rows)
                entry[2].extend([coefficients] * len(segment.rows))
            scale = segment.plan.base_scale(name)
            if scale is not None:
                scales |= dict.fromkeys(segment.rows, scale)
        one = torch.ones(1, device=self.device)
        return Work(
            scale=_stacked([scales.get(row, one) for row in range(self.num_rows)]) if scales else None,
            terms=tuple((kernel, self._place(rows)) for kernel, rows, _ in used.values()),
            rows=self._index([row for _, rows, _ in used.values() for row in rows]),
            coefficients=_stacked([each for _, _, found in used.values() for each in found]),
        )

    def _place(self, rows: Sequence[int]) -> Rows:
        """A slice costs a fifth of an index, and a small product is not much longer than that."""
        first = rows[0]
        if list(rows) == list(range(first, first + len(rows))):
            return slice(first, first + len(rows))
        return self._index(rows)

    def _index(self, rows: Sequence[int]) -> torch.Tensor:
        return torch.tensor(rows, device=self.device)


def _stacked(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """[rows, out], or [rows, 1] where all are single numbers."""
    widest = max((len(row) for row in rows), default=1)
    return torch.stack([row.expand(widest) for row in rows]) if rows else torch.empty(0, 1)


def running() -> Batch | None:
    """The batch whose forward runs in this thread."""
    return _RUNNING.get()


@contextmanager
def delta_context(batch: Batch) -> Iterator[None]:
    """Inside, every wrapped layer gives each row of the batch its plan's answer. Raises PatchInProgress when nested."""
    if _RUNNING.get() is not None:
        raise PatchInProgress("another batch runs in this thread; finish it first")
    with entered(batch):
        yield


@contextmanager
def entered(batch: Batch) -> Iterator[None]:
    """In place of the running batch, for a part of it."""
    token = _RUNNING.set(batch)
    try:
        yield
    finally:
        _RUNNING.reset(token)
