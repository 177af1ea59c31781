"""Requests under many recipes in one batch get what a merged copy of each would answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.engine.mixed import GREEDY, LONG, RECIPES, Mixed, ask, mixed, prompts

from patchbay.backbone import Backbone
from patchbay.engine.engine import Engine
from patchbay.engine.recipes import Path as How
from patchbay.errors import InputError

Folder = Callable[..., Path]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(
    request: pytest.FixtureRequest,
    model_folder: Folder,
    finetune_folder: Folder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mixed]:
    with mixed(request.param, model_folder, finetune_folder, tmp_path_factory.mktemp("deltas")) as found:
        yield found


@pytest.mark.parametrize("seed", range(50 if LONG else 5))
def test_a_mix_of_recipes_is_token_exact(model: Mixed, seed: int) -> None:
    generator = random.Random(seed)
    texts = [generator.choice(RECIPES) for _ in range(12)]
    asked = prompts(len(texts), seed)
    ready = [model.ready(text) for text in texts]
    assert {each.path for each in ready} <= {How.BASE, How.DECOUPLED}
    for text, prompt, answer in zip(texts, asked, ask(model, list(zip(ready, asked, strict=True))), strict=True):
        assert len(answer) == GREEDY.max_tokens
        model.check(text, prompt, answer)


def test_recipes_matter(model: Mixed) -> None:
    """Else the test above would hold for the base alone."""
    [prompt] = prompts(1, 9, 30)
    answers = ask(model, [(model.ready(text), prompt) for text in RECIPES])
    assert len(set(map(tuple, answers))) > 4


def test_paths_agree_side_by_side(model: Mixed) -> None:
    """Patched requests take turns with all others, and are alone with their weights."""
    asked, passes = prompts(6, 3), model.watched()
    texts = ["math", "math + code", None, "neuromerging(math, code, law)", "math", "art"]
    ways = [How.PATCHED, How.DECOUPLED, None, How.PATCHED, How.DECOUPLED, How.PATCHED]
    ready = [model.ready(text, way) for text, way in zip(texts, ways, strict=True)]
    assert [each.path for each in ready] == [way or How.BASE for way in ways]
    for text, prompt, answer in zip(texts, asked, ask(model, list(zip(ready, asked, strict=True))), strict=True):
        model.check(text, prompt, answer)
    assert model.engine.verify().ok
    assert passes.patched and passes.decoupled


def test_a_long_prompt_is_read_in_pieces(model: Mixed) -> None:
    scheduler = model.engine.language.generator.scheduler
    limits = scheduler.limits
    scheduler.limits = type(limits)(max_step=16)
    try:
        asked = [*prompts(3, 4, 10), *prompts(1, 5, 100), *prompts(2, 6, 60)]
        texts = ["math", None, "code", "math + code", "math", "law"]
        answers = ask(model, list(zip(map(model.ready, texts), asked, strict=True)))
    finally:
        scheduler.limits = limits
    for text, prompt, answer in zip(texts, asked, answers, strict=True):
        model.check(text, prompt, answer)


def test_memory_is_free_again(model: Mixed) -> None:
    asked = prompts(8, 7)
    ask(model, [(model.ready("math"), prompt) for prompt in asked])
    cache = model.engine.language.runner.cache
    give_up = time.monotonic() + 60
    while cache.num_bytes and time.monotonic() < give_up:  # who asks is told before memory is free
        time.sleep(0.01)
    assert cache.used_tokens == cache.num_bytes == 0


def test_turns_of_what_cannot_be_decoupled(model_folder: Folder, finetune_folder: Folder, tmp_path: Path) -> None:
    """Exact deltas, and one that adds tokens, patch the weights between turns of all others."""
    with mixed("llama", model_folder, finetune_folder, tmp_path) as found:
        base, tuned = found.reference.folder, finetune_folder("llama", 5, 0.1)
        found.deltas["exact"] = pico.delta(base, tuned, tmp_path / "exact", density=1.0, exact=True)
        grown = pico.grow(base, tmp_path / "grown", pico.VOCAB + 5)
        pico.tokenizer(grown)
        found.deltas["new"] = pico.delta(base, grown, tmp_path / "new", density=1.0, exact=True)
        texts = ["exact", "math", None, "new", "math + code", "exact", "new", "neuromerging(math, code, law)"]
        ready = [found.ready(text) for text in texts]
        ways = [each.path for each in ready]
        assert ways.count(How.PATCHED) == 4 and ways.count(How.DECOUPLED) == 3
        asked = prompts(len(texts), 11)
        asked[3] += (pico.VOCAB, pico.VOCAB + 4)
        params = replace(GREEDY, max_tokens=40)  # several turns
        answers = ask(found, list(zip(ready, asked, strict=True)), params)
        for text, prompt, answer in zip(texts, asked, answers, strict=True):
            assert len(answer) == params.max_tokens
            found.check(text, prompt, answer)
        assert found.engine.verify().ok


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_text_with_new_tokens(model_folder: Folder, tmp_path: Path, kind: str) -> None:
    """Prompts may hold the tokens and answers may bring them; the delta is served by patches."""
    more = 5
    folder = model_folder(kind)
    tuned = pico.grow(folder, tmp_path / "tuned", pico.VOCAB + more)
    pico.tokenizer(tuned)
    delta = pico.delta(folder, tuned, tmp_path / "delta", density=1.0, exact=True)
    prompt = (5, pico.VOCAB, pico.VOCAB + more - 1)
    engine, whole = Engine(Backbone.load(folder), lambda _: delta), Engine(Backbone.load(tuned), lambda _: delta)
    try:
        [recipe] = [Mixed(engine, {}, engine.backbone).recipe("math")]
        ready = engine.prepare(recipe)
        assert ready.path is How.PATCHED
        with pytest.raises(InputError, match="adds tokens|restores|one after|an encoder"):
            engine.prepare(recipe, How.DECOUPLED)
        [expected] = whole.language.complete(whole.prepare(None), [prompt], GREEDY)
        [found] = engine.language.complete(ready, [prompt], GREEDY)
        assert found.tokens == expected.tokens
        with pytest.raises(InputError, match=f"vocabulary of {pico.VOCAB + more}"):
            engine.language.complete(ready, [(pico.VOCAB + more,)], GREEDY)
        with pytest.raises(InputError, match=f"vocabulary of {pico.VOCAB}$"):
            engine.language.complete(engine.prepare(None), [prompt], GREEDY)
    finally:
        engine.close()
        whole.close()


def test_bf16_is_near(model_folder: Folder, finetune_folder: Folder, tmp_path: Path) -> None:
    """A patch rounds W0 + D to bf16, the other way does not: tokens may differ where logits are within .1."""
    with mixed("llama", model_folder, finetune_folder, tmp_path, dtype=torch.bfloat16) as found:
        asked = prompts(8, 1)
        texts = [RECIPES[number % len(RECIPES)] for number in range(8)]
        for text, prompt, answer in zip(
            texts, asked, ask(found, list(zip(map(found.ready, texts), asked, strict=True))), strict=True
        ):
            found.check(text, prompt, answer, margin=0.1)
