"""Blobs in Redis, for small teams that have nothing else: chunks of 8 MiB, capped in total. Knows no cache.

    {prefix}:blobs              digest -> {"size": bytes, "chunks": how many, "at": ID}
    {prefix}:chunk:ID:NUMBER    bytes

Chunks are written first and expire by themselves; one script makes them stay and names them, if all of them are there
and the cap is kept. So what is named is whole, and an upload that dies leaves nothing for long.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchbay.errors import StoreFull, StoreUnavailable
from patchbay.store.base import Digest, disk_errors
from patchbay.store.staging import Staging
from patchbay_server.stores.connection import RedisServer
from patchbay_server.stores.remote import CHUNK_BYTES

ANSWER_S = 15.0
"""For one chunk, so that a slow line still moves 560 kB a second."""
UNNAMED_S = 3600
"""How long chunks are kept that belong to no blob yet."""

_CHUNKS = """
local function chunk(at, number) return ARGV[1] .. ':chunk:' .. at .. ':' .. number end

local function drop(at, chunks)
  for number = 0, chunks - 1 do redis.call('UNLINK', chunk(at, number)) end
end

local function fits(size, cap)
  local total = size
  for _, text in ipairs(redis.call('HVALS', KEYS[1])) do total = total + cjson.decode(text).size end
  return total <= cap
end
"""

# prefix, size, cap -> 1 where so many more bytes fit
FITS = _CHUNKS + "return fits(tonumber(ARGV[2]), tonumber(ARGV[3])) and 1 or 0"

# prefix, size, cap, digest, chunks, id -> what came of it
NAME = (
    _CHUNKS
    + """
local size, cap, digest, chunks, at = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), ARGV[6]
local found = redis.call('HGET', KEYS[1], digest)
if found then
  if cjson.decode(found).at ~= at then drop(at, chunks) end
  return 'exists'
end
if not fits(size, cap) then
  drop(at, chunks)
  return 'full'
end
local stored = 0
for number = 0, chunks - 1 do stored = stored + redis.call('STRLEN', chunk(at, number)) end
if stored ~= size then return 'incomplete' end
redis.call('HSET', KEYS[1], digest, cjson.encode({size = size, chunks = chunks, at = at}))
for number = 0, chunks - 1 do redis.call('PERSIST', chunk(at, number)) end
return 'named'
"""
)

# prefix, digest
REMOVE = (
    _CHUNKS
    + """
local found = redis.call('HGET', KEYS[1], ARGV[2])
if not found then return 0 end
local blob = cjson.decode(found)
redis.call('HDEL', KEYS[1], ARGV[2])
drop(blob.at, blob.chunks)
return 1
"""
)


class RedisObjects:
    """`Objects` at `redis://` or `rediss://`, of at most `max_bytes` together.

    Keys carry one hash tag, so that they share a slot. Durable as far as the server is, as in `RedisCatalog`.
    """

    def __init__(self, url: str, max_bytes: int, prefix: str = "patchbay", *, answer_s: float = ANSWER_S) -> None:
        self._server = RedisServer(url, "the blob store", text=False, answer_s=answer_s)
        self.place = self._server.place
        self.staging: Staging | None = None  # nobody else may write here
        self._client = self._server.client
        self._max_bytes = max_bytes
        self._prefix = f"{{{prefix}}}"
        self._blobs = f"{self._prefix}:blobs"
        self._fits, self._name, self._remove = map(self._client.register_script, (FITS, NAME, REMOVE))
        try:
            self._server.refuse_eviction()
        except BaseException:
            self.close()
            raise

    def size(self, digest: Digest) -> int | None:
        found = self._found(digest)
        return None if found is None else int(found["size"])

    def read(self, digest: Digest, size: int) -> Iterator[bytes]:
        found = self._found(digest)
        for number in range(found["chunks"] if found else 0):
            chunk = self._server.ask(self._client.get, self._chunk(found["at"], number))
            if chunk is None:
                raise StoreUnavailable(
                    f"chunk {number} of {digest} is not at {self.place}: upload the same file again",
                    outside=f"a part of {digest} is missing in the blob store: upload the same file again",
                )
            yield chunk

    def write(self, digest: Digest, file: Path) -> None:
        with disk_errors(file):
            size = file.stat().st_size
        if not self._server.ask(self._fits, keys=[self._blobs], args=[self._prefix, size, self._max_bytes]):
            raise self._full(size)
        at = uuid.uuid4().hex
        chunks = self._write_chunks(at, file)
        args = [self._prefix, size, self._max_bytes, digest, chunks, at]
        # May be tried again: the second time it finds its own work.
        outcome = self._server.ask(self._name, keys=[self._blobs], args=args).decode()
        if outcome == "full":
            raise self._full(size)
        if outcome == "incomplete":
            raise StoreUnavailable(
                f"{digest} did not come to {self.place} as a whole: send it again",
                outside=f"{digest} did not come to the blob store as a whole: send it again",
            )

    def remove(self, digest: Digest) -> None:
        self._server.change(self._remove, keys=[self._blobs], args=[self._prefix, digest])

    def digests(self) -> set[Digest]:
        return {name.decode() for name in self._server.ask(self._client.hkeys, self._blobs)}

    def close(self) -> None:
        self._server.close()

    def _found(self, digest: Digest) -> Any:
        text = self._server.ask(self._client.hget, self._blobs, digest)
        return json.loads(text) if text else None

    def _chunk(self, at: str, number: int) -> str:
        return f"{self._prefix}:chunk:{at}:{number}"

    def _write_chunks(self, at: str, file: Path) -> int:
        """How many there are. Writing the same chunk again changes nothing, so it may be tried again like a read."""
        number = 0
        with disk_errors(file), file.open("rb") as source:
            while piece := source.read(CHUNK_BYTES):
                self._server.ask(self._client.set, self._chunk(at, number), piece, ex=UNNAMED_S)
                number += 1
        return number

    def _full(self, size: int) -> StoreFull:
        return StoreFull(
            f"the blobs at {self.place} may take {self._max_bytes} bytes together, and {size} more do not fit: raise "
            "PATCHBAY_REDIS_BLOB_BYTES, or keep blobs in files or in object storage"
        )
