"""Whoever is at fault fails alone, and everybody else's tokens are a merged copy's. Steps are taken by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.engine.mixed import GREEDY, Mixed, mixed, prompts

from patchbay.engine.recipes import Path as How
from patchbay.engine.request import SamplingParams, Update
from patchbay.engine.sequence import Sequence as Running
from patchbay.errors import BackboneError, Cancelled, EngineFailed, InvalidName, NonFiniteValue

Folder = Callable[..., Path]
MARK = 1  # a token that neither prompts nor answers have unless it is put there
HUGE = "math + huge"
TEXTS = [None, "math", "math + code", "art", "neuromerging(math, code, law)"]


@pytest.fixture(scope="module")
def model(model_folder: Folder, finetune_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    with mixed("llama", model_folder, finetune_folder, tmp_path_factory.mktemp("deltas")) as found:
        overflow = torch.full((pico.HIDDEN,), 3e38)  # keys and values are not finite under it
        vectors = {"model.layers.0.input_layernorm.weight": overflow}
        found.deltas["huge"] = replace(found.deltas["math"], vectors=vectors)
        yield found


@pytest.fixture(autouse=True)
def nothing_is_left(model: Mixed) -> Iterator[None]:
    yield
    model.end()


@contextmanager
def raising(model: Mixed, error: BaseException) -> Iterator[list[int]]:
    """The model raises wherever MARK is in its batch; the sizes of those batches."""
    sizes: list[int] = []

    def fail(_: object, given: tuple[torch.Tensor]) -> None:
        if bool((given[0] == MARK).any()):
            sizes.append(given[0].numel())
            raise error

    handle = model.engine.backbone.model.get_input_embeddings().register_forward_pre_hook(fail)
    try:
        yield sizes
    finally:
        handle.remove()


def marked(prompt: Sequence[int]) -> tuple[int, ...]:
    return (*prompt[:1], MARK, *prompt[1:])


# Faults


@pytest.mark.parametrize("path", [How.DECOUPLED, How.PATCHED])
def test_a_prompt_that_the_model_fails_on_fails_alone(model: Mixed, path: How) -> None:
    with raising(model, RuntimeError("inside the forward pass")) as sizes:
        fine = [model.add("math", prompt, path=path) for prompt in prompts(5, 1)]
        bad = [model.add("math", marked(prompt), path=path) for prompt in prompts(2, 2)]
        fine += [model.add("math", prompt, path=path) for prompt in prompts(4, 3)]
        model.drain()
    model.check_all(fine)
    for each in bad:
        assert type(each.error) is BackboneError and "failed on this request" in each.error.message
        assert not each.answer.tokens
    assert len(sizes) >= 4, "they were in one batch, which was halved"


def test_an_answer_that_the_model_fails_on_fails_alone(model: Mixed) -> None:
    with raising(model, RuntimeError("inside the forward pass")) as sizes:
        fine = model.add_all(TEXTS, 4)
        bad = model.add("code", prompts(1, 5)[0], replace(GREEDY, logit_bias={MARK: 1000}))
        model.drain()
    model.check_all(fine)
    assert isinstance(bad.error, BackboneError)
    assert bad.answer.tokens == [MARK], "what was known before stays known"
    assert max(sizes) == len(fine) + 1 and min(sizes) == 1


def test_an_error_of_ours_is_handed_on(model: Mixed) -> None:
    error = InvalidName("a name", param="model")
    with raising(model, error):
        bad = model.add(None, marked((5, 6)))
        model.drain()
    assert bad.error is error


def test_retrying_after_a_failure_counts_nobody_twice(model: Mixed) -> None:
    """With a seed and penalties: what is drawn and counted depends on how often a token was taken."""
    params = SamplingParams(max_tokens=10, temperature=1.2, seed=3, frequency_penalty=0.5, ignore_eos=True)
    prompt = prompts(1, 6, 20)[0]
    alone = model.add("math", prompt, params)
    model.drain()
    with raising(model, RuntimeError("inside the forward pass")):
        again = model.add("math", prompt, params)
        bad = model.add("math", marked(prompt))
        model.drain()
    assert bad.error is not None
    assert again.answer.tokens == alone.answer.tokens


def test_logits_that_are_not_finite_fail_alone(model: Mixed) -> None:
    """Also those who get the same rows of memory afterwards are exact."""
    first = model.add_all(TEXTS, 7, replace(GREEDY, max_tokens=30))
    bad = model.add_all([HUGE] * 3, 8)
    model.generator.step()
    model.generator.step()
    later = model.add_all(TEXTS, 9)
    model.drain()
    model.check_all([*first, *later])
    for each in bad:
        assert isinstance(each.error, NonFiniteValue) and each.error.param == "model"
        assert "smaller weights" in each.error.message and not each.answer.tokens


def test_two_that_fail_at_once_leave_clean_memory(model: Mixed) -> None:
    """When one of them leaves, the other's keys and values move into its row; nothing of them may stay behind."""
    short = replace(GREEDY, max_tokens=20)
    first = [model.add(None, prompt, short) for prompt in prompts(2, 10, 8)]
    bad = [model.add(HUGE, prompt) for prompt in [*prompts(1, 11, 30), (5,) * 35]]
    model.generator.step()
    model.generator.step()
    later = [model.add(None, prompt, short) for prompt in prompts(2, 12, 8)]
    model.drain()
    assert all(isinstance(each.error, NonFiniteValue) for each in bad)
    model.check_all([*first, *later])


