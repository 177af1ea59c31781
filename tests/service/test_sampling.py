"""Every parameter of sampling arrives, and probabilities are those of transformers under the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pico
from tests.service.serving import Serve, Served, assert_error, ok
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchbay.compress.reconstruct import reconstruct
from patchbay.engine.request import SamplingParams

ASKED = {"max_tokens": 30, "temperature": 1.5, "seed": 4, "ignore_eos": True}
ONLY_WORDS = {str(4 + number): 100 for number in range(len(pico.WORDS))}  # after four special tokens


def complete(served: Served, prompt: object = "the cat", **more: object) -> dict[str, Any]:
    return ok(served.post("/v1/completions", {"model": "base", "prompt": prompt, **more}))


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"top_k": 5}, {"top_k": 5}),
        ({"min_p": 0.3}, {"min_p": 0.3}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"presence_penalty": 2}, {"presence_penalty": 2.0}),
        ({"frequency_penalty": -2}, {"frequency_penalty": -2.0}),
        ({"repetition_penalty": 3}, {"repetition_penalty": 3.0}),
        ({"logit_bias": {"5": 4, "12": -100}}, {"logit_bias": {5: 4.0, 12: -100.0}}),
        ({"stop": "runs"}, {"stop": ("runs",)}),
        ({"stop_token_ids": list(range(4, 20))}, {"stop_token_ids": tuple(range(4, 20))}),
        ({"seed": 9}, {"seed": 9}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
    ],
    ids=str,
)
def test_parameters_arrive(llama: Served, given: dict[str, Any], meant: dict[str, Any]) -> None:
    """The library, asked for the same by hand, says the same; and something else without the parameter."""
    engine = llama.engine
    ready = engine.prepare(None)
    [wanted] = engine.language.complete(ready, ["the cat"], SamplingParams(**(ASKED | meant)))
    [plain] = engine.language.complete(ready, ["the cat"], SamplingParams(**ASKED))
    [choice] = complete(llama, **(ASKED | given))["choices"]
    assert (choice["text"], choice["finish_reason"]) == (wanted.text, wanted.finish_reason)
    assert (plain.text, plain.tokens) != (wanted.text, wanted.tokens)


def test_parameters_that_are_off(llama: Served) -> None:
    off = {"top_k": -1, "min_p": 0, "top_p": 1, "presence_penalty": 0, "logit_bias": {}, "stop": [], "best_of": 1}
    assert texts(complete(llama, **ASKED, **off)) == texts(complete(llama, **ASKED))
    assert texts(complete(llama, max_tokens=9, top_k=1)) == texts(complete(llama, max_tokens=9, temperature=0))


def test_end_tokens_end_and_can_be_ignored(llama: Served) -> None:
    """Token 3 is this model's end."""
    ended = complete(llama, max_tokens=5, logit_bias={"3": 100})
    assert [c["finish_reason"] for c in ended["choices"]] == ["stop"] and ended["usage"]["completion_tokens"] == 1
    ignored = complete(llama, max_tokens=5, logit_bias={"3": 100}, ignore_eos=True)
    assert [c["finish_reason"] for c in ignored["choices"]] == ["length"]
    assert ignored["usage"]["completion_tokens"] == 5


def test_several_answers_to_several_prompts(llama: Served) -> None:
    """A prompt's k-th is what its seed plus k gives alone; prompts are counted once."""
    asked = {**ASKED, "max_tokens": 6}
    found = complete(llama, ["the cat", "a dog runs"], n=3, best_of=3, **asked)
    assert [choice["index"] for choice in found["choices"]] == list(range(6))
    alone = [
        complete(llama, prompt, **asked | {"seed": 4 + k}) for prompt in ("the cat", "a dog runs") for k in range(3)
    ]
    assert texts(found) == [text for one in alone for text in texts(one)]
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 36, "total_tokens": 41}


