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
from patchbay.execute.break_even import COUNTS, merged_from
from patchbay.execute.kernels import Kernel, parts_of
from patchbay.execute.kernels.packed import Packed
from patchbay.execute.work import Places, Products, Rows, Table, Work, stacked

_RUNNING: ContextVar[Batch | None] = ContextVar("batch", default=None)


@dataclass(frozen=True)
class Segment:
    """`rows` of the batch run under `plan`, or under the base where it is None."""

    rows: tuple[int, ...]
    plan: ActivePlan | None


# A kernel with the numbers of the segments that use it, and their coefficients.
_Used = tuple[Kernel, Sequence[tuple[int, torch.Tensor]]]


@dataclass(frozen=True)
class Batch:
    """Segments that cover rows 0 to B - 1, each once. What tensors need is worked out when they first ask: a batch that
    runs again (the next token) has it ready.
    """

    segments: tuple[Segment, ...]
    device: torch.device
    _work: dict[str, Work | None] = field(default_factory=dict)
    _values: dict[str, torch.Tensor | None] = field(default_factory=dict)
    _places: dict[tuple[tuple[int, ...], ...], Places] = field(default_factory=dict)
    _rests: dict[tuple[int, ...], tuple[Rows, Batch] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, plans: Sequence[ActivePlan | None], device: torch.device) -> Batch:
        """Of rows by their plans, None for the base: those with the same plan are one segment."""
        rows: dict[int, tuple[ActivePlan | None, list[int]]] = {}
        for row, plan in enumerate(plans):
            rows.setdefault(id(plan), (plan, []))[1].append(row)
        return cls(tuple(Segment(tuple(found), plan) for plan, found in rows.values()), device)

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

    def long(self, name: str, x: torch.Tensor) -> list[Segment]:
        """Those that change a matrix and have so many of its inputs x that it is merged for them."""
        tokens = x.shape[:-1].numel() // self.num_rows
        if tokens * self.num_rows < COUNTS[0]:
            return []
        least = merged_from(self.device)
        return [s for s in self.segments if s.plan and len(s.rows) * tokens >= least and s.plan.changes(name)]

    def without(self, segments: Sequence[Segment]) -> tuple[Rows, Batch] | None:
        """The rows of all other segments, and the batch that they are by themselves; None where there are none."""
        gone = {row for segment in segments for row in segment.rows}
        key = tuple(sorted(gone))
        if key not in self._rests:
            rows = [row for row in range(self.num_rows) if row not in gone]
            plans = {row: segment.plan for segment in self.segments for row in segment.rows}
            rest = Batch.of([plans[row] for row in rows], self.device)
            self._rests[key] = (self.place(rows), rest) if rows else None
        return self._rests[key]

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
        used: dict[int, tuple[Kernel, list[tuple[int, torch.Tensor]]]] = {}
        scales: list[torch.Tensor | None] = [None] * len(self.segments)
        for number, segment in enumerate(self.segments):
            if segment.plan is None:
                continue
            for delta, coefficients in segment.plan.terms(name):
                used.setdefault(id(delta), (delta.kernels[name], []))[1].append((number, coefficients))
            scales[number] = segment.plan.base_scale(name)
        parts = [(part, found) for kernel, found in used.values() for part in parts_of(kernel)]
        packed = [part for part in parts if isinstance(part[0], Packed)]
        others = [part for part in parts if not isinstance(part[0], Packed)]
        return Work(self._scale(scales), tuple(self._products(group) for group in (packed, others) if group))

    def _products(self, used: Sequence[_Used]) -> Products:
        places = self._find_places(tuple(tuple(number for number, _ in found) for _, found in used))
        coefficients = [each for _, found in used for _, each in found]
        return Products.of([kernel for kernel, _ in used], places, coefficients, self.num_rows)

    def _scale(self, scales: Sequence[torch.Tensor | None]) -> Table | None:
        if all(scale is None for scale in scales):
            return None
        one = torch.ones(1, device=self.device)
        order = [0] * self.num_rows
        for number, segment in enumerate(self.segments):
            for row in segment.rows:
                order[row] = number
        return Table(stacked([one if scale is None else scale for scale in scales]), self._index(order))

    def _find_places(self, segments: tuple[tuple[int, ...], ...]) -> Places:
        """`segments`: for each delta the numbers of those that use it: most matrices have the same."""
        if segments not in self._places:
            rows = [[row for number in numbers for row in self.segments[number].rows] for numbers in segments]
            sizes = [len(self.segments[number].rows) for numbers in segments for number in numbers]
            pairs = [pair for pair, size in enumerate(sizes) for _ in range(size)]
            self._places[segments] = Places(
                tuple(map(self.place, rows)),
                tuple(map(len, rows)),
                self._index([row for found in rows for row in found]),
                None if len(sizes) == len(pairs) else self._index(pairs),
            )
        return self._places[segments]

    def place(self, rows: Sequence[int]) -> Rows:
        """A slice costs a fifth of an index, and a small product is not much longer than that."""
        first = rows[0]
        if list(rows) == list(range(first, first + len(rows))):
            return slice(first, first + len(rows))
        return self._index(rows)

    def _index(self, rows: Sequence[int]) -> torch.Tensor:
        return torch.tensor(rows, device=self.device)


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
