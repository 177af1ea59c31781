"""What names stood for a moment ago, for requests that come while the catalog is away. Knows no database.

While the catalog answers, nothing older than `MAX_AGE_S` is used: a change made on another server is seen here that
much later at the most, one that was made here at once. While it does not answer, what was known last is used. Changes
and lists are never remembered: they fail with the catalog.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any, NamedTuple, TypeVar, cast

from patchbay.errors import NotFound, StoreUnavailable
from patchbay.store.audit import Audit
from patchbay.store.base import Catalog, DeltaRecord, Digest, MergeRecord, is_name
from patchbay.store.keys import Keys
from patchbay.store.refusals import no_merge
from patchbay.store.snapshot import Snapshots
from patchbay.store.tenants import Tenants
from patchbay.store.uploads import Uploads

MAX_AGE_S = 1.0
LOOK_S = 0.5
MAX_RECORDS = 10_000
MERGE = "merge"
Answer = TypeVar("Answer")
Record = TypeVar("Record", DeltaRecord, MergeRecord)
logger = logging.getLogger("patchbay_server.stores")


class _Key(NamedTuple):
    tenant: str
    name: str
    version: int | str | None  # MERGE for the merge of that name


@dataclass(frozen=True, slots=True)
class _Known:
    """`asked_at`: when the catalog was asked, by the monotonic clock. What it said may have changed from then on."""

    record: DeltaRecord | MergeRecord
    asked_at: float


class RememberedCatalog:
    """A `Catalog` in front of one on another machine. Closes it, too.

    Once the catalog was found away, a thread looks every `LOOK_S` whether it is back. Until then every call is
    answered at once, from memory or with StoreUnavailable: they do not each wait for a deadline.
    """

    remembers = True

    def __init__(self, catalog: Catalog, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog, self._clock = catalog, clock
        self._lock = Lock()
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._num_changes = 0
        self._lost: StoreUnavailable | None = None
        self._closed = Event()
        self.keys = cast(Keys, _Asked(catalog.keys, self._ask))
        self.tenants = cast(Tenants, _Asked(catalog.tenants, self._ask))
        self.audit = cast(Audit, _Asked(catalog.audit, self._ask))
        self.snapshots = cast(Snapshots, _Asked(catalog.snapshots, self._ask))
        self.uploads = cast(Uploads, _Asked(catalog.uploads, self._ask))

    def get_delta(self, tenant: str, name: str, version: int | None = None) -> DeltaRecord:
        return self._recall(_Key(tenant, name, version), lambda: self._catalog.get_delta(tenant, name, version))

    def get_merge(self, tenant: str, name: str) -> MergeRecord:
        # Requests ask first whether what they name is a merge. A name is never both, and an expression is neither.
        if not is_name(name) or self._is_delta(tenant, name):
            raise no_merge(name, ())
        return self._recall(_Key(tenant, name, MERGE), lambda: self._catalog.get_merge(tenant, name))

    def add_version(
        self, tenant: str, name: str, digest: Digest, size: int, summary: str, activate: bool = True
    ) -> tuple[DeltaRecord, bool]:
        with self._changing(tenant, name):
            return self._catalog.add_version(tenant, name, digest, size, summary, activate)

    def set_current(self, tenant: str, name: str, version: int, expected: int | None = None) -> DeltaRecord:
        with self._changing(tenant, name):
            return self._catalog.set_current(tenant, name, version, expected)

    def delete_delta(self, tenant: str, name: str, version: int | None = None) -> list[DeltaRecord]:
        with self._changing(tenant, name):
            return self._catalog.delete_delta(tenant, name, version)

    def save_merge(self, tenant: str, name: str, recipe: str, replace: bool = False) -> MergeRecord:
        with self._changing(tenant, name):
            return self._catalog.save_merge(tenant, name, recipe, replace)

    def delete_merge(self, tenant: str, name: str) -> None:
        with self._changing(tenant, name):
            self._catalog.delete_merge(tenant, name)

    def find_digest(self, tenant: str, digest: Digest) -> list[DeltaRecord]:
        return self._ask(lambda: self._catalog.find_digest(tenant, digest))

    def list_deltas(self, tenant: str) -> list[DeltaRecord]:
        return self._ask(lambda: self._catalog.list_deltas(tenant))

    def list_versions(self, tenant: str, name: str) -> list[DeltaRecord]:
        return self._ask(lambda: self._catalog.list_versions(tenant, name))

    def list_merges(self, tenant: str) -> list[MergeRecord]:
        return self._ask(lambda: self._catalog.list_merges(tenant))

    def live_digests(self) -> set[Digest]:
        return self._ask(self._catalog.live_digests)

    def add_blob(self, tenant: str, digest: Digest, size: int) -> bool:
        return self._ask(lambda: self._catalog.add_blob(tenant, digest, size))

    def forget_blob(self, digest: Digest) -> None:
        self._ask(lambda: self._catalog.forget_blob(digest))

    def has_blob(self, tenant: str, digest: Digest) -> bool:
        return self._ask(lambda: self._catalog.has_blob(tenant, digest))

    def all_versions(self) -> list[DeltaRecord]:
        return self._ask(self._catalog.all_versions)

    def pinned_digests(self) -> set[Digest]:
        return self._ask(self._catalog.pinned_digests)

    def hold(self, digest: Digest, seconds: float) -> None:
        # A blob that is being removed is refused in the words of a catalog that is away, and that is an answer.
        self._refuse_if_lost()
        self._catalog.hold(digest, seconds)

    def condemn(self, digest: Digest, since: float, seconds: float) -> bool:
        return self._ask(lambda: self._catalog.condemn(digest, since, seconds))

    def pardon(self, digest: Digest) -> None:
        self._ask(lambda: self._catalog.pardon(digest))

    def ping(self) -> None:
        self._ask(self._catalog.ping)

    def close(self) -> None:
        self._closed.set()
        self._catalog.close()

    def _recall(self, key: _Key, ask: Callable[[], Record]) -> Record:
        now = self._clock()
        with self._lock:
            known, lost, num_changes = self._known.get(key), self._lost, self._num_changes
        if known is not None and (lost is not None or now - known.asked_at < MAX_AGE_S):
            return cast(Record, known.record)
        try:
            record = self._ask(ask)
        except NotFound:
            self._forget(key)
            raise
        except StoreUnavailable:
            if known is None:
                raise
            return cast(Record, known.record)
        self._remember(key, _Known(record, now), num_changes)
        return record

    def _ask(self, ask: Callable[[], Answer]) -> Answer:
        """The catalog's answer, unless it is known to be away. Raises StoreUnavailable."""
        self._refuse_if_lost()
        try:
            return ask()
        except StoreUnavailable as error:
            self._went_away(error)
            raise

    def _refuse_if_lost(self) -> None:
        with self._lock:
            if self._lost is not None:
                raise StoreUnavailable(self._lost.message, outside=self._lost.outside)

    def _remember(self, key: _Key, known: _Known, num_changes: int) -> None:
        with self._lock:
            if num_changes != self._num_changes:
                return  # this may be what was there before a change that was made here
            keys = {key}
            if isinstance(known.record, DeltaRecord):
                keys.add(key._replace(version=known.record.version))  # while the catalog is away, math@3 is known too
            for one in keys:
                self._known[one] = known
                self._known.move_to_end(one)
            while len(self._known) > MAX_RECORDS:
                self._known.popitem(last=False)

    def _forget(self, key: _Key) -> None:
        """What is not there. Where a version is not, the others and the current one are asked for anew."""
        with self._lock:
            for one in [one for one in self._known if one[:2] == key[:2]]:
                if (one.version == MERGE) == (key.version == MERGE):
                    del self._known[one]

    def _is_delta(self, tenant: str, name: str) -> bool:
        """As far as is known here; what may have changed counts only while the catalog is away."""
        now = self._clock()
        with self._lock:
            known = self._known.get(_Key(tenant, name, None))
            return known is not None and (self._lost is not None or now - known.asked_at < MAX_AGE_S)

    def _went_away(self, error: StoreUnavailable) -> None:
        with self._lock:
            if self._lost is None:
                logger.warning("%s; names stand for what they stood for last", error.message)
                Thread(target=self._look, daemon=True).start()
            self._lost = error

    def _look(self) -> None:
        while not self._closed.wait(LOOK_S):
            try:
                self._catalog.ping()
            except StoreUnavailable:
                continue
            with self._lock:
                self._lost = None
            logger.warning("the catalog answers again")
            return

    @contextmanager
    def _changing(self, tenant: str, name: str) -> Iterator[None]:
        """After a change its name is asked for anew. One that failed may have been made: what was known before it is
        kept for as long as the catalog is away.
        """
        self._refuse_if_lost()
        keep = False
        try:
            yield
        except StoreUnavailable:
            keep = True
            raise
        finally:
            self._doubt(tenant, name, keep=keep)

    def _doubt(self, tenant: str, name: str, *, keep: bool) -> None:
        with self._lock:
            self._num_changes += 1
            for key in [key for key in self._known if key[:2] == (tenant, name)]:
                if keep:
                    self._known[key] = _Known(self._known[key].record, -math.inf)
                else:
                    del self._known[key]


class _Asked:
    """Keys, tenants, audit and uploads of a catalog: refused at once while it is away. Who asks remembers."""

    def __init__(self, part: object, ask: Callable[[Callable[[], Any]], Any]) -> None:
        self._part, self._ask = part, ask

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)
        return lambda *args, **options: self._ask(lambda: method(*args, **options))
