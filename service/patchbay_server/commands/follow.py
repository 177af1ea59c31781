"""A job followed from outside: server-sent events, taken up again where the connection broke."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from patchbay_server.commands.client import Client
from patchbay_server.commands.failures import ServerError, ServerUnreachable

PATIENCE = 10
"""Times in a row that a broken connection is tried again."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
SILENCE_S = 60.0  # the server sends a sign of life every 15
FINAL = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Event:
    number: int
    kind: str
    data: dict[str, Any]

    @property
    def is_last(self) -> bool:
        return self.kind == "state" and self.data["state"] in FINAL


class JobClient(Client):
    """`Client` with what jobs need besides: whether a blob is there, and a job's events."""

    def has(self, path: str) -> bool:
        """By HEAD. Raises ServerUnreachable, ServerError."""
        with self._reached():
            response = self._client.head(path)
        if not response.is_success and response.status_code != 404:
            raise self._error(response.status_code, {})  # a HEAD has no body to say more
        return response.is_success

    def follow(self, job: str) -> Iterator[Event]:
        """Every event once, in order, up to the job's end, over as many connections as it takes.

        Raises ServerUnreachable when the server stays away; ServerError.
        """
        seen, failures = 0, 0
        while True:
            try:
                for event in self._events(job, seen):
                    seen, failures = event.number, 0
                    yield event
                    if event.is_last:
                        return
            except (ServerUnreachable, ServerError) as error:
                if failures >= PATIENCE or (isinstance(error, ServerError) and error.status < 500):
                    raise
            time.sleep(min(FIRST_PAUSE_S * 2**failures, LONGEST_PAUSE_S))
            failures += 1

    def _events(self, job: str, after: int) -> Iterator[Event]:
        path, headers = f"/v1/jobs/{job}/events", {"Last-Event-ID": str(after)}
        with self._reached(), self._client.stream("GET", path, headers=headers, timeout=SILENCE_S) as response:
            if not response.is_success:
                response.read()
                raise self._error(response.status_code, _object(response))
            for event in httpx2.EventSource(response):
                yield Event(int(event.id), event.event, json.loads(event.data))


def _object(response: httpx2.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
