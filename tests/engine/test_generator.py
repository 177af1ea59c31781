"""Who leaves early, who has to wait, what is told: steps are taken by the test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engine.mixed import GREEDY, Mixed, mixed, prompts

from patchbay.engine.engine import Budgets
from patchbay.engine.recipes import Path as How
from patchbay.engine.request import SamplingParams
from patchbay.engine.scheduler import TURN_STEPS, Limits
from patchbay.errors import Cancelled, DeadlineExceeded, InputError, QueueFull, ShuttingDown

Folder = Callable[..., Path]
TEXTS = [None, "math", "math + code", "art", "neuromerging(math, code, law)"]


@pytest.fixture(scope="module")
def model(model_folder: Folder, finetune_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    with mixed("llama", model_folder, finetune_folder, tmp_path_factory.mktemp("deltas")) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_left(model: Mixed) -> Iterator[None]:
    yield
    model.end()


# Leaving early


def test_who_cancels_frees_memory_and_harms_nobody(model: Mixed) -> None:
    cache = model.engine.language.runner.cache
    gone = [model.add("code", prompt, replace(GREEDY, max_tokens=60)) for prompt in prompts(4, 15, 40)]
    fine = model.add_all(TEXTS, 16)
    for _ in range(5):
        model.generator.step()
    used = cache.used_tokens
    model.generator.cancel([each.sequences[0] for each in gone])
    model.generator.step()
    assert cache.used_tokens <= used - 4 * 64
    assert all(isinstance(each.error, Cancelled) and each.answer.tokens for each in gone)
    model.drain()
    model.check_all(fine)


def test_who_cancels_while_waiting_never_runs(model: Mixed) -> None:
    own = model.another(Limits(max_running=1))
    first, second, third = (own.add("math", prompt) for prompt in prompts(3, 17))
    own.generator.step()
    own.generator.cancel(second.sequences)
    own.drain()
    assert isinstance(second.error, Cancelled) and not second.answer.tokens and not second.sequences[0].computed
    own.check_all([first, third])


def test_answers_that_are_over_cannot_be_cancelled(model: Mixed) -> None:
    asked = model.add("math", (5, 6, 7))
    model.drain()
    model.generator.cancel(asked.sequences)
    model.drain()
    model.check_answer(asked)


def test_deadlines(model: Mixed) -> None:
    never = model.add("math", (5, 6), deadline=time.monotonic())
    late = model.add("math", (5, 6, 7), replace(GREEDY, max_tokens=40))
    fine = model.add("math", (5, 6, 7, 8), deadline=time.monotonic() + 1e6)
    for _ in range(3):
        model.generator.step()
    [sequence] = late.sequences
    sequence.request = replace(sequence.request, deadline=time.monotonic())
    model.drain()
    assert isinstance(never.error, DeadlineExceeded) and not never.answer.tokens
    assert isinstance(late.error, DeadlineExceeded) and len(late.answer.tokens) == 3
    model.check_answer(fine)


def test_stop_ends_everything(model: Mixed) -> None:
    own = model.another(Limits(max_running=2))
    asked = own.add_all(TEXTS, 18)
    for _ in range(3):
        own.generator.step()
    own.generator.stop(ShuttingDown("going down"))
    own.drain()
    assert all(isinstance(each.error, ShuttingDown) for each in asked)
    assert sum(bool(each.answer.tokens) for each in asked) == 2, "some were under way and some waited"
    with pytest.raises(ShuttingDown):
        own.add(None, (5, 6))
    assert own.engine.language.runner.cache.num_bytes == 0


# Limits


def test_the_queue_takes_all_or_none(model: Mixed) -> None:
    own = model.another(Limits(max_running=2, max_waiting=5))
    running = [own.add(None, prompt) for prompt in prompts(2, 19)]
    own.generator.step()
    waiting = own.add("math", (5, 6), replace(GREEDY, temperature=1, seed=1), n=3)
    with pytest.raises(QueueFull, match="3 texts are waiting"):
        own.add("math", (5, 6), n=3)
    assert len(own.generator.scheduler.waiting) == 3
    more = own.add("code", (5, 6), n=2)
    with pytest.raises(QueueFull):
        own.add("code", (5, 6))
    own.drain()
    own.check_all([*running, more])
    assert all(len(answer.tokens) == GREEDY.max_tokens for answer in waiting.collector.result())


def test_what_never_has_room_is_refused(model: Mixed) -> None:
    token_bytes = model.engine.language.runner.cache.geometry.token_bytes
    own = model.another(budgets=Budgets(kv=100 * token_bytes))
    with pytest.raises(InputError, match=r"90 tokens and max_tokens 12 exceed the 100 .*--kv-bytes") as error:
        own.add(None, (5,) * 90)
    assert error.value.param == "prompt"
    assert own.engine.language.texts.room((5,) * 90) == 10
    fits = own.add("math", (5,) * 90, replace(GREEDY, max_tokens=10))
    others = own.add_all(TEXTS, 20)
    own.drain()
    own.check_all([fits, *others])
    assert own.engine.language.runner.cache.num_bytes == 0


def test_a_long_turn_shuts_nobody_out(model: Mixed) -> None:
    """Whoever has the weights gives them up for others after some passes, and has them again later."""
    long, ways = replace(GREEDY, max_tokens=80), [How.PATCHED, How.DECOUPLED, How.PATCHED]
    asked = [model.add(text, (5, 6), long, path=path) for text, path in zip(("math", "code", "art"), ways, strict=True)]
    while model.generator.step():
        counts = [len(each.answer.tokens) for each in asked]
        assert max(counts) - min(counts) <= TURN_STEPS
    model.check_all(asked)


# What is told


def test_choices_have_seeds_of_their_own(model: Mixed) -> None:
    params = SamplingParams(max_tokens=15, temperature=1.5, seed=5, ignore_eos=True)
    three = model.add("math + code", (5, 6, 7), params, n=3)
    busy = model.add_all(TEXTS, 21)
    model.drain()
    alone = [model.add("math + code", (5, 6, 7), replace(params, seed=seed)) for seed in (5, 6, 7)]
    model.drain()
    found = [answer.tokens for answer in three.collector.result()]
    assert found == [each.answer.tokens for each in alone]
    assert len(set(map(tuple, found))) == 3
    model.check_all(busy)


@pytest.mark.parametrize("max_step", [512, 5])
@pytest.mark.parametrize("max_tokens", [6, 0])
@pytest.mark.parametrize("path", [How.DECOUPLED, How.PATCHED])
def test_probabilities_of_the_prompt(model: Mixed, max_step: int, max_tokens: int, path: How) -> None:
    """Those of the merged copy's own logits, however the prompt is read and whatever is known of it already."""
    own = model.another(Limits(max_step=max_step))
    prompt, params = prompts(1, 22, 70)[0] + (5,) * 40, replace(GREEDY, max_tokens=max_tokens)
    own.add("math", prompt)
    own.drain()  # its beginning is kept now
    asked = own.add("math", prompt, replace(params, prompt_logprobs=2, logprobs=1), path=path)
    busy = own.add_all(TEXTS, 23)
    own.drain()
    own.check_all(busy)
    answer = asked.answer
    assert answer.finish_reason == "length" and len(answer.tokens) == max_tokens
    expected = own.logits("math", prompt[:1], [*prompt[1:], *answer.tokens]).log_softmax(-1)
    assert answer.prompt_logprobs is not None
    assert [each.token for each in answer.prompt_logprobs] == list(prompt)
    assert answer.prompt_logprobs[0].logprob is None
    for row, found in zip(expected, [*answer.prompt_logprobs[1:], *answer.logprobs], strict=True):
        assert found.logprob == pytest.approx(float(row[found.token]), abs=1e-3)
        best = row.topk(len(found.top))
        assert [logprob for _, logprob in found.top] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert all(row[token] == pytest.approx(logprob, abs=1e-3) for token, logprob in found.top)


@pytest.mark.parametrize("max_tokens", [3, 0])
def test_a_prompt_of_one_token_has_no_probability(model: Mixed, max_tokens: int) -> None:
    asked = model.add("math", (5,), replace(GREEDY, max_tokens=max_tokens, prompt_logprobs=2))
    model.drain()
    assert asked.answer.finish_reason == "length" and asked.answer.prompt_logprobs is not None
    assert [(each.token, each.logprob) for each in asked.answer.prompt_logprobs] == [(5, None)]


def test_nothing_asked_for_is_nothing_told(model: Mixed) -> None:
    asked = model.add("math", (5, 6, 7), replace(GREEDY, max_tokens=0))
    model.drain()
    assert (asked.answer.text, asked.answer.tokens, asked.answer.finish_reason) == ("", [], "length")
    assert asked.answer.prompt_logprobs is None
