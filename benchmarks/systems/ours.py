"""Patchbay's engine, on one path or on the one that it takes by itself, and wrapped weights without any delta.

Knows nothing of what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.systems.base import Ask, Served, System, num_bytes
from benchmarks.systems.shapes import recipe
from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.engine import Budgets, Engine
from patchbay.engine.recipes import Path, Ready
from patchbay.engine.request import SamplingParams, Update


@dataclass(slots=True)
class _Noted:
    """A sink that notes when tokens came."""

    start: float
    served: Served
    is_over: bool = False

    def __call__(self, update: Update) -> None:
        now = time.perf_counter() - self.start
        self.served.times.extend([now] * len(update.tokens))
        self.served.tokens.extend(update.tokens)
        if update.error is not None:
            raise update.error
        self.is_over = update.is_last


class Ours(System):
    """`path`: how deltas run; None leaves it to the engine. Without `prefixes` it keeps nothing of a text for those
    that begin like it: in a benchmark the same prompts come again in every round.
    """

    def __init__(
        self, name: str, backbone: Backbone, deltas: Mapping[str, Delta], path: Path | None, *, prefixes: bool = True
    ) -> None:
        self.name = name
        budgets = Budgets() if prefixes else Budgets(prefixes=0)
        self.engine = Engine(backbone, deltas.__getitem__, budgets=budgets)
        self.path = path

    def serve(self, asks: Sequence[Ask]) -> list[Served]:
        language = self.engine.language
        ready = [self.ready(ask) for ask in asks]  # deltas are decoded and plans built before the clock starts
        start = time.perf_counter()
        noted = [_Noted(start, Served()) for _ in asks]
        for number in sorted(range(len(asks)), key=lambda number: asks[number].at):
            ask = asks[number]
            time.sleep(max(0.0, ask.at - (time.perf_counter() - start)))
            params = SamplingParams(max_tokens=ask.max_tokens, temperature=0, ignore_eos=True)
            language.submit(language.texts.requests(ready[number], [ask.prompt], params, noted[number]))
        while not all(one.is_over for one in noted):
            time.sleep(0.001)
        return [one.served for one in noted]

    def ready(self, ask: Ask) -> Ready:
        return self.engine.prepare(recipe(ask.terms), self.path if ask.terms else None)

    @property
    def resident_bytes(self) -> int:
        recipes = self.engine.recipes
        return num_bytes(self.engine.backbone.model) + recipes.deltas.num_bytes

    def close(self) -> None:
        self.engine.close()


class Baseline(Ours):
    """The same requests without their deltas: the ceiling."""

    def serve(self, asks: Sequence[Ask]) -> list[Served]:
        return super().serve([replace(ask, terms=()) for ask in asks])
