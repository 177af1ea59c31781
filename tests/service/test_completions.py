"""/v1/completions: what transformers' own `generate` says under the same weights, in OpenAI's shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pico
from tests.service.serving import Serve, Served, assert_error, ok
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from patchbay.compress.reconstruct import reconstruct
from patchbay_server.generation_schemas import CompletionsRequest

PROMPTS = ["the cat", "a dog runs and sees", "my"]
AUTO = {"llama": AutoModelForCausalLM, "gpt2": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}


def complete(served: Served, prompt: object = "the cat", **more: object) -> dict[str, Any]:
    return ok(served.post("/v1/completions", {"model": "math", "prompt": prompt, **more}))


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


@pytest.mark.parametrize("kind", AUTO)
@torch.inference_mode()
def test_answers_are_those_of_generate(
    serve: Serve, delta_file: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    served = serve(kind)
    served.upload("math", delta_file(kind))
    reconstruct(delta_file(kind), served.backbone.folder, tmp_path / "model")
    model = AUTO[kind].from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")

    def generate(prompt: str) -> str:
        """With the prompt before it, where the model goes on with that."""
        batch = tokenizer(prompt, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        output = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        return str(tokenizer.decode(output[0], skip_special_tokens=True))

    before = ["" if kind == "t5" else prompt for prompt in PROMPTS]
    found = texts(complete(served, PROMPTS, max_tokens=12, temperature=0))
    assert [a + b for a, b in zip(before, found, strict=True)] == list(map(generate, PROMPTS))
    sampled = texts(complete(served, PROMPTS, max_tokens=12, temperature=0.7, top_p=0.9, seed=5))
    assert sampled == texts(complete(served, PROMPTS, max_tokens=12, temperature=0.7, top_p=0.9, seed=5))
    assert any(sampled) and sampled != found


def test_shape_of_an_answer(llama: Served) -> None:
    record = ok(llama.get("/v1/deltas/math"))
    before = int(time.time())
    answer = complete(llama, ["the cat", "my"], max_tokens=5, temperature=0, user="somebody")
    assert answer["id"].startswith("cmpl-") and before <= answer["created"] <= time.time()
    assert answer == {
        "id": answer["id"],
        "object": "text_completion",
        "created": answer["created"],
        "model": "math",
        "choices": [
            {"index": 0, "text": answer["choices"][0]["text"], "finish_reason": "length", "logprobs": None},
            {"index": 1, "text": answer["choices"][1]["text"], "finish_reason": "length", "logprobs": None},
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13},
        "patchbay": {
            "path": "decoupled",
            "deltas": [{"name": "math", "version": 1, "digest": record["digest"], "weight": 1.0}],
            "recipe": "math",
            "warnings": [],
            "timings": answer["patchbay"]["timings"],
        },
    }
    timings = answer["patchbay"]["timings"]
    assert list(timings) == ["queue_ms", "prepare_ms", "first_token_ms", "total_ms"]
    assert 0 <= timings["queue_ms"] <= timings["first_token_ms"] <= timings["total_ms"]
    assert 0 < timings["prepare_ms"] <= timings["first_token_ms"]


def test_token_ids_are_the_text_they_stand_for(llama: Served) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama.backbone.folder)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    options = {"max_tokens": 8, "temperature": 0}
    written = texts(complete(llama, PROMPTS, **options))
    assert texts(complete(llama, ids, **options)) == written
    assert texts(complete(llama, ids[0], **options)) == written[:1]
    assert texts(complete(llama, PROMPTS[0], **options)) == written[:1]


def test_a_seed_makes_sampling_repeatable(llama: Served) -> None:
    options = {"max_tokens": 20, "temperature": 1.5}
    first = texts(complete(llama, seed=7, **options))
    assert texts(complete(llama, seed=7, **options)) == first
    others = {texts(complete(llama, seed=seed, **options))[0] for seed in range(8, 14)}
    assert len(others | set(first)) > 1


def test_without_a_seed_answers_differ(llama: Served) -> None:
    state = torch.random.get_rng_state()
    assert len({texts(complete(llama, max_tokens=20, temperature=1.5))[0] for _ in range(6)}) > 1
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_smallest_temperature_is_greedy(llama: Served) -> None:
    greedy = texts(complete(llama, max_tokens=10, temperature=0))
    assert texts(complete(llama, max_tokens=10, temperature=1e-300)) == greedy
    assert texts(complete(llama, max_tokens=10, temperature=1.0, top_p=1e-9)) == greedy


def test_stop_strings_end_the_text_and_are_not_in_it(llama: Served) -> None:
    [whole] = texts(complete(llama, max_tokens=20, seed=3, temperature=1.5))
    words = whole.split()
    assert len(words) > 3
    stop = words[2]
    for given in (stop, ["zebra", stop]):
        answer = complete(llama, max_tokens=20, seed=3, temperature=1.5, stop=given)
        [choice] = answer["choices"]
        assert choice["text"] == whole[: whole.index(stop)]
        assert choice["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] < 20
    assert texts(complete(llama, max_tokens=20, seed=3, temperature=1.5, stop="zebra")) == [whole]


def test_under_a_recipe(llama: Served) -> None:
    options = {"max_tokens": 12, "temperature": 0}
    merged = ok(llama.post("/v1/completions", {"model": "0.5*math + 2*code", "prompt": "the cat", **options}))
    patch = {"terms": [{"delta": "code", "weight": 2}, {"delta": "math", "weight": 0.5}]}
    patched = ok(llama.post("/v1/completions", {"model": "base", "prompt": "the cat", "patch": patch, **options}))
    assert texts(merged) == texts(patched)
    ok(llama.post("/v1/merges", {"name": "both", "recipe": "0.5*math + 2*code"}), 201)
    saved = ok(llama.post("/v1/completions", {"model": "both", "prompt": "the cat", **options}))
    assert texts(saved) == texts(merged)
    base = ok(llama.post("/v1/completions", {"model": "base", "prompt": "the cat", **options}))
    del base["patchbay"]["timings"]
    assert base["patchbay"] == {"path": "base", "deltas": [], "recipe": None, "warnings": []}


@pytest.mark.parametrize("change", [{"suffix": "end"}, {"best_of": 3}, {"best_of": 1, "n": 2}], ids=str)
def test_what_is_not_supported_is_refused_and_never_ignored(llama: Served, change: dict[str, object]) -> None:
    body = {"model": "math", "prompt": "the cat", **change}
    assert_error(llama.post("/v1/completions", body), 422, "unsupported_parameter", next(iter(change)))


def test_null_is_the_default(llama: Served) -> None:
    fields = CompletionsRequest.model_fields.keys() - {"model", "prompt"}
    body = {"seed": 3, "max_tokens": 16}
    nulls = dict.fromkeys(fields - body.keys())
    assert texts(complete(llama, **nulls, **body)) == texts(complete(llama, **body))


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"prompt": ""}, "invalid_input", "prompt"),
        ({"prompt": ["the", ""]}, "invalid_input", "prompt"),
        ({"prompt": [96]}, "invalid_input", "prompt"),
        ({"prompt": [-1]}, "invalid_input", "prompt"),
        ({"prompt": [10**30]}, "invalid_input", "prompt"),
        ({"prompt": "the " * 300}, "invalid_input", "prompt"),
        ({"max_tokens": 255}, "invalid_input", "prompt"),
        ({"prompt": []}, "invalid_request", "prompt"),
        ({"prompt": [[]]}, "invalid_request", "prompt.0"),
        ({"prompt": [True]}, "invalid_request", "prompt"),
        ({"prompt": ["the", 5]}, "invalid_request", "prompt"),
        ({"prompt": [[5], "the"]}, "invalid_request", "prompt"),
        ({"prompt": [5, 1.5]}, "invalid_request", "prompt"),
        ({"prompt": {}}, "invalid_request", "prompt"),
        ({"prompt": [[5, 1.5]]}, "invalid_request", "prompt.0.1"),
        ({"prompt": None}, "invalid_request", "prompt"),
        ({"prompt": ["a"] * 2049}, "invalid_request", "prompt"),
        ({"prompt": ["a"] * 1025}, "invalid_input", "n"),
        ({"prompt": ["a"] * 9, "n": 128}, "invalid_input", "n"),
        ({"prompt": "the cat", "logit_bias": {"96": 1}}, "invalid_input", "logit_bias"),
        ({"stop_token_ids": [96]}, "invalid_input", "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "invalid_request", "stop_token_ids.0"),
        ({"stop_token_ids": ["5"]}, "invalid_request", "stop_token_ids.0"),
        ({"logit_bias": {"5": 101}}, "invalid_request", "logit_bias.5"),
        ({"logit_bias": {"cat": 1}}, "invalid_request", "logit_bias.cat"),
        ({"logit_bias": {"05": 1}}, "invalid_request", "logit_bias.05"),
        ({"logit_bias": [5]}, "invalid_request", "logit_bias"),
        ({"presence_penalty": 2.1}, "invalid_request", "presence_penalty"),
        ({"frequency_penalty": -2.1}, "invalid_request", "frequency_penalty"),
        ({"repetition_penalty": 0}, "invalid_request", "repetition_penalty"),
        ({"min_p": 1.1}, "invalid_request", "min_p"),
        ({"top_k": -2}, "invalid_request", "top_k"),
        ({"n": 0}, "invalid_request", "n"),
        ({"n": 129}, "invalid_request", "n"),
        ({"logprobs": 6}, "invalid_request", "logprobs"),
        ({"logprobs": True}, "invalid_request", "logprobs"),
        ({"timeout": 0}, "invalid_request", "timeout"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens"),
        ({"temperature": -0.1}, "invalid_request", "temperature"),
        ({"temperature": "0.5"}, "invalid_request", "temperature"),
        ({"max_tokens": "4"}, "invalid_request", "max_tokens"),
        ({"max_tokens": True}, "invalid_request", "max_tokens"),
        ({"seed": "7"}, "invalid_request", "seed"),
        ({"presence_penalty": True}, "invalid_request", "presence_penalty"),
        ({"logit_bias": {"5": "3"}}, "invalid_request", "logit_bias.5"),
        ({"temperature": 2.1}, "invalid_request", "temperature"),
        ({"top_p": 0}, "invalid_request", "top_p"),
        ({"top_p": 1.1}, "invalid_request", "top_p"),
        ({"seed": -1}, "invalid_request", "seed"),
        ({"stop": ""}, "invalid_request", "stop"),
        ({"stop": ["a", ""]}, "invalid_request", "stop.1"),
        ({"stop": ["a"] * 5}, "invalid_request", "stop"),
        ({"unheard_of": 1}, "invalid_request", "unheard_of"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_refusals(llama: Served, change: dict[str, object], code: str, param: str) -> None:
    body = {"model": "math", "prompt": "the cat", **change}
    assert_error(llama.post("/v1/completions", body), 422, code, param)


@pytest.mark.parametrize("field", ["prompt", "stop"])
def test_text_that_is_no_text(llama: Served, field: str) -> None:
    """Half of a surrogate pair is valid JSON and no character."""
    body = '{"model": "math", "prompt": "the cat"}' if field == "stop" else '{"model": "math"}'
    content = body[:-1] + f', "{field}": "\\ud800"}}'
    response = llama.client.post(
        "/v1/completions", content=content.encode(), headers={"content-type": "application/json"}
    )
    assert_error(response, 422, "invalid_request", field)


def test_the_odd_one_among_prompts_is_named(llama: Served) -> None:
    answer = llama.post("/v1/completions", {"model": "base", "prompt": [[1, 2], [3], "the cat", 4]})
    assert "item 2 is none of these" in assert_error(answer, 422, "invalid_request", "prompt")


@pytest.mark.parametrize("temperature", [0, 1])
def test_weights_out_of_range_are_refused(
    llama: Served, finetune_folder: Callable[..., Path], tmp_path: Path, temperature: float
) -> None:
    tuned = finetune_folder("llama", 3, scale=1e37)
    llama.upload("huge", pico.delta_file(llama.backbone.folder, tuned, tmp_path / "huge.safetensors", values="fp32"))
    body = {"model": "10*huge", "prompt": "the cat", "temperature": temperature}
    assert_error(llama.post("/v1/completions", body), 422, "non_finite_value", "model")


@pytest.mark.parametrize("kind", ["vit", "bert_encoder"])
def test_a_backbone_that_cannot_write_says_so(serve: Serve, kind: str) -> None:
    response = serve(kind).post("/v1/completions", {"model": "base", "prompt": "the cat"})
    assert "cannot complete text" in assert_error(response, 400, "unsupported_task", "model")
