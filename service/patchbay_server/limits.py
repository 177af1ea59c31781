"""What tenants use while it happens: requests under way and tokens a minute, counted by each server for itself.

Whatever is taken is taken under one lock, before it is used: two requests at once cannot both have the last of it.
Knows no catalog and no HTTP, but for the fields in which answers say what is left and refusals when to come back (the
draft of RateLimit header fields, draft-ietf-httpapi-ratelimit-headers).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

from patchbay.errors import PatchbayError
from patchbay.store.tenants import Limits

WINDOW_S = 60.0
CONCURRENT = 'qu="concurrent-requests"'
A_MINUTE = f"w={WINDOW_S:.0f}"
Settle = Callable[[int], None]
"""Told how many tokens were used in the end."""


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit and what is left of it. After `reset_s` more of it may be left; None where no clock says when."""

    name: str
    most: int
    left: int
    unit: str
    reset_s: int | None = None


def fields(quotas: Sequence[Quota]) -> Mapping[str, str]:
    """`RateLimit-Policy` and `RateLimit`; empty where there is no limit."""
    if not quotas:
        return {}
    resets = ["" if quota.reset_s is None else f";t={quota.reset_s}" for quota in quotas]
    left = [f'"{quota.name}";r={quota.left}{reset}' for quota, reset in zip(quotas, resets, strict=True)]
    policies = [f'"{quota.name}";q={quota.most};{quota.unit}' for quota in quotas]
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}


class LimitReached(PatchbayError):
    """A tenant may not do more at the moment. `headers` say what the limit is and when to ask again."""

    code = "limit_reached"

    def __init__(self, message: str, *, param: str, quota: int, left: int, policy: str, retry_s: int = 1) -> None:
        super().__init__(message, param=param)
        reached = Quota(param.removeprefix("max_"), quota, left, policy, retry_s)
        self.headers: Mapping[str, str] = {"Retry-After": str(retry_s), **fields([reached])}


class OverLimit(PatchbayError):
    """One request that may take more than its tenant's limit is: no waiting helps."""

    code = "over_limit"


@dataclass(slots=True)
class Taken:
    """Tokens that were taken at a time, `tokens` of them."""

    at: float
    tokens: int


@dataclass(slots=True)
class _Use:
    requests: int = 0
    taken: deque[Taken] = field(default_factory=deque)

    def forget(self, now: float) -> None:
        """What was taken a minute ago counts no more."""
        while self.taken and self.taken[0].at <= now - WINDOW_S:
            self.taken.popleft()


class Meter:
    """What every tenant uses of one server at the moment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._uses: dict[str, _Use] = {}

    def enter(self, tenant: str, limits: Limits) -> None:
        """One more request is under way, until `leave`. Raises LimitReached."""
        with self._lock:
            use = self._uses.setdefault(tenant, _Use())
            most = limits.max_requests
            if most is not None and use.requests >= most:
                raise LimitReached(
                    f"{tenant!r} may have {most:,} requests under way at a time, and has: ask again when one has ended",
                    param="max_requests",
                    quota=most,
                    left=0,
                    policy=CONCURRENT,
                )
            use.requests += 1

    def leave(self, tenant: str) -> None:
        with self._lock:
            use = self._uses[tenant]
            use.requests -= 1
            if not use.requests and not use.taken:
                del self._uses[tenant]

    def quotas(self, tenant: str, limits: Limits) -> list[Quota]:
        """Its limits, and what is left of them when the request that asks is over: whoever reads the answer has it."""
        found: list[Quota] = []
        with self._lock:
            use, now = self._uses.get(tenant) or _Use(), self._clock()
            if (most := limits.max_requests) is not None:
                others = max(0, use.requests - 1)
                found.append(Quota("requests", most, max(0, most - others), CONCURRENT))
            if (most := limits.tokens_per_minute) is not None:
                use.forget(now)
                left = max(0, most - sum(each.tokens for each in use.taken))
                reset = math.ceil(use.taken[0].at + WINDOW_S - now) if use.taken else None
                found.append(Quota("tokens_per_minute", most, left, A_MINUTE, reset))
        return found

    def take(self, tenant: str, limits: Limits, tokens: int) -> Taken:
        """So many tokens, which count for a minute; `settle` gives back what was not used. Raises LimitReached, and
        OverLimit where they are more than a minute ever has.
        """
        with self._lock:
            use, now = self._uses.setdefault(tenant, _Use()), self._clock()
            use.forget(now)
            taken = Taken(now, tokens)
            if limits.tokens_per_minute is not None:
                _check_tokens(tenant, use.taken, taken, limits.tokens_per_minute)
                use.taken.append(taken)
            return taken

    def settle(self, taken: Taken, used: int) -> None:
        """It has used so many, and never more than were taken."""
        with self._lock:
            taken.tokens = min(taken.tokens, used)


def _check_tokens(tenant: str, earlier: deque[Taken], asked: Taken, most: int) -> None:
    left = most - sum(each.tokens for each in earlier)
    if asked.tokens <= left:
        return
    if asked.tokens > most:
        raise OverLimit(
            f"{tenant!r} may use {most:,} tokens a minute, and this request alone may take {asked.tokens:,}, prompts "
            "and answers: send fewer or shorter prompts, or ask for fewer tokens",
            param="tokens_per_minute",
        )
    raise LimitReached(
        f"{tenant!r} may use {most:,} tokens a minute, of which {max(0, left):,} are left, and this request may take "
        f"{asked.tokens:,}: ask again later",
        param="tokens_per_minute",
        quota=most,
        left=max(0, left),
        policy=A_MINUTE,
        retry_s=_seconds_until(earlier, asked, asked.tokens - left),
    )


def _seconds_until(earlier: deque[Taken], asked: Taken, missing: int) -> int:
    """When so many of the tokens will have been taken a minute ago."""
    for each in earlier:
        missing -= each.tokens
        if missing <= 0:
            return max(1, math.ceil(each.at + WINDOW_S - asked.at))
    return round(WINDOW_S)
