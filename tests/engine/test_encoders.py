"""Requests to an encoder under many recipes share forward passes, and get what a merged copy of each would answer."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event

import pytest
import torch
from tests import pico
from tests.engine.encoding import RECIPES, Encoding, counted, encoding, gather, held, inputs_for
from tests.waiting import until
from torch import nn

from patchbay.backbone import Backbone
from patchbay.engine.engine import Engine
from patchbay.engine.observer import Observer
from patchbay.engine.patience import Patience
from patchbay.engine.recipes import Path as How
from patchbay.engine.recipes import Ready
from patchbay.errors import BackboneError, Cancelled, DeadlineExceeded, InputError, NonFiniteValue
from patchbay.models.classifier import Logits
from patchbay.models.embedding import UnitVectors
from patchbay.models.inputs import MAX_BATCH

Folder = Callable[..., Path]
KINDS = ("bert_classifier", "bert_encoder", "vit", "clip_vision", "resnet")


@pytest.fixture(scope="module", params=KINDS)
def model(
    request: pytest.FixtureRequest,
    model_folder: Folder,
    finetune_folder: Folder,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Encoding]:
    folder = tmp_path_factory.mktemp("deltas")
    return request.param, encoding(request.param, model_folder, finetune_folder, folder)


@pytest.fixture(scope="module")
def texts(model_folder: Folder, finetune_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Encoding:
    return encoding("bert_encoder", model_folder, finetune_folder, tmp_path_factory.mktemp("deltas"))


def near(found: object, expected: torch.Tensor) -> None:
    assert isinstance(found, torch.Tensor), found
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_mix_of_recipes_is_one_forward_pass(model: tuple[str, Encoding]) -> None:
    kind, encoder = model
    asked = [(text, inputs_for(kind, 1 + number % 2, number, 16)) for number, text in enumerate((*RECIPES, "math"))]
    assert {encoder.ready(text).path for text in RECIPES} == {How.BASE, How.DECOUPLED}
    with counted(encoder.engine.backbone) as rows:
        found = gather(encoder.engine, [partial(encoder.answer, text, inputs) for text, inputs in asked])
    for answer, (text, inputs) in zip(found, asked, strict=True):
        near(answer, encoder.expected(text, inputs))
    assert rows == [12]


def test_recipes_matter(model: tuple[str, Encoding]) -> None:
    """Else the test above would hold for the base alone."""
    kind, encoder = model
    inputs = inputs_for(kind, 1, 0)
    answers = torch.cat([encoder.answer(text, inputs) for text in RECIPES])
    distances = torch.cdist(answers, answers) + torch.eye(len(RECIPES))
    assert float(distances.min()) > 1e-4


def test_many_threads_ask_at_once(model: tuple[str, Encoding]) -> None:
    """On every path, beside checks of the weights."""
    kind, encoder = model
    ways = (None, How.PATCHED, None, How.DECOUPLED)
    asked = [(RECIPES[n % len(RECIPES)], ways[n % len(ways)], inputs_for(kind, 1 + n % 3, n, 40)) for n in range(40)]
    with ThreadPoolExecutor(12) as threads:
        verdicts = [threads.submit(encoder.engine.verify) for _ in range(4)]
        found = list(threads.map(lambda each: encoder.answer(each[0], each[2], each[1]), asked))
        assert all(verdict.result().ok for verdict in verdicts)
    for answer, (text, _, inputs) in zip(found, asked, strict=True):
        near(answer, encoder.expected(text, inputs))


def test_a_patched_request_runs_alone(texts: Encoding) -> None:
    inputs = inputs_for("bert", 1, 0)
    asked = [("math", How.PATCHED), ("code", None), ("math", How.DECOUPLED), ("law", How.PATCHED), (None, None)]
    with counted(texts.engine.backbone) as rows:
        found = gather(texts.engine, [partial(texts.answer, text, inputs, way) for text, way in asked])
    assert sorted(rows) == [1, 1, 3]
    for answer, (text, _) in zip(found, asked, strict=True):
        near(answer, texts.expected(text, inputs))
    assert texts.engine.verify().ok


def test_long_and_short_texts_together(texts: Encoding) -> None:
    """Padding to those of about one length, and no further."""
    lengths = (1, 100, 3, 16, 70, 17, 128, 30, 128)
    asked = [[" ".join(["cat", "dog", "owl"][number % 3] for number in range(length))] for length in lengths]
    recipes = [RECIPES[number % len(RECIPES)] for number in range(len(lengths))]
    with counted(texts.engine.backbone) as rows:
        found = gather(texts.engine, [partial(texts.answer, *each) for each in zip(recipes, asked, strict=True)])
    assert sorted(rows) == [2, 3, 4]
    for answer, text, inputs in zip(found, recipes, asked, strict=True):
        near(answer, texts.expected(text, inputs))


def test_a_batch_is_bounded(texts: Encoding) -> None:
    """In rows, and in tokens; one request's inputs are several jobs where they are many."""
    many = inputs_for("bert", MAX_BATCH + 6, 1, 10)
    with counted(texts.engine.backbone) as rows:
        near(texts.answer("math", many), texts.expected("math", many))
    assert rows == [MAX_BATCH, 6]
    long = [["the " * 100] * 10] * 5
    with counted(texts.engine.backbone) as rows:
        gather(texts.engine, [partial(texts.answer, "math", inputs) for inputs in long])
    assert sorted(rows) == [10, 20, 20]