def test_a_patch_that_cannot_be_made_fails_its_group(model: Mixed) -> None:
    """Whatever it raises: the engine goes on with everybody else."""
    broken = model.ready("art", How.PATCHED)
    assert broken.merged is not None
    fine = model.add_all([None, "math"], 13)
    bad = model.add("art", (5, 6), path=How.PATCHED)
    [sequence] = bad.sequences
    plan = replace(broken.merged.plan, vectors={"model.norm.weight": torch.ones(3)})
    merged = replace(broken.merged, plan=plan)
    sequence.request = replace(sequence.request, ready=replace(broken, merged=merged))
    model.drain()
    assert isinstance(bad.error, BackboneError)
    model.check_all(fine)


# The thread


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_started_again(model: Mixed) -> None:
    with mixed_thread(model) as own:
        language = own.engine.language
        with raising(own, SystemExit()):
            asked = [own.add(text, prompt) for text, prompt in zip(TEXTS, prompts(5, 14), strict=True)]
            bad = [own.add(None, marked((5, 6))), own.add("math", marked((7, 8)), path=How.PATCHED)]
            language.loop.wake()
            for each in [*asked, *bad]:
                assert each.collector.done.wait(60), "somebody was forgotten"
                with pytest.raises(EngineFailed, match="ask again"):
                    each.collector.result()
        [found] = language.complete(own.ready("math + code"), [(5, 6, 7)], GREEDY)
        own.check("math + code", (5, 6, 7), found.tokens)
        assert language.loop.restarts == 1
        language.check()
        assert language.runner.cache.used_tokens in (0, 64), "the last one may be about to leave"
        assert own.engine.verify().ok


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_while_weights_are_patched_restores_them(model: Mixed) -> None:
    with mixed_thread(model) as own:
        with raising(own, SystemExit()), pytest.raises(EngineFailed):
            own.engine.language.complete(own.ready("math", How.PATCHED), [marked((5, 6))], GREEDY)
        assert own.engine.verify().ok
        [found] = own.engine.language.complete(own.ready("math", How.PATCHED), [(5, 6)], GREEDY)
        own.check("math", (5, 6), found.tokens)


@contextmanager
def mixed_thread(model: Mixed) -> Iterator[Mixed]:
    own = model.another()
    try:
        yield own
    finally:
        own.engine.close()


def test_a_sink_that_fails_is_nobody_elses_trouble(model: Mixed) -> None:
    told: list[Update] = []

    def fail(update: Update) -> None:
        told.append(update)
        raise ConnectionError("nobody reads this")

    language = model.engine.language
    requests = language.texts.requests(model.ready("math"), [prompts(1, 8)[0]], GREEDY, fail)
    language.generator.add(list(map(Running, requests)))
    fine = model.add_all(TEXTS, 9)
    model.drain()
    model.check_all(fine)
    assert len(told) == 2 and isinstance(told[1].error, Cancelled), "it ends at the next step"
