"""What every catalog promises of uploads under way: room that is kept, and given back."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.store.backends import Store
from tests.store.test_catalog_contract import digest
from tests.store.test_tenants import T, add, is_taken

from patchbay.errors import InvalidName, NotFound, QuotaExceeded, UploadConflict
from patchbay.store import Catalog
from patchbay.store.tenants import Limits, Usage
from patchbay.store.uploads import MAX_BEGUN

D = digest("a")


def test_one_that_was_begun_is_known_to_every_server_and_to_its_tenant_alone(store: Store) -> None:
    one, other = store(), store()
    before = time.time()
    begun = one.uploads.begin(T, D, 2**53 - 1, 60)
    assert (begun.tenant, begun.digest, begun.length) == (T, D, 2**53 - 1)
    assert before + 60 <= begun.expires_at <= time.time() + 60
    assert other.uploads.get(T, D) == begun
    for tenant, wanted in (("other", D), (T, digest("b")), ("No Name", D)):
        with pytest.raises(NotFound, match="no upload of sha256:"):
            one.uploads.get(tenant, wanted)
    with pytest.raises(InvalidName):
        one.uploads.begin("No Name", D, 1, 60)


def test_begun_again_it_lives_longer_and_keeps_its_room_once(catalog: Catalog) -> None:
    first = catalog.uploads.begin(T, D, 10, 60)
    again = catalog.uploads.begin(T, D, 10, 120)
    assert again.expires_at > first.expires_at + 50 and catalog.uploads.get(T, D) == again
    assert catalog.tenants.usage(T) == Usage(10, 0)
    with pytest.raises(UploadConflict, match="has 10 bytes, not 11"):
        catalog.uploads.begin(T, D, 11, 60)
    assert catalog.uploads.get(T, D) == again


def test_what_is_promised_counts_and_the_blob_takes_its_room_over(catalog: Catalog) -> None:
    catalog.tenants.set_limits(T, Limits(max_bytes=20))
    catalog.uploads.begin(T, D, 15, 60)
    catalog.uploads.begin("other", D, 15, 60)
    with pytest.raises(QuotaExceeded, match="has 15; 6 more do not fit"):
        catalog.add_blob(T, digest("b"), 6)
    with pytest.raises(QuotaExceeded):
        catalog.uploads.begin(T, digest("b"), 6, 60)
    assert catalog.add_blob(T, D, 15) and catalog.tenants.usage(T) == Usage(15, 0)
    with pytest.raises(NotFound):
        catalog.uploads.get(T, D)
    assert catalog.uploads.get("other", D).length == 15


def test_a_version_takes_over_the_room_of_its_blob(catalog: Catalog) -> None:
    catalog.tenants.set_limits(T, Limits(max_bytes=20))
    catalog.add_blob(T, digest("a"), 15)
    catalog.add_blob("other", digest("a"), 15)
    assert add(catalog, "a", 15)
    assert catalog.tenants.usage(T) == Usage(15, 1) and not catalog.has_blob(T, D)
    assert catalog.has_blob("other", D)
    catalog.tenants.set_limits(T, Limits())
    catalog.add_blob(T, digest("a"), 15)
    assert not add(catalog, "a", 15)
    assert catalog.tenants.usage(T) == Usage(15, 1)


def test_a_version_that_is_refused_leaves_its_blob(catalog: Catalog) -> None:
    catalog.add_blob(T, D, 15)
    catalog.tenants.set_limits(T, Limits(max_deltas=0))
    with pytest.raises(QuotaExceeded):
        add(catalog, "a", 15)
    assert catalog.has_blob(T, D) and catalog.tenants.usage(T) == Usage(15, 0)


def test_what_ended_or_expired_keeps_no_room(catalog: Catalog) -> None:
    catalog.uploads.begin(T, D, 10, 60)
    catalog.uploads.end(T, D)
    catalog.uploads.end(T, D)
    catalog.uploads.begin(T, digest("b"), 10, 0)
    for wanted in (D, digest("b")):
        with pytest.raises(NotFound):
            catalog.uploads.get(T, wanted)
    time.sleep(1.1)  # Redis counts in seconds
    assert catalog.tenants.usage(T) == Usage(0, 0)
    catalog.tenants.set_limits(T, Limits(max_bytes=9))
    with pytest.raises(QuotaExceeded):
        catalog.add_blob(T, digest("b"), 10)
    assert catalog.uploads.begin(T, digest("b"), 7, 60).length == 7, "another length than one that has expired"


def test_a_tenant_has_so_many_at_a_time(catalog: Catalog) -> None:
    for number in range(MAX_BEGUN):
        catalog.uploads.begin(T, digest(str(number)), 1, 60)
    with pytest.raises(QuotaExceeded, match=f"has {MAX_BEGUN} uploads under way"):
        catalog.uploads.begin(T, D, 1, 60)
    catalog.uploads.begin(T, digest("0"), 1, 60)
    catalog.uploads.begin("other", D, 1, 60)
    catalog.uploads.end(T, digest("0"))
    catalog.uploads.begin(T, D, 1, 60)


def test_two_at_once_never_take_the_same_room(store: Store) -> None:
    catalogs = [store() for _ in range(4)]
    catalogs[0].tenants.set_limits(T, Limits(max_bytes=100))

    def begin(number: int) -> bool:
        catalog, wanted = catalogs[number % 4], digest(str(number))
        return is_taken(lambda: catalog.uploads.begin(T, wanted, 9, 60).length == 9)

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(begin, range(32))) == 11
    assert catalogs[0].tenants.usage(T) == Usage(99, 0)