class Fault(nn.Module):
    """Fails where a text has the word."""

    def __init__(self, word: str, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.token = 4 + pico.WORDS.index(word)
        self.error = error

    def forward(self, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        if bool((kwargs["input_ids"] == self.token).any()):
            raise self.error("a word it does not like")


def test_whoever_is_at_fault_fails_alone(texts: Encoding) -> None:
    asked = [("math", "the cat"), ("code", "one film"), (None, "a dog"), ("law", "the owl"), ("math", "a film")]
    handle = texts.engine.backbone.model.register_forward_pre_hook(Fault("film"), with_kwargs=True)
    try:
        found = gather(texts.engine, [partial(texts.answer, text, [word]) for text, word in asked])
    finally:
        handle.remove()
    for answer, (text, word) in zip(found, asked, strict=True):
        if "film" in word:
            assert isinstance(answer, RuntimeError) and "does not like" in str(answer)
        else:
            near(answer, texts.expected(text, [word]))
    near(texts.answer("math", ["a film"]), texts.expected("math", ["a film"]))


def test_weights_out_of_range_hurt_nobody_else(
    texts: Encoding, model_folder: Folder, finetune_folder: Folder, tmp_path: Path
) -> None:
    huge = finetune_folder("bert_encoder", 9, 1e25)
    texts.deltas["huge"] = pico.delta(model_folder("bert_encoder"), huge, tmp_path / "huge", density=0.3)
    asked = [("math", "the cat"), ("huge", "the cat"), (None, "the cat")]
    found = gather(texts.engine, [partial(texts.answer, text, [word]) for text, word in asked])
    assert isinstance(found[1], NonFiniteValue)
    for number in (0, 2):
        near(found[number], texts.expected(asked[number][0], ["the cat"]))


def test_a_thread_that_is_stopped_takes_nobody_with_it(texts: Encoding) -> None:
    """It led: its own request is gone, and the others' are not."""

    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        handle.remove()
        raise Stop

    def ask() -> object:
        try:
            return texts.answer("math", ["the cat"])
        except Stop:
            return "stopped"

    handle = texts.engine.backbone.model.register_forward_pre_hook(stop)
    found = gather(texts.engine, [ask] * 4)
    assert found.count("stopped") == 1
    for answer in found:
        if answer != "stopped":
            near(answer, texts.expected("math", ["the cat"]))
    assert not texts.engine.encoders._waiting


def test_who_gives_up_is_not_answered_and_holds_up_nobody(texts: Encoding) -> None:
    gone = Event()
    late, left = Patience(until=time.monotonic()), Patience(gone=gone)
    others = [partial(texts.answer, "math", ["the cat"]), partial(texts.answer, "code", ["a dog"])]
    with counted(texts.engine.backbone) as rows, ThreadPoolExecutor(4) as threads:
        with held(texts.engine):
            leading = threads.submit(others[0])
            until(lambda: texts.engine.encoders._is_led)
            waiting = threads.submit(others[1])
            giving_up = threads.submit(texts.answer, "law", ["a film"], None, left)
            with pytest.raises(DeadlineExceeded):
                threads.submit(texts.answer, "law", ["a film"], None, late).result(30)
            until(lambda: len(texts.engine.encoders._waiting) == 3)
            gone.set()
            with pytest.raises(Cancelled):
                giving_up.result(30)
        near(leading.result(30), texts.expected("math", ["the cat"]))
        near(waiting.result(30), texts.expected("code", ["a dog"]))
    assert sum(rows) == 2 and not texts.engine.encoders._waiting


def test_an_answer_that_is_there_is_given(texts: Encoding) -> None:
    """However late."""
    soon = Patience(until=time.monotonic() + 0.3)
    with ThreadPoolExecutor(1) as threads:
        with held(texts.engine):
            leading = threads.submit(texts.answer, "math", ["the cat"], None, soon)
            time.sleep(0.4)
        near(leading.result(30), texts.expected("math", ["the cat"]))


def test_what_has_failed_is_not_in_use(texts: Encoding) -> None:
    """Also before Python looks for cycles, of tracebacks and what their functions held."""
    ready = texts.ready("math")
    seen = weakref.ref(ready)
    handle = texts.engine.backbone.model.register_forward_pre_hook(Fault("film"), with_kwargs=True)
    gc.disable()
    try:
        with suppress(RuntimeError):
            texts.engine.embed(ready, ["a film"])
        del ready
        assert seen() is None
    finally:
        gc.enable()
        handle.remove()


def test_passes_are_told_of_with_their_recipes(texts: Encoding) -> None:
    seen: list[tuple[bool, int, int]] = []

    class Seen(Observer):
        def stepped(self, is_patched: bool, readies: Collection[Ready]) -> None:
            seen.append((is_patched, len(readies), len({ready.key for ready in readies})))

    texts.engine.observe(Seen())
    asked = [("math", None), ("math", None), ("code", None), (None, None), ("law", How.PATCHED)]
    gather(texts.engine, [partial(texts.answer, text, ["the cat"], way) for text, way in asked])
    assert sorted(seen) == [(False, 4, 3), (True, 1, 1)]


def test_nobody_waits_for_what_cannot_be_read(texts: Encoding) -> None:
    """Inputs are read before the weights are asked for."""
    with held(texts.engine), pytest.raises(InputError):
        texts.answer("math", [""])
    with held(texts.engine), pytest.raises(InputError):
        texts.answer("math", [])


def test_weights_that_cannot_be_trusted(model_folder: Folder) -> None:
    engine = Engine(Backbone.load(model_folder("bert_encoder")), {}.__getitem__)
    engine._patcher.damaged = True
    found = gather(engine, [lambda: engine.embed(engine.prepare(None), ["the cat"])] * 3)
    assert all(isinstance(answer, BackboneError) for answer in found)


HEADS = {"two": ("x", "y"), "four": ("n", "e", "s", "w")}


@pytest.fixture(scope="module")
def headed(model_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    """A plain encoder whose deltas bring heads, twice."""
    folder = tmp_path_factory.mktemp("heads")
    base = model_folder("bert_encoder")
    deltas = {}
    for seed, (name, labels) in enumerate(HEADS.items(), 3):
        tuned = pico.perturb(model_folder("bert_classifier", labels=labels), folder / f"{name}-tuned", seed, 0.05)
        deltas[name] = pico.delta(base, tuned, folder / name, density=0.3)
    yield Engine(Backbone.load(base), deltas.__getitem__), Engine(Backbone.load(base), deltas.__getitem__)


def test_heads_of_different_widths_share_a_forward_pass(headed: tuple[Engine, Engine]) -> None:
    """And embeddings do too: the encoder is one."""
    engine, other = headed
    both = Encoding(engine, {}, engine.backbone)
    names = {name: name for name in HEADS}
    asked = [("two", "two"), ("four", "four"), ("two + four", "four"), ("0.5*two + four", "two"), ("four", "four")]
    inputs = ["the cat", "a small dog runs"]
    classify = [
        partial(engine.classify, both.ready(text), inputs[: 1 + number % 2], names, head)
        for number, (text, head) in enumerate(asked)
    ]
    embed = partial(engine.embed, both.ready("two"), inputs)
    with counted(engine.backbone) as rows:
        *found, embedded = gather(engine, [*classify, embed])
    assert rows[-1] == 9 and set(rows[:-1]) <= {1, 3}, "a class of heads is tried before its first answer"
    copy = Encoding(other, {}, other.backbone)
    for number, (text, head) in enumerate(asked):
        ready = copy.ready(text, How.PATCHED)
        for one, own in zip(found[number], other.classify(ready, inputs[: 1 + number % 2], names, head), strict=True):  # type: ignore[call-overload]
            assert list(one.probabilities) == list(HEADS[head])
            assert one.probabilities == pytest.approx(own.probabilities, abs=1e-5)
    near(embedded.vectors, other.embed(copy.ready("two", How.PATCHED), inputs).vectors)  # type: ignore[attr-defined]


def test_models_are_tried_at_the_start(model: tuple[str, Encoding]) -> None:
    _, encoder = model
    base = encoder.engine.backbone.model
    readout = UnitVectors(base) if encoder.engine.backbone.labels is None else Logits(base)
    assert encoder.engine.encoders._reasons == {(type(readout), type(base)): None}


class Mixing(nn.Module):
    """An encoder that looks at the whole batch, padding too."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(x) + x.mean((0, 1))
        return found


def test_a_model_that_mixes_rows_answers_one_request_at_a_time(model_folder: Folder) -> None:
    base = Backbone.load(model_folder("bert_encoder"))
    base.model.embeddings.LayerNorm = Mixing(base.model.embeddings.LayerNorm)
    engine = Engine(base, {}.__getitem__)
    reason = engine.encoders.why_alone(UnitVectors(base.model))
    assert reason is not None and "differ by" in reason
    with torch.inference_mode():
        expected = [UnitVectors(base.model).whole(engine.inputs.batch([text])) for text in ("the cat", "a dog runs")]
    with counted(base) as rows:
        asked = [partial(engine.embed, engine.prepare(None), [text]) for text in ("the cat", "a dog runs")]
        found = gather(engine, asked)
    assert rows == [1, 1]
    for answer, own in zip(found, expected, strict=True):
        near(answer.vectors, own)  # type: ignore[attr-defined]
