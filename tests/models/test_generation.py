from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from transformers import PreTrainedTokenizerBase

from patchbay.backbone import Backbone
from patchbay.errors import InputError, NonFiniteValue
from patchbay.models.generation import Completion, SamplingParams, complete
from patchbay.models.inputs import Inputs

Load = Callable[..., Backbone]
LOUD = {"temperature": 1.5, "max_tokens": 20}


def tokenizer_of(base: Backbone) -> PreTrainedTokenizerBase:
    tokenizer = Inputs(base).tokenizer
    assert tokenizer is not None
    return tokenizer


def run(base: Backbone, prompt: str | list[int] = "the cat", **params: object) -> Completion:
    return complete(base, tokenizer_of(base), prompt, SamplingParams(**params))  # type: ignore[arg-type]


@torch.inference_mode()
def greedy_ids(base: Backbone, ids: list[int], count: int) -> list[int]:
    """One token at a time, without a cache, by the largest logit."""
    new: list[int] = []
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
def test_greedy_takes_the_likeliest_token_each_time(backbone: Load, kind: str) -> None:
    base = backbone(kind)
    tokenizer = tokenizer_of(base)
    for prompt in ("the cat", "a dog runs", "my"):
        ids = tokenizer(prompt)["input_ids"]
        expected = greedy_ids(base, ids, 12)
        completion = run(base, prompt, temperature=0, max_tokens=12)
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert (completion.prompt_tokens, completion.completion_tokens) == (len(ids), len(expected))
        assert completion.finish_reason == ("stop" if expected[-1] == 3 else "length")


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_seeds(backbone: Load, kind: str) -> None:
    base = backbone(kind)
    before = torch.random.get_rng_state()
    runs = [run(base, seed=seed, **LOUD) for seed in (0, 1, 2, 3, 0, 1)]
    assert runs[0] == runs[4] and runs[1] == runs[5]
    assert len({completion.text for completion in runs}) > 1
    assert len({run(base, **LOUD).text for _ in range(6)}) > 1, "without a seed answers differ"
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's numbers change"


def test_the_first_stop_string_ends_the_text(backbone: Load) -> None:
    base = backbone("llama")
    whole = run(base, seed=3, **LOUD)
    words = whole.text.split()
    assert len(words) > 4
    for stop in [(words[1],), (words[3], words[1]), (words[1][1:],)]:
        completion = run(base, seed=3, stop=stop, **LOUD)
        first = min(whole.text.index(text) for text in stop if text in whole.text)
        assert (completion.text, completion.finish_reason) == (whole.text[:first], "stop")
        assert completion.completion_tokens <= whole.completion_tokens
    assert run(base, seed=3, stop=("zebra",), **LOUD) == whole


def test_an_end_token_is_a_stop(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    def loud(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Every state is pushed to where the end token's logit is largest.
        tensors["model.norm.weight"] = torch.zeros_like(tensors["model.norm.weight"])
        return tensors

    base = Backbone.load(pico.rewrite(model_folder("llama"), tmp_path / "loud", loud))
    base.model.generation_config.eos_token_id = 0  # all logits are 0 now: the first token wins
    completion = run(base, temperature=0, max_tokens=10)
    assert (completion.finish_reason, completion.completion_tokens, completion.text) == ("stop", 1, "")


def test_token_ids_are_the_prompt_they_stand_for(backbone: Load) -> None:
    base = backbone("llama")
    ids = tokenizer_of(base)("the cat")["input_ids"]
    assert run(base, ids, temperature=0) == run(base, "the cat", temperature=0)


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-6])
def test_the_smallest_temperatures_are_greedy(backbone: Load, temperature: float) -> None:
    base = backbone("llama")
    assert run(base, temperature=temperature) == run(base, temperature=0)


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
    backbone: Load, prompt: str | list[int], params: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says) as error:
        run(backbone("llama"), prompt, **params)
    assert error.value.param == "prompt"


def test_the_last_position_is_used(backbone: Load) -> None:
    base = backbone("llama")
    completion = run(base, "the " * 200, temperature=0, max_tokens=56)
    assert completion.prompt_tokens == 200 and completion.completion_tokens <= 56


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(
    model_folder: Callable[..., Path], tmp_path: Path, temperature: float, value: float
) -> None:
    def broken(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.norm.weight"][0] = value
        return tensors

    base = Backbone.load(pico.rewrite(model_folder("llama"), tmp_path / "broken", broken))
    with pytest.raises(NonFiniteValue, match="not finite"):
        run(base, temperature=temperature)
