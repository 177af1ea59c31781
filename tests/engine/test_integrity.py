"""A bit that changes in memory is found in an idle moment, and nobody notices that anybody looked."""

from __future__ import annotations

import collections
import copy
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import pico
from tests.engine.encoding import held, recipe
from tests.engine.mixed import GREEDY

from patchbay.backbone import Backbone
from patchbay.checkpoint import PIECE
from patchbay.delta import Delta
from patchbay.engine.engine import Engine
from patchbay.engine.integrity import Integrity, tensors_of
from patchbay.engine.lock import FairLock
from patchbay.engine.pool import Pool
from patchbay.engine.recipes import Path as How
from patchbay.errors import BackboneError

Folder = Callable[..., Path]
RECIPES = ("math", "0.5*code - math", "ties(math, code; density=0.4)")
TEXTS = ["the cat sees two red dogs", "a film"]


@pytest.fixture(scope="module")
def deltas(model_folder: Folder, finetune_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Delta]:
    base, out = model_folder("bert_encoder"), tmp_path_factory.mktemp("deltas")
    return {
        name: pico.delta(base, finetune_folder("bert_encoder", seed, 0.05), out / name, density=0.3)
        for seed, name in enumerate(("math", "code"), 1)
    }


@pytest.fixture
def engine(model_folder: Folder, deltas: dict[str, Delta]) -> Iterator[Engine]:
    """Each delta is loaded anew when it is asked for, as from a store."""
    with_own_memory = Engine(Backbone.load(model_folder("bert_encoder")), lambda name: copy.deepcopy(deltas[name]))
    yield with_own_memory
    with_own_memory.close()


def ask(engine: Engine, text: str | None, path: How | None = None) -> torch.Tensor:
    return engine.embed(engine.prepare(recipe(text), path), TEXTS).vectors


def check(engine: Engine) -> None:
    """A whole round."""
    for _ in engine.integrity.steps():
        pass


def flip(tensor: torch.Tensor, place: int = 0, bit: int = 0) -> None:
    memory = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    memory[place % len(memory)] ^= 1 << bit


def test_nothing_is_found_where_nothing_changed(engine: Engine) -> None:
    for text in (None, *RECIPES, *RECIPES):
        ask(engine, text)
        check(engine)
    assert (engine.integrity.num_rounds, engine.integrity.num_failures) == (2 * len(RECIPES) + 1, 0)
    assert len(engine.recipes.deltas) == 2 and len(engine.recipes.plans) == len(RECIPES)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 10**6), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_changed_bit_of_anything_that_is_kept(engine: Engine, number: int, place: int, bit: int) -> None:
    """It is dropped, and with it whatever was made of it: the next answer is as it was."""
    before = [ask(engine, text) for text in RECIPES]
    check(engine)
    pools = (engine.recipes.deltas, engine.recipes.plans)
    kept = [tensor for pool in pools for key in pool.keys for tensor in tensors_of(pool.peek(key)) if tensor.numel()]
    failures = engine.integrity.num_failures
    flip(kept[number % len(kept)], place, bit)
    check(engine)
    assert engine.integrity.num_failures > failures
    assert [ask(engine, text).tolist() for text in RECIPES] == [each.tolist() for each in before]
    engine.check_health()
    failures = engine.integrity.num_failures
    check(engine)
    assert engine.integrity.num_failures == failures


def test_nothing_that_was_made_of_it_is_used_again(engine: Engine) -> None:
    before = {text: ask(engine, text) for text in RECIPES}
    check(engine)
    for tensor in tensors_of(engine.recipes.deltas.peek("math")):
        if tensor.is_floating_point():
            tensor.zero_()
    assert not ask(engine, "math").equal(before["math"]), "there is something to be seen"
    check(engine)
    for text, expected in before.items():
        assert ask(engine, text).equal(expected)


@dataclass(frozen=True)
class Held:
    tensor: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.tensor.nbytes


def test_another_thing_in_its_place_is_no_change(engine: Engine) -> None:
    pool: Pool[Held] = Pool(1000)
    told: list[str] = []
    integrity = Integrity(engine.backbone, FairLock(), [pool], distrust_base=lambda: None, distrust=told.append)
    for value in (1.0, 2.0):
        held = pool.get("a", lambda value=value: Held(torch.tensor([value])))  # type: ignore[misc]
        for _ in range(2):
            collections.deque(integrity.steps(), maxlen=0)
        pool.discard("a")
    assert not told
    pool.get("a", lambda: held)
    held.tensor.add_(1)
    collections.deque(integrity.steps(), maxlen=0)
    assert told == ["a"]


def test_what_was_pinned_still_is(engine: Engine) -> None:
    engine.recipes.pin("math")
    check(engine)
    damaged = engine.recipes.deltas.peek("math")
    flip(next(tensors_of(damaged)))
    check(engine)
    kept = engine.recipes.deltas.peek("math")
    assert kept is not None and kept is not damaged
    assert engine.recipes.is_pinned("math")
    assert not engine.recipes.is_pinned("code")


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 10**6), place=st.integers(0, 10**6))
def test_a_changed_bit_of_the_base(model_folder: Folder, number: int, place: int) -> None:
    engine = Engine(Backbone.load(model_folder("bert_encoder")), {}.__getitem__)
    tensors = [engine.backbone.tensor(name) for name in engine.backbone.specs]
    check(engine)
    engine.check_health()
    flip(tensors[number % len(tensors)], place)
    check(engine)
    for refused in (engine.check_health, lambda: ask(engine, None)):
        with pytest.raises(BackboneError, match="restart the server"):
            refused()
    check(engine)
    assert engine.integrity.num_failures == 1, "it is said once"


