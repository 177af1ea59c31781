"""A body's fields as the engine takes them. Knows nothing of models and prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from patchbay.engine.request import SamplingParams
from patchbay.errors import InputError
from patchbay_server.errors import UnsupportedParameter
from patchbay_server.generation_schemas import GenerationRequest


def check_supported(body: GenerationRequest) -> None:
    """Raises UnsupportedParameter for a field that has another value than its neutral ones."""
    for name, neutral in body.neutral.items():
        if getattr(body, name) not in neutral:
            allowed = " or ".join(json.dumps(value) for value in neutral)
            raise UnsupportedParameter(f"{name!r} is not supported: leave it at {allowed}", param=name)


def check_count(count: int, most: int) -> None:
    """Raises InputError for more answers than ever fit into the queue: asking again would not help."""
    if count > most:
        raise InputError(
            f"prompts times n are {count} answers, and this server takes {most} at a time: send several requests",
            param="n",
        )


def sampling(
    body: GenerationRequest, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None
) -> SamplingParams:
    """What the body says of sampling, and what its route makes of the rest."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k),  # -1 is off, too, as in vLLM
        min_p=body.min_p,
        seed=body.seed,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        stop=_listed(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _listed(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
