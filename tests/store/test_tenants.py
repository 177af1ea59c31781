"""What every catalog promises of tenants: limits that are kept, and never passed by two at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.store.backends import Store

from patchbay.errors import InvalidName, QuotaExceeded
from patchbay.store import Catalog
from patchbay.store.hub import tenants_of
from patchbay.store.keys import Scope, new_key
from patchbay.store.tenants import Limits, Usage

T = "acme"


def digest(text: object) -> str:
    return f"sha256:{hashlib.sha256(str(text).encode()).hexdigest()}"


def add(catalog: Catalog, content: object, size: int, name: str = "math", tenant: str = T) -> bool:
    return catalog.add_version(tenant, name, digest(content), size, "{}")[1]


def is_taken(change: Callable[[], bool]) -> bool:
    try:
        return change()
    except QuotaExceeded:
        return False


def test_limits_are_kept_as_they_were_set(store: Store) -> None:
    one, other = store(), store()
    assert one.tenants.get_limits(T) == Limits() and one.tenants.list_limits() == {}
    limits = Limits(max_bytes=2**53 - 1, max_deltas=0, tokens_per_minute=1000)
    one.tenants.set_limits(T, limits)
    assert other.tenants.get_limits(T) == limits and other.tenants.list_limits() == {T: limits}
    other.tenants.set_limits(T, Limits(max_jobs=1, max_requests=2))
    assert one.tenants.get_limits(T) == Limits(max_jobs=1, max_requests=2)
    assert one.tenants.get_limits("other") == Limits()
    with pytest.raises(InvalidName):
        one.tenants.set_limits("No Name", limits)


def test_usage_is_what_lives(catalog: Catalog) -> None:
    add(catalog, "a", 5), add(catalog, "b", 7), add(catalog, "a", 5, "code")
    catalog.add_blob(T, digest("words"), 100)
    catalog.add_blob("other", digest("words"), 100)
    assert catalog.tenants.usage(T) == Usage(117, 3)
    catalog.delete_delta(T, "math", 1)
    assert catalog.tenants.usage(T) == Usage(112, 2)
    assert catalog.tenants.usage("nobody") == Usage(0, 0)


def test_bytes_and_versions_over_a_limit_are_refused_and_nothing_is_changed(catalog: Catalog) -> None:
    catalog.tenants.set_limits(T, Limits(max_bytes=20, max_deltas=2))
    add(catalog, "a", 8)
    with pytest.raises(QuotaExceeded, match="'acme' may store 20 bytes and has 8; 13 more do not fit") as refused:
        add(catalog, "b", 13)
    assert refused.value.param == "max_bytes"
    with pytest.raises(QuotaExceeded, match="may store 20 bytes"):
        catalog.add_blob(T, digest("words"), 13)
    assert catalog.tenants.usage(T) == Usage(8, 1) and not catalog.has_blob(T, digest("words"))
    assert add(catalog, "b", 12) and catalog.tenants.usage(T) == Usage(20, 2)
    with pytest.raises(QuotaExceeded, match="may store 2 versions of deltas and has 2") as refused:
        add(catalog, "c", 0)
    assert refused.value.param == "max_deltas"
    assert not add(catalog, "a", 8), "what is there already needs no room"
    assert add(catalog, "c", 8, tenant="other"), "another tenant's limits are another's"
    catalog.delete_delta(T, "math", 1)
    assert catalog.add_blob(T, digest("words"), 8) and not catalog.add_blob(T, digest("words"), 8)


def test_asking_for_room_says_the_same(catalog: Catalog) -> None:
    catalog.tenants.check_room(T, 10**15, 10)
    catalog.tenants.set_limits(T, Limits(max_bytes=20, max_deltas=1))
    catalog.tenants.check_room(T, 20, 1)
    for size, deltas in ((21, 0), (0, 2)):
        with pytest.raises(QuotaExceeded):
            catalog.tenants.check_room(T, size, deltas)


def test_two_at_once_never_pass_a_limit_together(store: Store) -> None:
    catalogs = [store() for _ in range(4)]
    catalogs[0].tenants.set_limits(T, Limits(max_bytes=100, max_deltas=7))

    def upload(number: int) -> bool:
        catalog = catalogs[number % 4]
        if number % 3:
            return is_taken(lambda: add(catalog, number, 9, f"name-{number % 5}"))
        return is_taken(lambda: catalog.add_blob(T, digest(number), 9))

    with ThreadPoolExecutor(8) as threads:
        taken = sum(threads.map(upload, range(48)))
    usage = catalogs[0].tenants.usage(T)
    assert taken == usage.num_bytes // 9 == 11 and usage.num_deltas <= 7


def test_all_tenants(catalog: Catalog) -> None:
    assert tenants_of(catalog) == ["default"]
    catalog.keys.add(new_key("acme", [Scope.READ])[1])
    catalog.tenants.set_limits("bolt", Limits())
    assert tenants_of(catalog) == ["acme", "bolt", "default"]
