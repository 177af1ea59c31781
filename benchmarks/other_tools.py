"""What other tools make of the same fine-tunes, as jobs: their merges are scored as ours are.

Knows nothing of which tools there are and of how one is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from benchmarks.families.base import Family, OnProgress
from benchmarks.merges import Member, dense
from benchmarks.merging import ALL, given, measured
from benchmarks.results import Line

Params = Mapping[str, float | bool]


class Missing(Exception):
    """A tool that cannot be run here. The message says how to get it."""


class Refused(Exception):
    """A merge that the tool does not make. The message is the tool's own."""


@dataclass(frozen=True)
class Made:
    """fp32 differences from the base by the base's names: one mapping for all tasks, or one for each.

    `path` is what the tool made, which takes `num_bytes`; `seconds` is how long that took it.
    """

    differences: Sequence[Mapping[str, torch.Tensor]]
    path: str
    seconds: float
    num_bytes: int


class Tool(Protocol):
    """Implementations are small frozen dataclasses: they travel between processes."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def source(self) -> str:
        """What it merges, as the report's tables say it."""
        ...

    @property
    def methods(self) -> Mapping[str, Params]:
        """The methods to try, each with what is set beside weights of 1."""
        ...

    def merge(self, members: tuple[Member, ...], method: str) -> Made:
        """Raises Refused."""
        ...


@dataclass(frozen=True, slots=True)
class OtherMerge:
    """One tool's merge of all fine-tunes, asked for every task."""

    family: Family
    tool: Tool
    method: str
    members: tuple[Member, ...]
    rows: int

    @property
    def title(self) -> str:
        return f"{ALL} {self.tool.source} {self.method}"

    def question(self) -> Line:
        params = {**self.tool.methods[self.method], self.tool.name: self.tool.version}
        return given(self.family, self.members, self.members, self.members) | {
            "part": ALL,
            "tool": self.tool.name,
            "source": self.tool.source,
            "method": self.method,
            "params": repr(sorted(params.items())),
            "tuned": False,
            "rows": self.rows,
            "inputs": None,
        }

    def run(self, on_progress: OnProgress) -> Line:
        try:
            made = self.tool.merge(self.members, self.method)
        except Refused as reason:
            return self.question() | {"refused": str(reason)}
        found = measured(self.family, dense(self.members, made.differences, made.path), 1.0, self.members)
        costs: Line = {"build_seconds": made.seconds, "bytes": made.num_bytes, "divergence": None, "tried": []}
        return self.question() | found | costs
