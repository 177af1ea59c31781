"""Models that answer one after another answer exactly what they would alone. Steps are taken by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.engine.mixed import GREEDY, Asked, Mixed, mixed, mixed_causal, prompts

from patchbay.architecture import Task
from patchbay.engine.recipes import Path as How
from patchbay.engine.runner import Piece
from patchbay.engine.scheduler import Limits
from patchbay.engine.solo import SoloRunner
from patchbay.errors import BackboneError, Cancelled, InputError
from patchbay.execute.patch import Patcher

Folder = Callable[..., Path]
MARK = 1
TEXTS = [None, "math", "math + code", "art", "ties(math, code; density=0.4)", None, "math"]


@pytest.fixture(scope="module", params=["t5", "bloom"])
def model(
    request: pytest.FixtureRequest,
    model_folder: Folder,
    finetune_folder: Folder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mixed]:
    folder = tmp_path_factory.mktemp("deltas")
    if request.param == "t5":
        with mixed("t5", model_folder, finetune_folder, folder) as found:
            yield found
    else:
        with mixed_causal(request.param, folder) as found:
            yield found


@pytest.fixture(autouse=True)
def nothing_is_left(model: Mixed) -> Iterator[None]:
    yield
    model.end()


def runner_of(model: Mixed) -> SoloRunner:
    assert isinstance(model.engine.language.runner, SoloRunner)
    return model.engine.language.runner


def expected(model: Mixed, asked: Asked) -> list[int]:
    """What transformers answers greedily with a merged copy."""
    ready, whole = model.ready(asked.text), model.reference.model
    params = asked.sequences[0].request.params
    whole.generation_config.eos_token_id = None

    def generate() -> list[int]:
        ids = torch.tensor([asked.prompt])
        found = whole.generate(ids, do_sample=False, max_new_tokens=params.max_tokens, pad_token_id=0)
        tokens: list[int] = found[0].tolist()
        return tokens[-params.max_tokens :]

    if ready.merged is None:
        return generate()
    with Patcher(model.reference).patched(ready.merged.plan, ready.merged.deltas(list(ready.deltas.values()))):
        return generate()


def check(model: Mixed, asked: Asked) -> None:
    assert asked.answer.error is None and asked.answer.finish_reason == "length"
    assert asked.answer.tokens == expected(model, asked)


def test_recipes_take_turns(model: Mixed) -> None:
    passes = model.watched()
    asked = [model.add(text, prompt) for text, prompt in zip(TEXTS, prompts(len(TEXTS), 1), strict=True)]
    model.drain()
    for each in asked:
        check(model, each)
    assert len({tuple(each.answer.tokens) for each in asked}) > 3
    assert passes.patched


def test_nothing_here_is_decoupled(model: Mixed) -> None:
    assert model.ready("math").path is How.PATCHED
    with pytest.raises(InputError, match="decoupled path: the proof at start failed"):
        model.ready("math", How.DECOUPLED)


def test_short_steps_read_prompts_whole(model: Mixed) -> None:
    own = model.another(Limits(max_step=4, max_running=3))
    asked = [own.add(text, prompt) for text, prompt in zip(TEXTS, prompts(len(TEXTS), 2), strict=True)]
    own.drain()
    for each in asked:
        check(own, each)


def test_room_is_waited_for(model: Mixed) -> None:
    own = model.another()
    runner = runner_of(own)
    runner.max_tokens = 60
    asked = [own.add(None, prompt) for prompt in prompts(6, 3)]
    own.generator.step()
    assert 0 < len(own.generator.scheduler.running) < 6 and runner.used_tokens <= 60
    own.drain()
    for each in asked:
        check(own, each)
    assert runner.used_tokens == 0


def test_a_pass_that_fails_is_tried_without_who_is_at_fault(model: Mixed) -> None:
    """Those before it in the batch had their tokens read already: caches must not hold them twice."""
    fails_at = 3

    def fail(_: object, given: tuple[torch.Tensor]) -> None:
        if bool((given[0] == MARK).any()):
            raise RuntimeError("inside the forward pass")

    whole = model.engine.backbone.model
    reader = whole.get_encoder() if model.engine.backbone.task is Task.SEQ2SEQ_LM else whole
    handle = reader.get_input_embeddings().register_forward_pre_hook(fail)
    try:
        fine = [model.add("math", prompt) for prompt in prompts(3, 4)]
        for _ in range(fails_at):
            model.generator.step()
        bad = model.add("math", (5, MARK, 6))
        fine += [model.add("math", prompt) for prompt in prompts(2, 5)]
        model.drain()
    finally:
        handle.remove()
    assert isinstance(bad.error, BackboneError)
    for each in fine:
        check(model, each)


def test_who_cancels_gives_room_back(model: Mixed) -> None:
    gone, stays = (model.add("math", prompt) for prompt in prompts(2, 6))
    model.generator.cancel(gone.sequences)
    model.generator.step()
    assert isinstance(gone.error, Cancelled)
    model.drain()
    check(model, stays)


def test_probabilities_of_the_prompt(model: Mixed) -> None:
    params, prompt = replace(GREEDY, prompt_logprobs=1, max_tokens=2), prompts(1, 7)[0]
    if model.engine.backbone.task is Task.SEQ2SEQ_LM:
        with pytest.raises(InputError, match="prompt_logprobs"):
            model.add(None, prompt, params)
        return
    asked = model.add("math", prompt, params)
    model.drain()
    rows = model.logits("math", prompt[:1], prompt[1:]).log_softmax(-1)
    assert asked.answer.prompt_logprobs is not None
    found = [each.logprob for each in asked.answer.prompt_logprobs[1:]]
    assert found == pytest.approx([float(row[token]) for row, token in zip(rows, prompt[1:], strict=True)], abs=1e-3)


def test_a_token_that_is_read_twice_is_kept_once(model: Mixed) -> None:
    """A pass that failed for another's sake is tried again, whatever this one's cache holds by then."""
    runner, prompt = runner_of(model), prompts(1, 8, 20)[0]
    place = runner.reserve(40)
    assert place is not None
    found = [runner.run([Piece(place, prompt, 0, None)])]
    found += [runner.run([Piece(place, [token], len(prompt) + index, None)]) for index, token in enumerate((5, 6))]
    again = runner.run([Piece(place, [6], len(prompt) + 1, None)])
    after = runner.run([Piece(place, [7], len(prompt) + 2, None)])
    runner.free(place, is_finite=True)
    whole = model.reference.model
    with torch.inference_mode():
        if model.engine.backbone.task is Task.SEQ2SEQ_LM:
            ids = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[0, 5, 6, 7]])}
        else:
            ids = {"input_ids": torch.tensor([[*prompt, 5, 6, 7]])}
        rows = whole(**ids).logits[0, -4:]
    torch.testing.assert_close(torch.cat([*found, after]), rows, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(again, found[-1], atol=1e-3, rtol=1e-3)