def test_echo(llama: Served) -> None:
    options = {"max_tokens": 8, "temperature": 0}
    prompts = ["the cat", "the  zebra   cat"]  # as it was sent, not as tokens say it
    plain = texts(complete(llama, prompts, **options))
    assert texts(complete(llama, prompts, echo=True, **options)) == [a + b for a, b in zip(prompts, plain, strict=True)]
    ids = AutoTokenizer.from_pretrained(llama.backbone.folder)("the cat")["input_ids"]
    assert texts(complete(llama, ids, echo=True, **options)) == ["the cat" + plain[0]]
    only = complete(llama, prompts, echo=True, max_tokens=0)
    assert texts(only) == prompts and only["usage"]["completion_tokens"] == 0
    assert {choice["finish_reason"] for choice in only["choices"]} == {"length"}


def test_an_encoder_has_no_probabilities_of_its_prompt(serve: Serve) -> None:
    served = serve("t5")
    body = {"model": "base", "prompt": "the cat", "echo": True}
    assert texts(ok(served.post("/v1/completions", body)))[0].startswith("the cat")
    assert_error(served.post("/v1/completions", {**body, "logprobs": 1}), 422, "invalid_input", "echo")


@torch.inference_mode()
def test_probabilities_are_those_of_transformers(
    llama: Served, delta_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Of prompt and answer, whatever sampling made of them."""
    reconstruct(delta_file("llama"), llama.backbone.folder, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    body = {"model": "math", "prompt": "a dog runs", "echo": True, "logprobs": 3, "repetition_penalty": 1.3}
    [choice] = ok(llama.post("/v1/completions", {**body, **ASKED, "logit_bias": ONLY_WORDS}))["choices"]
    logprobs = choice["logprobs"]
    assert logprobs.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    ids = tokenizer.convert_tokens_to_ids([token.strip() for token in logprobs["tokens"]])
    assert len(ids) == 3 + 30 and set(ids) <= set(map(int, ONLY_WORDS))
    assert "".join(logprobs["tokens"]) == choice["text"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    wanted = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for before, (token, text) in enumerate(zip(ids[1:], logprobs["tokens"][1:], strict=True)):
        found, top = logprobs["token_logprobs"][before + 1], logprobs["top_logprobs"][before + 1]
        assert found == pytest.approx(float(wanted[before, token]), abs=1e-4)
        assert 3 <= len(top) <= 4, "three, however they are written, and the chosen one"
        assert top[text] == found and max(top.values()) == pytest.approx(float(wanted[before].max()), abs=1e-4)
        words = {key: value for key, value in top.items() if key.strip() in tokenizer.vocab}
        for key, value in words.items():
            assert value == pytest.approx(float(wanted[before, tokenizer.vocab[key.strip()]]), abs=1e-4)
    alone = {**body, **ASKED, "logit_bias": ONLY_WORDS, "echo": False}
    [answer] = ok(llama.post("/v1/completions", alone))["choices"]
    assert {key: value[3:] for key, value in logprobs.items() if key != "text_offset"} == {
        key: value for key, value in answer["logprobs"].items() if key != "text_offset"
    }
    assert [offset + len("a dog runs") for offset in answer["logprobs"]["text_offset"]] == logprobs["text_offset"][3:]


def test_probabilities_of_the_chosen_tokens_alone(llama: Served) -> None:
    [choice] = complete(llama, max_tokens=4, logprobs=0, temperature=0, logit_bias=ONLY_WORDS)["choices"]
    logprobs = choice["logprobs"]
    pairs = zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
    assert logprobs["top_logprobs"] == [{token: logprob} for token, logprob in pairs]


def test_a_request_can_say_how_long_it_waits(llama: Served) -> None:
    body = {"model": "base", "prompt": "the cat", "max_tokens": 200, "ignore_eos": True}
    assert_error(llama.post("/v1/completions", {**body, "timeout": 1e-9}), 504, "deadline_exceeded")
    ok(llama.post("/v1/completions", {**body, "timeout": 60}))
