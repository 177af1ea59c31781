"""Answers in a chat, in OpenAI's shape. Knows nothing of HTTP and of chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from patchbay.engine.request import Request, TokenLogprob, Update
from patchbay_server.answers.tokens import TokenTexts, at_least, bytes_of

ROLE = "assistant"


class ChatWriter:
    """A message each; in a stream first who speaks, then what."""

    prefix: ClassVar[str] = "chatcmpl"
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    def __init__(self, requests: Sequence[Request]) -> None:
        self.is_slow = any(request.params.logprobs is not None for request in requests)
        self._requests = requests
        self._tokens: dict[int, TokenTexts] = {}  # by answer, once it has begun
        self._begun: set[int] = set()

    def whole(self, update: Update) -> dict[str, Any]:
        message = {"role": ROLE, "content": update.text, "refusal": None}
        return self._choice(update, "message", message, self._logprobs(update))

    def chunks(self, update: Update) -> list[dict[str, Any]]:
        found = []
        if update.index not in self._begun:
            self._begun.add(update.index)
            found.append(self._choice(Update(update.index), "delta", {"role": ROLE, "content": ""}, None))
        logprobs = self._logprobs(update)
        if update.text or update.finish_reason or (logprobs and logprobs["content"]):
            delta = {"content": update.text} if update.text else {}
            found.append(self._choice(update, "delta", delta, logprobs))
        return found

    def _choice(self, update: Update, key: str, message: dict[str, Any], logprobs: Any) -> dict[str, Any]:
        return {"index": update.index, key: message, "logprobs": logprobs, "finish_reason": update.finish_reason}

    def _logprobs(self, update: Update) -> dict[str, Any] | None:
        if not self.is_slow:
            return None
        if update.index not in self._tokens:
            request = self._requests[update.index]
            self._tokens[update.index] = TokenTexts(request.tokenizer, request.context)
        texts = self._tokens[update.index]
        return {"content": [_token(texts, each) for each in update.logprobs], "refusal": None}


def _token(texts: TokenTexts, found: TokenLogprob) -> dict[str, Any]:
    assert found.logprob is not None, "only a prompt's first token has none"
    entry = _entry(texts.show(found.token), at_least(found.logprob))
    entry["top_logprobs"] = [_entry(text, logprob) for text, logprob in texts.top(found)]
    texts.push(found.token)
    return entry


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": bytes_of(text)}
