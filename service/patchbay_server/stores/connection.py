"""One Redis server, spoken to within deadlines: what is only read is asked again, a change is sent once.

A change whose answer was lost may have been made, and repeating it could fail for that very reason, or undo what
somebody else did in between: whoever asked for it has to look. Knows no keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry

from patchbay.errors import StoreFull, StoreUnavailable

CONNECT_S = 2.0
ANSWER_S = 2.0
"""How long the server may say nothing in the middle of an answer."""
RETRY_S = 1.0
"""So long after its first try a read may be tried again."""
FIRST_PAUSE_S = 0.05


class RedisServer:
    """The server at `redis://` or `rediss://`, or behind `client`, that is `part` of the service. Thread-safe. Raises
    StoreUnavailable for other URLs.

    What the URL says itself wins: `rediss://host/0?ssl_ca_certs=/etc/ca.pem`, `redis://host/0?socket_timeout=5`.
    """

    def __init__(
        self, url: str, part: str, *, text: bool, answer_s: float = ANSWER_S, client: redis.Redis | None = None
    ) -> None:
        self._part = part
        self.client = client or _connect(url, text, answer_s)
        # Never the URL itself: it may hold a password.
        self.place = "Redis at {host}:{port}".format_map(
            {"host": "?", "port": "?"} | self.client.get_connection_kwargs()
        )

    def ask(self, command: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The answer to a command that changes nothing, with several tries. Raises StoreUnavailable."""
        deadline, pause = time.monotonic() + RETRY_S, FIRST_PAUSE_S
        while True:
            try:
                return self.change(command, *args, **options)
            except StoreUnavailable as error:
                if not _is_lost(error) or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause *= 2

    def change(self, command: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The answer to a command that is sent once. Raises StoreFull, StoreUnavailable."""
        try:
            return command(*args, **options)
        except OutOfMemoryError as error:
            raise StoreFull(f"{self.place} is at its maxmemory: raise it, or delete deltas") from error
        except RedisError as error:
            if isinstance(error, RedisTimeout):
                # The other idle connections lead to the same place: each would have to be waited for in turn.
                self.client.connection_pool.disconnect(inuse_connections=False)
            raise StoreUnavailable(f"{self.place} does not answer as it should: {error}", part=self._part) from error

    def refuse_eviction(self) -> None:
        """Raises StoreUnavailable where the server deletes what it was given when memory runs short."""
        policy = self._policy()
        if policy != "noeviction":
            raise StoreUnavailable(
                f"{self.place} has maxmemory-policy {policy}, which deletes entries when memory runs short: "
                "set `maxmemory-policy noeviction`, or give Patchbay a Redis of its own",
                part=self._part,
            )

    def check_schema(self, key: str, known: int, subject: str) -> None:
        """Of a `subject` that is new here, `key` is set to the layout that is known; another is refused.

        Raises StoreUnavailable.
        """
        if self.ask(self.client.get, key) is None:
            self.change(self.client.set, key, known, nx=True)
        found = self.ask(self.client.get, key)
        if found != str(known):
            raise StoreUnavailable(
                f"the {subject} at {self.place} has schema {found} and this Patchbay knows {known}: upgrade Patchbay",
                part=self._part,
            )

    def close(self) -> None:
        self.client.close()

    def _policy(self) -> str | None:
        # CONFIG is often forbidden on managed servers; INFO rarely is.
        def configured() -> Any:
            try:
                return self.client.config_get("maxmemory-policy")
            except redis.ResponseError:
                return {}

        found = self.ask(configured)
        policy = found.get("maxmemory-policy") or found.get(b"maxmemory-policy")
        policy = policy or self.ask(self.client.info, "memory").get("maxmemory_policy")
        return policy.decode() if isinstance(policy, bytes) else policy


def _connect(url: str, text: bool, answer_s: float) -> redis.Redis:
    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=text,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_S,
            socket_timeout=answer_s,
            socket_keepalive=True,
        )
        client.connection_pool.make_connection()  # which connects nowhere yet, but reads the URL's options
        return client
    except (ValueError, TypeError) as error:
        raise StoreUnavailable(f"the URL of Redis cannot be read: {error}") from error


def _is_lost(error: StoreUnavailable) -> bool:
    """Whether the connection was, and not the command or the password refused."""
    cause = error.__cause__
    return isinstance(cause, redis.ConnectionError | RedisTimeout) and not isinstance(cause, redis.AuthenticationError)
