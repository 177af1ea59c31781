"""Begun uploads of a catalog in Redis: the hash `{prefix}:uploads:TENANT`. Knows no bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from patchbay.store.base import Digest, check_name, is_name
from patchbay.store.uploads import MAX_BEGUN, Begun, no_upload, other_length, too_many
from patchbay_server.stores.connection import RedisServer
from patchbay_server.stores.redis_tenants import check_quota
from patchbay_server.stores.scripts import BEGIN_UPLOAD


class RedisUploads:
    """`Uploads` on `server`; `name(tenant)` is the key of its hash, `keys(tenant)` what scripts are given."""

    def __init__(self, server: RedisServer, name: Callable[[str], str], keys: Callable[[str], list[str]]) -> None:
        self._server, self._client, self._name, self._keys = server, server.client, name, keys
        self._begin = self._client.register_script(BEGIN_UPLOAD)

    def begin(self, tenant: str, digest: Digest, length: int, seconds: float) -> Begun:
        check_name(tenant, param="tenant")
        now = time.time()
        begun = Begun(tenant, digest, length, now + seconds)
        text = json.dumps({"length": length, "expires_at": begun.expires_at})
        args = [tenant, digest, text, length, repr(now), MAX_BEGUN]
        status, found, most = self._server.change(self._begin, keys=self._keys(tenant), args=args)
        if status == "too many":
            raise too_many(tenant)
        if status == "other length":
            raise other_length(digest, length, int(found))
        check_quota(tenant, length, status, found, most)
        return begun

    def get(self, tenant: str, digest: Digest) -> Begun:
        text = self._server.ask(self._client.hget, self._name(tenant), digest) if is_name(tenant) else None
        found = Begun(tenant, digest, **json.loads(text)) if text else None
        if found is None or found.expires_at <= time.time():
            raise no_upload(digest)
        return found

    def end(self, tenant: str, digest: Digest) -> None:
        self._server.change(self._client.hdel, self._name(tenant), digest)
