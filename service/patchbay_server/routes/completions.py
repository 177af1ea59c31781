"""Text completions in OpenAI's shape, whole answers only."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from functools import partial
from threading import Event
from typing import Any

from fastapi import APIRouter, Request

from patchbay.engine.engine import Engine
from patchbay.engine.request import SamplingParams
from patchbay.engine.texts import Answer
from patchbay_server.bodies import JsonRoute
from patchbay_server.deps import EngineDep, Resolver, ResolverDep
from patchbay_server.errors import UnsupportedParameter
from patchbay_server.schemas import CompletionsRequest
from patchbay_server.threads import run_inference

router = APIRouter(prefix="/v1/completions", tags=["inference"], route_class=JsonRoute)
_NEUTRAL_ONLY = (
    "stream",
    "n",
    "best_of",
    "echo",
    "logprobs",
    "suffix",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)


@router.post("")
async def create_completion(
    request: Request, body: CompletionsRequest, engine: EngineDep, resolver: ResolverDep
) -> dict[str, Any]:
    """One completion a prompt, under the base, a delta or a merge."""
    return await run_inference(request, partial(_answer, body, engine, resolver))


def _answer(body: CompletionsRequest, engine: Engine, resolver: Resolver, cancelled: Event) -> dict[str, Any]:
    _check_supported(body)
    resolved, ready = resolver(body)
    params = SamplingParams(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        seed=body.seed,
    )
    prompts = [engine.language.texts.encode(prompt, ready) for prompt in _prompts(body)]
    answers = engine.language.complete(ready, prompts, params, cancelled=cancelled)
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": [_choice(index, answer) for index, answer in enumerate(answers)],
        "usage": _usage(prompts, answers),
        "patchbay": resolved.describe(ready.path, engine.warnings(resolved.canonical)),
    }


def _check_supported(body: CompletionsRequest) -> None:
    for name in _NEUTRAL_ONLY:
        neutral = CompletionsRequest.model_fields[name].default
        if getattr(body, name) != neutral:
            raise UnsupportedParameter(f"{name!r} is not supported yet; leave it at {json.dumps(neutral)}", param=name)


def _prompts(body: CompletionsRequest) -> list[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [item for item in prompt if isinstance(item, str | list)]


def _choice(index: int, answer: Answer) -> dict[str, Any]:
    return {"index": index, "text": answer.text, "finish_reason": answer.finish_reason, "logprobs": None}


def _usage(prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> dict[str, int]:
    prompt = sum(map(len, prompts))
    new = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
