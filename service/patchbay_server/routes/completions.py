"""Text completions in OpenAI's shape, whole and as streams."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Request, Response

from patchbay.architecture import Task
from patchbay.engine.engine import Engine
from patchbay.engine.patience import Patience
from patchbay.engine.recipes import Ready
from patchbay.engine.request import Request as Asking
from patchbay.engine.request import Sink
from patchbay.engine.texts import Texts
from patchbay.errors import InputError
from patchbay.store.keys import Scope
from patchbay_server.access import needs
from patchbay_server.answers.completions import CompletionWriter
from patchbay_server.answers.respond import respond
from patchbay_server.answers.sampling import check_count, check_supported, sampling
from patchbay_server.answers.writer import Asked
from patchbay_server.bodies import JsonRoute
from patchbay_server.deps import EngineDep, Resolver, ResolverDep
from patchbay_server.errors import UnsupportedParameter
from patchbay_server.generation_schemas import CompletionsRequest
from patchbay_server.inference_schemas import Completion
from patchbay_server.openapi import streamed

router = APIRouter(prefix="/v1/completions", tags=["inference"], route_class=JsonRoute)
Prompt = str | list[int]


@router.post("", responses=streamed(Completion))
@needs(Scope.INFER, 400, 404, 413, 422, 500, 504)
async def create_completion(
    request: Request, body: CompletionsRequest, engine: EngineDep, resolver: ResolverDep
) -> Response:
    """`n` completions a prompt, under the base, a delta or a merge."""
    return await respond(request, body, engine, partial(_prepare, body, engine, resolver))


def _prepare(body: CompletionsRequest, engine: Engine, resolver: Resolver, sink: Sink, patience: Patience) -> Asked:
    language, prompts = engine.language, _prompts(body)
    _check(body, engine)
    check_count(len(prompts) * body.n, language.limits.max_waiting)
    resolved, ready = resolver(body, patience)
    tokens = [_encode(language.texts, prompts, index, ready) for index in range(len(prompts))]
    params = sampling(body, body.max_tokens, body.logprobs, body.logprobs if body.echo else None)
    requests = language.texts.requests(ready, tokens, params, sink, n=body.n, deadline=patience.until)
    writer = CompletionWriter(requests, _echo(prompts, requests, body.n) if body.echo else None)
    about = resolved.describe(ready.path, engine.warnings(resolved.canonical))
    read = sum(map(len, tokens))
    return Asked(requests, read, writer, about, resolver.take(read + params.max_tokens * len(requests)))


def _check(body: CompletionsRequest, engine: Engine) -> None:
    check_supported(body)
    if body.best_of not in (None, body.n):
        raise UnsupportedParameter("'best_of' is not supported: leave it out, or at what 'n' is", param="best_of")
    if body.echo and body.logprobs is not None and engine.backbone.task is Task.SEQ2SEQ_LM:
        raise InputError(
            "a sequence-to-sequence model does not predict its prompt: leave out 'echo' or 'logprobs'", param="echo"
        )


def _encode(texts: Texts, prompts: Sequence[Prompt], index: int, ready: Ready) -> tuple[int, ...]:
    """Raises InputError, which says which of several prompts it is about."""
    try:
        return texts.encode(prompts[index], ready)
    except InputError as error:
        if len(prompts) == 1 or error.param != "prompt":
            raise
        raise InputError(f"prompt {index}: {error.message}", param="prompt") from error


def _prompts(body: CompletionsRequest) -> list[Prompt]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [item for item in prompt if isinstance(item, str | list)]


def _echo(prompts: Sequence[Prompt], requests: Sequence[Asking], n: int) -> list[str]:
    """Prompts as they came; those of tokens as the answers' texts are written."""
    return [
        prompt if isinstance(prompt, str) else str(asking.tokenizer.decode(prompt, skip_special_tokens=True))
        for prompt, asking in zip((prompt for prompt in prompts for _ in range(n)), requests, strict=True)
    ]
