"""Chats in OpenAI's shape, for models that came with a chat template. Whole answers and streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from fastapi import APIRouter, Request, Response

from patchbay.engine.engine import Engine
from patchbay.engine.patience import Patience
from patchbay.engine.recipes import Ready
from patchbay.engine.request import Request as Asking
from patchbay.engine.request import Sink
from patchbay.errors import InputError
from patchbay.store.keys import Scope
from patchbay_server.access import needs
from patchbay_server.answers.chat import ChatWriter
from patchbay_server.answers.respond import respond
from patchbay_server.answers.sampling import check_count, check_supported, sampling
from patchbay_server.answers.writer import Asked
from patchbay_server.bodies import JsonRoute
from patchbay_server.deps import EngineDep, Resolver, ResolverDep
from patchbay_server.errors import UnsupportedParameter
from patchbay_server.generation_schemas import ChatMessage, ChatRequest
from patchbay_server.inference_schemas import ChatCompletion
from patchbay_server.openapi import streamed

router = APIRouter(prefix="/v1/chat/completions", tags=["inference"], route_class=JsonRoute)
MAX_TOKENS = 1024  # of an answer, where the request does not say
# Templates know the older name; both mean whoever built what the user talks to.
_ROLES = {"developer": "system"}
_ANSWERS_ONLY = ("tool_calls", "function_call", "refusal", "audio", "annotations")


@router.post("", responses=streamed(ChatCompletion))
@needs(Scope.INFER, 400, 404, 413, 422, 500, 504)
async def create_chat_completion(
    request: Request, body: ChatRequest, engine: EngineDep, resolver: ResolverDep
) -> Response:
    """`n` answers to a conversation, under the base, a delta or a merge."""
    return await respond(request, body, engine, partial(_prepare, body, engine, resolver))


def _prepare(body: ChatRequest, engine: Engine, resolver: Resolver, sink: Sink, patience: Patience) -> Asked:
    language = engine.language
    check_supported(body)
    check_count(body.n, language.limits.max_waiting)
    messages = [_message(index, message) for index, message in enumerate(body.messages)]
    resolved, ready = resolver(body, patience)
    requests = _requests(body, engine, ready, messages, patience.until, sink)
    about = resolved.describe(ready.path, engine.warnings(resolved.canonical))
    read, most = len(requests[0].prompt), requests[0].params.max_tokens * len(requests)
    return Asked(requests, read, ChatWriter(requests), about, resolver.take(read + most))


def _requests(
    body: ChatRequest,
    engine: Engine,
    ready: Ready,
    messages: Sequence[Mapping[str, str]],
    until: float | None,
    sink: Sink,
) -> Sequence[Asking]:
    texts = engine.language.texts
    try:
        prompt = texts.encode(engine.inputs.chat(messages, ready.tokens), ready)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        params = sampling(body, _max_tokens(body, texts.room(prompt)), logprobs)
        return texts.requests(ready, [prompt], params, sink, n=body.n, deadline=until)
    except InputError as error:
        raise InputError(error.message, param="messages" if error.param == "prompt" else error.param) from error


def _max_tokens(body: ChatRequest, room: int) -> int:
    """One at least: whether that fits is for the engine to say."""
    asked = body.max_completion_tokens or body.max_tokens
    if asked is None:
        return max(1, min(MAX_TOKENS, room))
    if body.max_tokens not in (None, asked):
        raise InputError("'max_tokens' and 'max_completion_tokens' contradict each other: give one", param="max_tokens")
    return asked


def _message(index: int, message: ChatMessage) -> dict[str, str]:
    """Raises UnsupportedParameter for what only an answer with tools or sound has."""
    for name in _ANSWERS_ONLY:
        if getattr(message, name) not in (None, [], {}):
            place = f"messages.{index}.{name}"
            raise UnsupportedParameter(f"{place} is not supported: leave it out", param=place)
    content = message.content
    text = content if isinstance(content, str) else "\n".join(part.text for part in content)
    more = {"name": message.name, "tool_call_id": message.tool_call_id}
    found = {"role": _ROLES.get(message.role, message.role), "content": text}
    return found | {name: value for name, value in more.items() if value is not None}
