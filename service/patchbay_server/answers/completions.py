"""Text completions in OpenAI's shape. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from patchbay.engine.request import Request, TokenLogprob, Update
from patchbay_server.answers.tokens import TokenTexts, at_least


class CompletionWriter:
    """`echo` holds, for every answer, the text of its prompt that goes before it; None where none is asked for."""

    prefix: ClassVar[str] = "cmpl"
    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"

    def __init__(self, requests: Sequence[Request], echo: Sequence[str] | None) -> None:
        self.is_slow = any(request.params.logprobs is not None for request in requests)
        self._requests, self._echo = requests, echo
        self._tokens: dict[int, TokenTexts] = {}  # by answer, once it has begun
        self._begun: set[int] = set()

    def whole(self, update: Update) -> dict[str, Any]:
        return self._choice(update)

    def chunks(self, update: Update) -> list[dict[str, Any]]:
        choice = self._choice(update)
        shows = choice["text"] or choice["finish_reason"] or (choice["logprobs"] or {}).get("tokens")
        return [choice] if shows else []

    def _choice(self, update: Update) -> dict[str, Any]:
        before = self._echo[update.index] if self._echo and update.index not in self._begun else ""
        self._begun.add(update.index)
        logprobs = self._logprobs(update) if self.is_slow else None
        return {
            "index": update.index,
            "text": before + update.text,
            "logprobs": logprobs,
            "finish_reason": update.finish_reason,
        }

    def _logprobs(self, update: Update) -> dict[str, Any]:
        """Four lists, an entry a token; `text_offset` counts from the choice's beginning."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        request = self._requests[update.index]
        if update.prompt_logprobs is not None:
            _write(found, TokenTexts(request.tokenizer, ()), update.prompt_logprobs)
        if update.index not in self._tokens:
            start = len(self._echo[update.index]) if self._echo else 0
            self._tokens[update.index] = TokenTexts(request.tokenizer, request.context, start)
        _write(found, self._tokens[update.index], update.logprobs)
        return found


def _write(found: dict[str, list[Any]], texts: TokenTexts, logprobs: Sequence[TokenLogprob]) -> None:
    """The chosen token is among the likeliest, whether it is one of them or not."""
    for each in logprobs:
        text = texts.show(each.token)
        found["tokens"].append(text)
        found["text_offset"].append(texts.offset)
        if each.logprob is None:  # a prompt's first token
            found["token_logprobs"].append(None)
            found["top_logprobs"].append(None)
        else:
            likeliest = {text: at_least(each.logprob)}
            for (number, _), (other, logprob) in zip(each.top, texts.top(each), strict=True):
                if number == each.token:
                    continue
                # Parts of a character, and tokens without a text, are written alike.
                likeliest[other if other not in likeliest else f"token_id:{number}"] = logprob
            found["token_logprobs"].append(at_least(each.logprob))
            found["top_logprobs"].append(likeliest)
        texts.push(each.token)
