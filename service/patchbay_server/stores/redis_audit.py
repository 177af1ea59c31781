"""The audit log of a catalog in Redis: the list `{prefix}:audit`, an entry each, oldest first."""

from __future__ import annotations

import json
from dataclasses import asdict

from patchbay.store.audit import Entry
from patchbay_server.stores.connection import RedisServer

PAGE = 1000
FORGET = """
local before, start, most, really = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local entries, old = redis.call('LRANGE', KEYS[1], start, start + most - 1), 0
while old < #entries and cjson.decode(entries[old + 1]).at < before do old = old + 1 end
if old > 0 and really then redis.call('LTRIM', KEYS[1], old, -1) end
return old
"""


class RedisAudit:
    """`Audit` on `server`."""

    def __init__(self, server: RedisServer, name: str) -> None:
        self._server, self._client, self._name = server, server.client, name
        self._forget = self._client.register_script(FORGET)

    def append(self, entry: Entry) -> None:
        self._server.change(self._client.rpush, self._name, json.dumps(asdict(entry)))

    def list_entries(self, tenant: str | None = None, limit: int = 100) -> list[Entry]:
        found: list[Entry] = []
        end = self._server.ask(self._client.llen, self._name)
        while end > 0 and len(found) < limit:
            start = max(0, end - PAGE)
            texts = self._server.ask(self._client.lrange, self._name, start, end - 1)
            page = [Entry(**json.loads(text)) for text in texts]
            found = [entry for entry in page if tenant in (None, entry.tenant)] + found
            end = start
        return found[-limit:] if limit > 0 else []

    def forget(self, before: float, *, dry_run: bool = False) -> int:
        """A page at a time: Redis does nothing else meanwhile."""
        count, page = 0, PAGE
        while page == PAGE:
            start = count if dry_run else 0
            page = self._server.change(self._forget, [self._name], [repr(before), start, PAGE, int(not dry_run)])
            count += page
        return count
