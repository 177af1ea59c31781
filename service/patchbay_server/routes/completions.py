"""Text completions in OpenAI's shape, whole answers only."""

from __future__ import annotations

import json
import time
import uuid
from functools import partial
from threading import Event
from typing import Any

from fastapi import APIRouter, Request

from patchbay.engine.engine import Engine
from patchbay.models.generation import Completion, SamplingParams
from patchbay_server.bodies import JsonRoute
from patchbay_server.deps import EngineDep, Resolver, ResolverDep
from patchbay_server.errors import UnsupportedParameter
from patchbay_server.routes.items import check_path
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
    check_path(body)
    _check_supported(body)
    resolved, path = resolver(body.model, body.patch, body.head)
    params = SamplingParams(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        seed=body.seed,
    )
    completions = engine.complete(resolved.canonical, _prompts(body), params, cancelled)
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": [_choice(index, completion) for index, completion in enumerate(completions)],
        "usage": _usage(completions),
        "patchbay": resolved.describe(path, engine.warnings(resolved.canonical)),
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


def _choice(index: int, completion: Completion) -> dict[str, Any]:
    return {"index": index, "text": completion.text, "finish_reason": completion.finish_reason, "logprobs": None}


def _usage(completions: list[Completion]) -> dict[str, int]:
    prompt = sum(completion.prompt_tokens for completion in completions)
    new = sum(completion.completion_tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
