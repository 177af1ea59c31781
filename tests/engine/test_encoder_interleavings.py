"""However requests to an encoder arrive, share passes and fail: what anybody is told is what a merged copy answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import pico
from tests.engine.encoding import Encoding, encoding, held, inputs_for, recipe
from tests.engine.mixed import INTERLEAVED
from torch import nn

from patchbay.engine.recipes import Path as How
from patchbay.engine.recipes import Ready, Recipes
from patchbay.errors import NonFiniteValue
from patchbay.execute.patch import Patcher
from patchbay.models.classifier import Logits
from patchbay.models.embedding import UnitVectors, embedded
from patchbay.models.heads import delta_head
from patchbay.models.inputs import Batch, Inputs
from patchbay.models.outputs import check_finite
from patchbay.models.replay import Readout, encoder_of

Folder = Callable[..., Path]
HEADS = {"two": ("x", "y"), "four": ("n", "e", "s", "w")}  # of deltas of a plain encoder
HUGE = "huge"  # a delta whose answers are not finite
BAD = 10**6  # a token, or a pixel, that the model refuses
RECIPES = (
    (None, None),
    ("math", None),
    ("0.5*code", None),
    ("0.6*math + 0.4*law", None),
    ("math - 0.5*code + 0.3*law", None),
    ("neuromerging(math, code, law)", None),
    ("ties(math, code; density=0.4)", None),
    (HUGE, None),
)
HEADED = (("two", "two"), ("four", "four"), ("two + four", "four"), ("0.5*two + 0.7*math", "two"), ("two", None))
MARGIN = 1e-4  # of the likeliest label over the next: below it rounding may decide


class Refused(Exception):
    """What the model raises on an input with `BAD`."""


class Stopped(BaseException):
    """What ends a thread wherever it is."""


@dataclass(frozen=True)
class Arrival:
    """A request that comes when the `step`-th pass is about to run, or when nobody else is left. `choice`: of the
    model's recipes.
    """

    step: int
    choice: int
    path: How | None
    count: int
    longest: int
    seed: int
    is_bad: bool


ARRIVALS = st.builds(
    Arrival,
    step=st.integers(0, 6),
    choice=st.integers(0, len(RECIPES) * len(HEADED) - 1),
    path=st.sampled_from([None, None, None, None, How.PATCHED]),
    count=st.sampled_from([1, 1, 2, 3]),
    longest=st.sampled_from([1, 3, 15, 16, 17, 40, 128]),
    seed=st.integers(0, 3),
    is_bad=st.sampled_from([False] * 9 + [True]),
)


class Model:
    """An encoder with deltas, and what a merged copy of it answers. No dataclass: a failing example would show all
    weights.
    """

    def __init__(self, kind: str, encoding: Encoding, recipes: Sequence[tuple[str | None, str | None]]) -> None:
        self.kind, self.encoding, self.recipes = kind, encoding, recipes
        self._merged: dict[str, Any] = {}
        self._expected: dict[tuple[object, ...], torch.Tensor] = {}

    def recipe(self, arrival: Arrival) -> tuple[str | None, str | None]:
        return self.recipes[arrival.choice % len(self.recipes)]

    def batch(self, arrival: Arrival) -> Batch:
        inputs = inputs_for(self.kind, arrival.count, arrival.seed, arrival.longest + 1)
        batch = Inputs(self.encoding.reference).batch(inputs)
        if arrival.is_bad:
            next(iter(batch.values())).view(arrival.count, -1)[-1, 0] = BAD
        return batch

    def prepare(self, arrival: Arrival) -> Ready:
        text, _ = self.recipe(arrival)
        return self.encoding.ready(text, arrival.path if text else None)

    def answer(self, arrival: Arrival, ready: Ready) -> torch.Tensor:
        """Logits, or unit vectors. Raises NonFiniteValue."""
        engine, (_, head) = self.encoding.engine, self.recipe(arrival)
        batch = self.batch(arrival)
        if engine.backbone.labels is None and head is None:
            return embedded(engine.encoders.run(UnitVectors(engine.backbone.model), ready, batch), batch).vectors
        answering = engine._head(ready.deltas, {name: name for name in ready.deltas}, head)
        found = engine.encoders.run(Logits(answering.model), ready, batch)
        check_finite(bool(torch.isfinite(found).all()))
        return found

    def expected(self, arrival: Arrival) -> torch.Tensor:
        key = (self.recipe(arrival), arrival.count, arrival.longest, arrival.seed)
        if key not in self._expected:
            self._expected[key] = self._read(arrival)
        return self._expected[key]

    @torch.inference_mode()
    def _read(self, arrival: Arrival) -> torch.Tensor:
        copy, (text, head) = self.encoding.reference, self.recipe(arrival)
        readout: Readout = Logits(copy.model)
        if copy.labels is None:
            readout = Logits(delta_head(copy, self.encoding.deltas[head]).model) if head else UnitVectors(copy.model)
        with self._patched(text) if text else nullcontext():
            return readout.whole(self.batch(arrival))

    def _patched(self, text: str) -> Any:
        merged = self._merged.setdefault(text, self.encoding.ready(text).merged)
        terms = [self.encoding.deltas[name] for name, _ in recipe(text).terms]  # type: ignore[union-attr]
        return Patcher(self.encoding.reference).patched(merged.plan, merged.deltas(terms))


class Play:
    """Runs a schedule: each of `arrivals` in a thread of its own, one after the other; whoever leads one of the passes
    in `stops` ends there. `found`: what each was told, or raised.
    """

    def __init__(self, model: Model, arrivals: Sequence[Arrival], stops: frozenset[int]) -> None:
        self.model, self.arrivals, self.stops = model, arrivals, stops
        self.found: dict[int, object] = {}
        self.num_stopped = 0
        self._step = 0
        self._threads: dict[int, Thread] = {}
        self._ready: dict[int, Ready] = {}

    def run(self) -> None:
        engine = self.model.encoding.engine
        encoder = encoder_of(engine.backbone.model) or engine.backbone.model
        handle = encoder.register_forward_pre_hook(self._before_pass, with_kwargs=True)
        try:
            while len(self._threads) < len(self.arrivals):
                left = [each.step for number, each in enumerate(self.arrivals) if number not in self._threads]
                self._step = max(self._step, min(left))
                with held(engine):
                    self._arrive()
                self._join()
        finally:
            handle.remove()

    def _join(self) -> None:
        while alive := [thread for thread in list(self._threads.values()) if thread.is_alive()]:
            alive[0].join()

    def _before_pass(self, _: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """In the thread that leads."""
        self._step += 1
        self._arrive()
        if self._step in self.stops:
            self.num_stopped += 1
            raise Stopped
        if any(isinstance(value, torch.Tensor) and bool((value == BAD).any()) for value in (*args, *kwargs.values())):
            raise Refused

    def _arrive(self) -> None:
        for number, arrival in enumerate(self.arrivals):
            if number not in self._threads and arrival.step <= self._step:
                thread = self._threads[number] = Thread(target=self._ask, args=(number,))
                thread.start()
                self._wait(number)

    def _wait(self, number: int) -> None:
        """Until a request waits for a pass, or is over."""
        encoders = self.model.encoding.engine.encoders
        for _ in range(100_000):
            waiting = {id(job.ready) for job in list(encoders._waiting)}
            if number in self.found or (number in self._ready and id(self._ready[number]) in waiting):
                return
            time.sleep(0.0002)
        raise AssertionError("somebody waits for ever")

    def _ask(self, number: int) -> None:
        try:
            self._ready[number] = self.model.prepare(self.arrivals[number])
            self.found[number] = self.model.answer(self.arrivals[number], self._ready[number])
        except BaseException as error:
            self.found[number] = error


@pytest.fixture(scope="module", params=["bert_classifier", "bert_encoder", "vit"])
def model(
    request: pytest.FixtureRequest,
    model_folder: Folder,
    finetune_folder: Folder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Model]:
    kind, folder = request.param, tmp_path_factory.mktemp("deltas")
    found = encoding(kind, model_folder, finetune_folder, folder)
    base, huge = model_folder(kind), finetune_folder(kind, 9, 1e25)
    found.deltas[HUGE] = pico.delta(base, huge, folder / HUGE, density=0.3)
    if kind == "bert_encoder":
        for seed, (name, labels) in enumerate(HEADS.items(), 3):
            tuned = pico.perturb(model_folder("bert_classifier", labels=labels), folder / f"{name}-tuned", seed, 0.05)
            found.deltas[name] = pico.delta(base, tuned, folder / name, density=0.3)
    model = Model(kind, found, (*RECIPES, *HEADED) if kind == "bert_encoder" else RECIPES)
    for choice in range(len(model.recipes)):  # each class of models is tried now, in passes that are nobody's
        arrival = Arrival(0, choice, None, 1, 3, 0, False)
        if model.recipe(arrival)[0] != HUGE:
            model.answer(arrival, model.prepare(arrival))
    yield model


@INTERLEAVED
@given(
    arrivals=st.lists(ARRIVALS, min_size=1, max_size=12),
    stops=st.sampled_from([(), (), (2,), (1, 4)]).map(frozenset),
    kept=st.tuples(st.sampled_from([0, 1 << 17, 1 << 30]), st.sampled_from([0, 1 << 16, 1 << 30])),
)
def test_every_interleaving_is_a_merged_copys(
    model: Model, arrivals: Sequence[Arrival], stops: frozenset[int], kept: tuple[int, int]
) -> None:
    engine = model.encoding.engine
    load = model.encoding.deltas.__getitem__
    heavy = engine.recipes.break_even_bytes
    engine.recipes = Recipes(
        engine.backbone, load, engine.proof, delta_bytes=kept[0], plan_bytes=kept[1], break_even_bytes=heavy, max_wait=0
    )
    play = Play(model, arrivals, stops)
    play.run()
    stopped = [number for number, found in play.found.items() if isinstance(found, Stopped)]
    assert len(stopped) == play.num_stopped
    for number, arrival in enumerate(arrivals):
        if number not in stopped:
            check(model, arrival, play.found[number])
    assert not engine.encoders._waiting
    assert engine.verify().ok


def check(model: Model, arrival: Arrival, found: object) -> None:
    if arrival.is_bad:
        assert isinstance(found, Refused)
    elif model.recipe(arrival)[0] == HUGE:
        assert isinstance(found, NonFiniteValue)
    else:
        assert isinstance(found, torch.Tensor), found
        expected = model.expected(arrival)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        first, second = expected.topk(2).values.T
        clear = first - second > MARGIN
        assert found.argmax(-1)[clear].equal(expected.argmax(-1)[clear])
