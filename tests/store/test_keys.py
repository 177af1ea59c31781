"""What a key is, and what every catalog promises of those it keeps."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.store.backends import Store

from patchbay.errors import InvalidKey, InvalidName, NotFound
from patchbay.store import Catalog
from patchbay.store.keys import KeyRecord, Scope, hash_secret, new_key, read_scopes, split_key, write_scopes

READ = [Scope.READ]
ABSENT = "0" * 16
NO_IDS = ["", "x", ABSENT, ABSENT.upper() + "F", "f" * 17, "\ud800", "../x", "a\x00b"]


def make(catalog: Catalog, tenant: str = "acme", expires_at: float | None = None) -> tuple[str, KeyRecord]:
    text, record = new_key(tenant, READ, expires_at)
    catalog.keys.add(record)
    return text, record


def test_a_key_is_its_id_and_a_secret_of_which_only_the_hash_is_kept() -> None:
    text, record = new_key("acme", [Scope.WRITE, Scope.READ], time.time() + 60)
    parts = split_key(text)
    assert parts is not None and parts[0] == record.id and text == f"pb_{parts[0]}_{parts[1]}"
    assert record.secret_hash == hashlib.sha256(parts[1].encode()).hexdigest() == hash_secret(parts[1])
    assert parts[1] not in repr(record) and len(parts[1]) == 43  # 32 bytes
    assert record.matches(parts[1]) and not record.matches(parts[1][:-1]) and not record.matches("")
    assert record.scopes == {Scope.READ, Scope.WRITE} and record.tenant == "acme"


def test_no_two_keys_are_alike() -> None:
    made = [new_key("acme", READ) for _ in range(200)]
    assert len({text for text, _ in made}) == len({record.id for _, record in made}) == 200


@pytest.mark.parametrize("text", ["", "pb_", "pb__", "pb_a_b", "sk-1234", f"pb_{ABSENT}_{'x' * 42}", "pb_\ud800_x"])
def test_other_text_is_no_key(text: str) -> None:
    assert split_key(text) is None


def test_keys_that_nobody_could_use_are_refused() -> None:
    with pytest.raises(InvalidKey, match="without a scope"):
        new_key("acme", [])
    with pytest.raises(InvalidKey, match="have expired already"):
        new_key("acme", READ, time.time() - 1)
    with pytest.raises(InvalidKey, match="tenant 'default', not 'acme'"):
        new_key("acme", [Scope.ADMIN])
    with pytest.raises(InvalidName):
        new_key("No Name", READ)
    assert new_key("default", [Scope.ADMIN])[1].scopes == {Scope.ADMIN}


@given(st.frozensets(st.sampled_from(Scope)))
def test_scopes_are_read_as_they_were_written(scopes: frozenset[Scope]) -> None:
    assert read_scopes(write_scopes(scopes)) == scopes


def test_states() -> None:
    record = new_key("acme", READ, time.time() + 10)[1]
    assert record.state(record.created_at) == "active"
    assert record.state(record.created_at + 11) == "expired"


def test_a_catalog_gives_back_what_was_added(catalog: Catalog) -> None:
    expires = time.time() + 1234.56789
    records = [make(catalog)[1], make(catalog, "other", expires)[1]]
    assert [catalog.keys.get(record.id) for record in records] == records
    assert catalog.keys.list_keys() == records and records[1].expires_at == expires


def test_every_catalog_of_a_store_sees_the_same_keys(store: Store) -> None:
    one, other = store(), store()
    record = make(one)[1]
    other.keys.revoke(record.id)
    assert one.keys.get(record.id).state(time.time()) == "revoked"


def test_revoking_is_for_good_and_the_first_time_counts(catalog: Catalog) -> None:
    record, kept = make(catalog)[1], make(catalog)[1]
    revoked = catalog.keys.revoke(record.id)
    assert revoked.revoked_at is not None and time.time() - revoked.revoked_at < 60
    assert catalog.keys.revoke(record.id) == revoked == catalog.keys.get(record.id)
    assert catalog.keys.list_keys() == [revoked, kept]


def test_use_is_noted(catalog: Catalog) -> None:
    record = make(catalog)[1]
    catalog.keys.touch(record.id, 1795312857.4725015)
    assert catalog.keys.get(record.id).last_used_at == 1795312857.4725015


@pytest.mark.parametrize("key", NO_IDS)
def test_what_is_no_id_is_not_found_and_makes_nothing(catalog: Catalog, key: str) -> None:
    for look in (catalog.keys.get, catalog.keys.revoke):
        with pytest.raises(NotFound, match="there is no key"):
            look(key)
    catalog.keys.touch(key, 1.0)
    assert catalog.keys.list_keys() == []


def test_a_secret_given_as_an_id_is_not_repeated(catalog: Catalog) -> None:
    text = make(catalog)[0]
    with pytest.raises(NotFound) as refused:
        catalog.keys.revoke(text)
    assert text[19:] not in str(refused.value)


def test_many_at_once_lose_nothing(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: make(catalog)[1].id, range(40)))
        list(threads.map(catalog.keys.revoke, made[::2]))
    assert {record.id for record in catalog.keys.list_keys()} == set(made)
    assert {record.id for record in catalog.keys.list_keys() if record.revoked_at} == set(made[::2])
