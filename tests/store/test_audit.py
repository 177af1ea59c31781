"""What every catalog promises of its audit log."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.store.backends import Store

from patchbay.store import SqliteCatalog
from patchbay.store.audit import MAX_TEXT, Entry, printable
from patchbay_server.stores import redis_audit


def entry(number: int, tenant: str = "acme") -> Entry:
    return Entry(1795312857.25 + number, tenant, "a-key", "PUT /v1/x", f"math@{number}", "200")


def test_entries_are_listed_as_they_were_added(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_audit, "PAGE", 4)
    one, other = store(), store()
    added = [entry(number, "acme" if number % 3 else "bolt") for number in range(20)]
    for each in added:
        one.audit.append(each)
    assert other.audit.list_entries() == added
    assert other.audit.list_entries(limit=7) == added[-7:]
    assert other.audit.list_entries("bolt") == added[::3]
    assert other.audit.list_entries("bolt", 2) == added[::3][-2:]
    assert other.audit.list_entries("nobody") == []


def test_many_at_once_are_all_there(store: Store) -> None:
    catalogs = [store(), store()]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: catalogs[number % 2].audit.append(entry(number)), range(60)))
    assert {each.subject for each in catalogs[0].audit.list_entries()} == {f"math@{number}" for number in range(60)}


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_the_oldest_are_forgotten_up_to_a_time(store: Store, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr(redis_audit, "PAGE", page)
    audit = store().audit
    assert audit.forget(entry(9).at) == 0, "there is nothing yet"
    added = [entry(number) for number in [0, 1, 2, 3, 4, 5, 1, 6]]  # the second 1 came with an import
    for each in added:
        audit.append(each)
    assert audit.forget(entry(0).at) == 0
    assert audit.forget(entry(3).at, dry_run=True) == 3 and audit.list_entries() == added
    assert audit.forget(entry(3).at) == 3 and audit.list_entries() == added[3:]
    assert audit.forget(entry(6).at) == 4 and audit.list_entries() == added[7:]
    assert audit.forget(entry(7).at) == 1 and audit.list_entries() == []
    audit.append(added[0])
    assert audit.list_entries() == added[:1]


@pytest.mark.parametrize("change", ["UPDATE audit SET result = '200'", "DELETE FROM audit"])
def test_the_file_itself_refuses_to_change_them(tmp_path: Path, change: str) -> None:
    path = tmp_path / "catalog.db"
    with closing(SqliteCatalog(path)) as catalog:
        for number in range(3):
            catalog.audit.append(entry(number))
        assert catalog.audit.forget(entry(1).at) == 1
    with closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.IntegrityError, match="never changed"):
        db.execute(change)


@given(st.text(st.characters(codec=None), max_size=300))
def test_whatever_was_sent_is_written_as_ascii(text: str) -> None:
    shown = printable(text)
    assert shown.isascii() and len(shown) <= MAX_TEXT
    assert shown == text or not text.isascii() or len(text) > MAX_TEXT
