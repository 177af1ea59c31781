"""Holds and condemnations, asked of each catalog."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.store.backends import Store
from tests.store.test_catalog_contract import add, digest

from patchbay.errors import StoreUnavailable
from patchbay.store import Catalog

T, D = "default", digest("a")


def test_what_is_held_is_not_condemned(catalog: Catalog) -> None:
    catalog.hold(D, 60)
    assert not catalog.condemn(D, time.time(), 60)
    assert catalog.condemn(digest("b"), time.time(), 60)


def test_what_is_condemned_is_not_held_until_it_is_pardoned(catalog: Catalog) -> None:
    assert catalog.condemn(D, time.time(), 60)
    assert not catalog.condemn(D, time.time(), 60)
    with pytest.raises(StoreUnavailable, match="being removed"):
        catalog.hold(D, 60)
    catalog.pardon(D)
    catalog.hold(D, 60)
    catalog.pardon(D)  # ends no hold
    assert not catalog.condemn(D, time.time(), 60)


def test_both_end(catalog: Catalog) -> None:
    catalog.hold(D, 0.05)
    time.sleep(0.06)
    assert catalog.condemn(D, time.time(), 0.05)
    time.sleep(0.06)
    catalog.hold(D, 60)


def test_a_shorter_hold_shortens_none(catalog: Catalog) -> None:
    catalog.hold(D, 60)
    catalog.hold(D, 0)
    assert not catalog.condemn(D, time.time(), 60)


def test_versions_keep_their_blob_and_for_a_while_after(catalog: Catalog) -> None:
    add(catalog, "math", "a")
    add(catalog, "other", "a")
    assert not catalog.condemn(D, time.time() + 60, 60)
    catalog.delete_delta(T, "other")
    assert not catalog.condemn(D, time.time() + 60, 60)
    catalog.delete_delta(T, "math")
    assert not catalog.condemn(D, time.time() - 60, 60)
    assert catalog.condemn(D, time.time() + 60, 60)


def test_either_one_holds_or_one_removes(store: Store) -> None:
    first, second = store(), store()

    def hold() -> bool:
        try:
            first.hold(D, 60)
        except StoreUnavailable:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        held, condemned = threads.submit(hold), threads.submit(second.condemn, D, time.time(), 60)
        assert held.result() != condemned.result()
