from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tests import pico
from transformers import PreTrainedTokenizerBase

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.engine import Engine
from patchbay.engine.request import SamplingParams
from patchbay.engine.texts import Answer
from patchbay.errors import InputError, NonFiniteValue

Open = Callable[[str], Engine]
LOUD = {"temperature": 1.5, "max_tokens": 20}


@pytest.fixture(scope="module")
def engine(model_folder: Callable[..., Path]) -> Iterator[Open]:
    opened: dict[str, Engine] = {}

    def open_one(kind: str) -> Engine:
        if kind not in opened:
            opened[kind] = Engine(Backbone.load(model_folder(kind)), no_delta)
        return opened[kind]

    yield open_one
    for each in opened.values():
        each.close()


def no_delta(digest: str) -> Delta:
    raise AssertionError(f"nobody asked for {digest}")


def tokenizer_of(engine: Engine) -> PreTrainedTokenizerBase:
    assert engine.inputs.tokenizer is not None
    return engine.inputs.tokenizer


def run(engine: Engine, prompt: str | list[int] = "the cat", **params: object) -> Answer:
    [answer] = engine.language.complete(engine.prepare(None), [prompt], SamplingParams(**params))  # type: ignore[arg-type]
    return answer


@torch.inference_mode()
def greedy_ids(engine: Engine, ids: list[int], count: int) -> list[int]:
    """One token at a time, without a cache, by the largest logit."""
    new: list[int] = []
    base = engine.backbone
    for _ in range(count):
        if base.task.value == "seq2seq-lm":
            output = base.model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, *new]]))
        else:
            output = base.model(input_ids=torch.tensor([ids + new]))
        new.append(int(output.logits[0, -1].argmax()))
        if new[-1] == 3:
            break
    return new


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_greedy_takes_the_likeliest_token_each_time(engine: Open, kind: str) -> None:
    model = engine(kind)
    tokenizer = tokenizer_of(model)
    for prompt in ("the cat", "a dog runs", "my"):
        ids = tokenizer(prompt)["input_ids"]
        expected = greedy_ids(model, ids, 12)
        completion = run(model, prompt, temperature=0, max_tokens=12)
        assert completion.tokens == expected
        before = [] if kind == "t5" else ids  # a decoder of its own starts a text of its own
        whole = tokenizer.decode([*before, *expected], skip_special_tokens=True)
        assert tokenizer.decode(before, skip_special_tokens=True) + completion.text == whole
        assert completion.finish_reason == ("stop" if expected[-1] == 3 else "length")


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_seeds(engine: Open, kind: str) -> None:
    model = engine(kind)
    before = torch.random.get_rng_state()
    runs = [run(model, seed=seed, **LOUD) for seed in (0, 1, 2, 3, 0, 1)]
    assert runs[0] == runs[4] and runs[1] == runs[5]
    assert len({completion.text for completion in runs}) > 1
    assert len({run(model, **LOUD).text for _ in range(6)}) > 1, "without a seed answers differ"
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's numbers change"


def test_the_first_stop_string_ends_the_text(engine: Open) -> None:
    model = engine("llama")
    whole = run(model, seed=3, ignore_eos=True, **LOUD)
    words = whole.text.split()
    assert len(words) > 4
    for stop in [(words[1],), (words[3], words[1]), (words[1][1:],)]:
        completion = run(model, seed=3, stop=stop, ignore_eos=True, **LOUD)
        first = min(whole.text.index(text) for text in stop if text in whole.text)
        assert (completion.text, completion.finish_reason) == (whole.text[:first], "stop")
        assert len(completion.tokens) <= len(whole.tokens)
    assert run(model, seed=3, stop=("zebra",), ignore_eos=True, **LOUD) == whole


def test_an_end_token_is_a_stop(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    def loud(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Every state is pushed to where the end token's logit is largest.
        tensors["model.norm.weight"] = torch.zeros_like(tensors["model.norm.weight"])
        return tensors

    base = Backbone.load(pico.rewrite(model_folder("llama"), tmp_path / "loud", loud))
    base.model.generation_config.eos_token_id = 0  # all logits are 0 now: the first token wins
    with closing(Engine(base, no_delta)) as model:
        completion = run(model, temperature=0, max_tokens=10)
        assert (completion.finish_reason, completion.tokens, completion.text) == ("stop", [0], "")
        completion = run(model, temperature=0, max_tokens=10, ignore_eos=True)
        assert (completion.finish_reason, completion.tokens) == ("length", [0] * 10)


def test_token_ids_are_the_prompt_they_stand_for(engine: Open) -> None:
    model = engine("llama")
    ids = tokenizer_of(model)("the cat")["input_ids"]
    assert run(model, ids, temperature=0) == run(model, "the cat", temperature=0)


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-6])
def test_the_smallest_temperatures_are_greedy(engine: Open, temperature: float) -> None:
    model = engine("llama")
    assert run(model, temperature=temperature) == run(model, temperature=0)


@pytest.mark.parametrize(
    ("prompt", "params", "says"),
    [
        ("", {}, "no tokens"),
        ([], {}, "no tokens"),
        ([96], {}, "outside the vocabulary of 96"),
        ([-1], {}, "outside the vocabulary"),
        ([2**70], {}, "outside the vocabulary"),
        ("the " * 257, {"max_tokens": 1}, "257 tokens and max_tokens 1 exceed the 256 of"),
        ("the cat", {"max_tokens": 255}, "2 tokens and max_tokens 255 exceed the 256 of"),
    ],
)
def test_prompts_that_cannot_be_completed(
    engine: Open, prompt: str | list[int], params: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says) as error:
        run(engine("llama"), prompt, **params)
    assert error.value.param == "prompt"


def test_the_last_position_is_used(engine: Open) -> None:
    model = engine("llama")
    completion = run(model, "the " * 200, temperature=0, max_tokens=56)
    assert len(completion.tokens) == 56


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(
    model_folder: Callable[..., Path], tmp_path: Path, temperature: float, value: float
) -> None:
    def broken(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.norm.weight"][0] = value
        return tensors

    base = Backbone.load(pico.rewrite(model_folder("llama"), tmp_path / "broken", broken))
    with closing(Engine(base, no_delta)) as model, pytest.raises(NonFiniteValue, match="not finite"):
        run(model, temperature=temperature)
