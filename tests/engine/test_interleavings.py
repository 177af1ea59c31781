"""However requests arrive, wait, share memory and leave: what anybody is told is what a merged copy answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import pico
from tests.engine.mixed import GREEDY, INTERLEAVED, LONG, RECIPES, Asked, Mixed, mixed, mixed_causal

from patchbay.engine.prefix import BLOCK
from patchbay.engine.recipes import Path as How
from patchbay.engine.scheduler import Limits
from patchbay.errors import Cancelled, QueueFull

Folder = Callable[..., Path]
LONGEST = BLOCK + 28  # tokens of a prompt: a block of it may be known already
# Texts begin alike, so that prefixes are found; under another recipe they must not be.
TEXT = tuple(torch.randint(4, pico.VOCAB, (LONGEST,), generator=torch.Generator().manual_seed(0)).tolist())
MAX_TOKENS = 12


@dataclass(frozen=True)
class Arrival:
    """A request that comes before the `step`-th step, and is given up `patience` steps later where that is a number."""

    step: int
    recipe: str | None
    path: How | None
    length: int
    ending: tuple[int, ...]
    max_tokens: int
    patience: int | None

    @property
    def prompt(self) -> tuple[int, ...]:
        return TEXT[: self.length] + self.ending


ARRIVALS = st.builds(
    Arrival,
    step=st.integers(0, 25),
    recipe=st.sampled_from(RECIPES),
    path=st.sampled_from([None, None, None, How.PATCHED]),
    length=st.integers(0, LONGEST),
    ending=st.lists(st.integers(4, pico.VOCAB - 1), min_size=1, max_size=3).map(tuple),
    max_tokens=st.integers(0, MAX_TOKENS),
    patience=st.sampled_from([None, None, None, 0, 1, 5, 15]),
)
LIMITS = st.builds(
    Limits, max_running=st.integers(1, 8), max_step=st.integers(1, 80), max_waiting=st.sampled_from([3, 1000])
)


@pytest.fixture(scope="module", params=["llama", *(["gpt2", "qwen2"] if LONG else [])])
def model(
    request: pytest.FixtureRequest,
    model_folder: Folder,
    finetune_folder: Folder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mixed]:
    folder = tmp_path_factory.mktemp("deltas")
    if request.param == "qwen2":
        with mixed_causal("qwen2", folder) as found:
            yield found
    else:
        with mixed(request.param, model_folder, finetune_folder, folder) as found:
            yield found


@INTERLEAVED
@given(
    arrivals=st.lists(ARRIVALS, min_size=1, max_size=12),
    limits=LIMITS,
    kv_tokens=st.integers(LONGEST + 3 + MAX_TOKENS, 600),
    blocks=st.integers(0, 6),
)
def test_every_interleaving_is_token_exact(
    model: Mixed, arrivals: Sequence[Arrival], limits: Limits, kv_tokens: int, blocks: int
) -> None:
    own = model.within(limits, kv_tokens, blocks)
    for arrival, asked in play(own, arrivals):
        check(own, arrival, asked)
    scheduler = own.generator.scheduler
    assert not scheduler.running and not scheduler.waiting
    assert own.engine.verify().ok


def play(model: Mixed, arrivals: Sequence[Arrival]) -> list[tuple[Arrival, Asked]]:
    """Steps until all are over; those that the queue had no room for are left out."""
    asked: list[tuple[Arrival, Asked]] = []
    busy, step = True, 0
    while busy or step <= max(arrival.step for arrival in arrivals):
        for arrival in arrivals:
            if arrival.step == step:
                params = replace(GREEDY, max_tokens=arrival.max_tokens)
                try:
                    asked.append((arrival, model.add(arrival.recipe, arrival.prompt, params, path=path_of(arrival))))
                except QueueFull:
                    assert len(model.generator.scheduler.waiting) == model.generator.scheduler.limits.max_waiting
        for arrival, each in asked:
            if arrival.patience is not None and step == arrival.step + arrival.patience:
                model.generator.cancel(each.sequences)
        busy, step = model.generator.step(), step + 1
        assert step < 2000, "somebody waits for ever"
    return asked


def path_of(arrival: Arrival) -> How | None:
    return arrival.path if arrival.recipe else None


def check(model: Mixed, arrival: Arrival, asked: Asked) -> None:
    """Those who gave up were told nothing wrong before it."""
    if asked.error is None:
        assert asked.answer.finish_reason == "length" and len(asked.answer.tokens) == arrival.max_tokens
    else:
        assert isinstance(asked.error, Cancelled) and arrival.patience is not None
    if asked.answer.tokens:
        model.check(arrival.recipe, arrival.prompt, asked.answer.tokens)
