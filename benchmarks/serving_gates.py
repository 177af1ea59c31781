"""What has to hold before a number is worth printing: all systems answer the same, and weights are what they were.

Knows nothing of time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.systems.base import Ask, Served, Terms
from benchmarks.systems.copies import Replicas
from benchmarks.systems.ours import Ours
from benchmarks.systems.shapes import draw_delta, opened
from benchmarks.workload import Work, plain, sums
from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.engine import Engine
from patchbay.engine.recipes import Path as How

SAME = ("automatic", "decoupled", "patched", "replicas", "swap")  # the same deltas, in other ways
LOUD = 0.3  # spread of these deltas' entries: every recipe has another answer
SHARED = 96  # tokens that all prompts of the prefix gate begin with


class GateFailed(Exception):
    """A system gives other answers than it has to."""


def exact(folder: Path) -> None:
    """In fp32: mixed batches, patched turns and whole models give the same tokens, alone or beside others, and texts
    that begin alike under other recipes share nothing. Raises GateFailed.
    """
    deltas = _loud(Backbone.load(folder))
    variants: list[Terms] = [(), *plain([0, 1, 2]), *sums(4, 4)]
    shared = tuple(range(100, 100 + SHARED))
    asks = [Ask((*shared, 7 * number + 5), 8, terms) for number, terms in enumerate(variants)]
    expected = [served.tokens for served in Replicas(Backbone.load(folder), deltas, variants).serve(asks)]
    if len(set(map(tuple, expected))) < len(expected):
        raise GateFailed("two recipes have the same answer: nothing would be seen")
    for path in (None, How.DECOUPLED, How.PATCHED):
        name = path or "automatic"
        ours = Ours(name, Backbone.load(folder), deltas, path)
        try:
            _same(f"{name}, all at once", [served.tokens for served in ours.serve(asks)], expected)
            # Again, when every text's beginning is known under its recipe, and one by one.
            _same(f"{name}, again", [served.tokens for served in ours.serve(asks)], expected)
            _same(f"{name}, alone", [ours.serve([ask])[0].tokens for ask in asks], expected)
            check_base(ours.engine)
        finally:
            ours.close()


def _loud(backbone: Backbone) -> dict[str, Delta]:
    with tempfile.TemporaryDirectory() as folder:
        files = [draw_delta(Path(folder) / f"{n}.safetensors", backbone, 0.05, n, spread=LOUD) for n in range(4)]
        return {str(number): opened(file, backbone) for number, file in enumerate(files)}


def check_tokens(work: Work, served: Mapping[str, Sequence[Served]], dtype: torch.dtype) -> None:
    """Every answer is as long as it was asked for; in fp32 those of the same deltas are the same. Raises GateFailed.

    In bf16 a patch rounds what the other way does not, so texts part sooner or later: the gate is passed in fp32.
    """
    for name, answers in served.items():
        for ask, answer in zip(work.asks, answers, strict=True):
            if len(answer.tokens) != ask.max_tokens or len(answer.times) != ask.max_tokens:
                raise GateFailed(f"{work.name}: {name} gave {len(answer.tokens)} tokens of {ask.max_tokens}")
    alike = [name for name in SAME if name in served]
    for name in alike[1:] if dtype == torch.float32 else ():
        expected = [answer.tokens for answer in served[alike[0]]]
        _same(f"{work.name}: {name} and {alike[0]}", [answer.tokens for answer in served[name]], expected)


def check_base(engine: Engine) -> None:
    """The resident weights are bit for bit those that were loaded. Raises GateFailed."""
    if not engine.verify().ok:
        raise GateFailed("the resident weights have changed")


def _same(what: str, found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> None:
    wrong = [number for number, pair in enumerate(zip(found, expected, strict=True)) if list(pair[0]) != list(pair[1])]
    if wrong:
        raise GateFailed(f"{what}: answers {wrong} are not those of whole models")