def test_answers_between_two_steps(engine: Engine) -> None:
    """Patched ones too, which change the very weights that are being hashed."""
    for number, _ in enumerate(engine.integrity.steps()):
        if number % 5 == 0:
            ask(engine, RECIPES[number % len(RECIPES)], (How.PATCHED, None)[number % 2])
    check(engine)
    assert engine.integrity.num_failures == 0 and engine.verify().ok


def test_weights_that_somebody_has_are_not_read(engine: Engine) -> None:
    """They may be patched."""
    thread = Thread(target=next, args=(engine.integrity.steps(),))
    with held(engine):
        thread.start()
        wait_for(lambda: bool(engine._lock._waiting) or not thread.is_alive())
        assert thread.is_alive()
    thread.join()


def test_a_round_stops_for_who_asks_and_goes_on_later(engine: Engine) -> None:
    taken = 0

    def steps() -> Iterator[None]:
        nonlocal taken
        for step in engine.integrity.steps():
            taken += 1
            yield step
            if taken == 3:
                ask(engine, None)

    ask(engine, "math")
    round_ = steps()
    assert not engine.integrity._advance(round_)
    assert taken == 4 and engine.integrity.num_rounds == 0
    assert engine.integrity._advance(round_)
    assert taken > 4 and engine.integrity.num_rounds == 1


def test_it_runs_by_itself(model_folder: Folder, deltas: dict[str, Delta]) -> None:
    base = Backbone.load(model_folder("bert_encoder"))
    engine = Engine(base, lambda name: copy.deepcopy(deltas[name]), check_every=0.01)
    ask(engine, "math")
    wait_for(lambda: engine.integrity.num_rounds >= 2)
    flip(base.tensor(next(iter(base.specs))))
    wait_for(lambda: engine.integrity.num_failures == 1)
    with pytest.raises(BackboneError):
        engine.check_health()
    engine.close()
    assert not engine.integrity._thread.is_alive()


def test_a_delta_that_cannot_be_loaded_again_ends_no_checks(model_folder: Folder, deltas: dict[str, Delta]) -> None:
    stored = dict(deltas)
    base = Backbone.load(model_folder("bert_encoder"))
    engine = Engine(base, lambda name: copy.deepcopy(stored[name]), check_every=0.01)
    engine.recipes.pin("math")
    wait_for(lambda: engine.integrity.num_rounds >= 1)
    del stored["math"]
    flip(next(tensors_of(engine.recipes.deltas.peek("math"))))
    wait_for(lambda: engine.integrity.num_failures == 1)
    done = engine.integrity.num_rounds
    wait_for(lambda: engine.integrity.num_rounds >= done + 2)
    engine.check_health()
    engine.close()


def wait_for(found: Callable[[], bool]) -> None:
    for _ in range(6000):
        if found():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert_classifier", "vit", "resnet"])
@pytest.mark.parametrize("method", ["magnitude", "bitdelta", "low_rank", "lossless"])
def test_every_byte_of_a_delta_is_looked_at(
    kind: str, method: str, model_folder: Folder, finetune_folder: Folder, tmp_path: Path
) -> None:
    base = model_folder(kind)
    delta = pico.delta(base, finetune_folder(kind), tmp_path / "delta", method=method, **pico.at_density(method, 0.3))
    engine = Engine(Backbone.load(base), {"a": delta}.__getitem__)
    found = engine.recipes.load(recipe("a"))["a"]
    assert sum(tensor.nbytes for tensor in tensors_of(found)) == found.num_bytes
    engine.close()


def test_pieces_are_what_the_digest_is_taken_over(model_folder: Folder) -> None:
    backbone = Backbone.load(model_folder("gpt2", dtype=torch.bfloat16))
    pieces = list(backbone.pieces())
    assert max(memoryview(piece).nbytes for piece in pieces) <= PIECE
    assert f"sha256:{hashlib.sha256(b''.join(pieces)).hexdigest()}" == backbone.compute_digest()


def test_texts_that_came_before_are_read_again(model_folder: Folder, finetune_folder: Folder, tmp_path: Path) -> None:
    """Their keys and values may be of the changed delta."""
    base = model_folder("llama")
    delta = pico.delta(base, finetune_folder("llama"), tmp_path / "delta", density=0.3)
    engine = Engine(Backbone.load(base), {"math": delta}.__getitem__)
    counts = engine.language.generator.counts
    prompt = tuple(range(4, 80))
    ready, params = engine.prepare(recipe("math")), GREEDY
    engine.language.complete(ready, [prompt], params)
    engine.language.complete(ready, [prompt], params)
    known = counts.prefix_tokens
    assert known
    check(engine)
    flip(next(tensors_of(engine.recipes.deltas.peek("math"))))
    check(engine)
    engine.language.complete(engine.prepare(recipe("math")), [prompt], params)
    assert counts.prefix_tokens == known
    engine.close()
