"""The HTTP answer of a request that generates text: whole, or as server-sent events. Knows nothing of prompts.

What fails before the first token is an ordinary error; after it an event of the stream, which ends then.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from patchbay.engine.engine import Engine
from patchbay.engine.patience import Patience
from patchbay.engine.request import Sink, Update
from patchbay.engine.texts import Answer
from patchbay.errors import PatchbayError
from patchbay_server.answers.generation import Clock, Generation
from patchbay_server.answers.writer import Asked
from patchbay_server.errors import error_body, status_of
from patchbay_server.generation_schemas import GenerationRequest
from patchbay_server.logs import note
from patchbay_server.threads import leaving, run_inference

logger = logging.getLogger("patchbay_server")
Prepare = Callable[[Sink, Patience], Asked]
DONE = b"data: [DONE]\n\n"


async def respond(request: Request, body: GenerationRequest, engine: Engine, prepare: Prepare) -> Response:
    """`prepare(sink, patience)` resolves, loads and tokenises, in a thread; none waits while tokens are generated."""
    generation = Generation(Clock())
    try:
        asked = await run_inference(request, partial(_submit, engine, prepare, generation), body.timeout)
        answering = _Answering(body, asked, generation)
        async with leaving(request, generation.give_up):
            if not body.stream:
                return await answering.whole()
            first = await anext(generation)
    except BaseException:
        generation.close()
        raise
    return _EventStream(answering.events(first), generation)


def _submit(engine: Engine, prepare: Prepare, generation: Generation, patience: Patience) -> Asked:
    generation.clock.taken = generation.clock.now()
    asked = prepare(generation.sink, patience)
    generation.submit(engine.language, asked.requests, asked.prompt_tokens, asked.settle)
    return asked


class _Answering:
    """What all parts of one answer have in common."""

    def __init__(self, body: GenerationRequest, asked: Asked, generation: Generation) -> None:
        self._body, self._asked, self._generation = body, asked, generation
        self._writer = asked.writer
        self._id = f"{self._writer.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._new_tokens = 0
        note(prompt_tokens=asked.prompt_tokens)
        self._wants_usage = body.stream_options is not None and body.stream_options.include_usage

    async def whole(self) -> Response:
        """Once all of it is there."""
        answers = [Answer() for _ in self._asked.requests]
        async for update in self._generation:
            self._count(update)
            answers[update.index].add(update)
        choices = await self._write(lambda: [self._writer.whole(_only(*each)) for each in enumerate(answers)])
        body = self._envelope(self._writer.whole_object, choices)
        return JSONResponse({**body, "usage": self._usage(), "patchbay": self._about()})

    async def events(self, first: Update) -> AsyncIterator[bytes]:
        """From the first update on to the end or the first error."""
        about: dict[str, Any] = {"patchbay": self._about()}
        try:
            async for update in _with(first, self._generation):
                self._count(update)
                for choice in await self._write(lambda now=update: self._writer.chunks(now)):  # type: ignore[misc]
                    yield self._event([choice], None, about)
                    about = {}
            if self._wants_usage:
                yield self._event([], self._usage(), about)
            yield DONE
        except PatchbayError as error:
            note(code=error.code)
            if status_of(error) >= 500:
                logger.error("a stream failed: %s", error.message)
            yield _data(error_body(error.outside, status_of(error), error.code, error.param))
        except Exception:
            note(code="internal_error")
            logger.exception("a stream failed")
            yield _data(error_body("the server failed; its log says why", 500, "internal_error"))

    def _count(self, update: Update) -> None:
        self._new_tokens += len(update.tokens)
        note(completion_tokens=self._new_tokens)

    async def _write(self, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        return await anyio.to_thread.run_sync(make) if self._writer.is_slow else make()

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._body.model,
            "choices": choices,
        }

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None, more: dict[str, Any]) -> bytes:
        told = {"usage": usage} if self._wants_usage else {}
        return _data({**self._envelope(self._writer.chunk_object, choices), **told, **more})

    def _usage(self) -> dict[str, int]:
        prompt, new = self._asked.prompt_tokens, self._new_tokens
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _about(self) -> dict[str, Any]:
        return {**self._asked.about, "timings": self._generation.clock.show()}


class _EventStream(StreamingResponse):
    """Closes its generation however it ends: also when the client leaves between two events."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], generation: Generation) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()


async def _with(first: Update, rest: Generation) -> AsyncIterator[Update]:
    yield first
    async for update in rest:
        yield update


def _only(index: int, answer: Answer) -> Update:
    """An answer as if it had come at once."""
    return Update(
        index,
        answer.text,
        tuple(answer.tokens),
        tuple(answer.logprobs),
        answer.prompt_logprobs,
        answer.finish_reason,
    )


def _data(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'), allow_nan=False)}\n\n".encode()
