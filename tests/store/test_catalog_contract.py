"""What every catalog promises, asked of each of them."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.store.backends import Store

from patchbay.errors import InvalidName, NameTaken, NotFound, VersionConflict
from patchbay.store import Catalog

T = "default"
THREADS = 8


def digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def add(catalog: Catalog, name: str, content: str, activate: bool = True, tenant: str = T) -> int:
    record, created = catalog.add_version(tenant, name, digest(content), len(content), "{}", activate)
    assert created
    return record.version


def versions(catalog: Catalog, name: str) -> list[int]:
    return [record.version for record in catalog.list_versions(T, name)]


def test_a_record_keeps_what_was_given(catalog: Catalog) -> None:
    summary = '{"density": 0.1, "note": "ünï\\u0000", "big": 9007199254740993}'
    before = time.time()
    record, created = catalog.add_version(T, "math", digest("a"), 2**53 + 1, summary)
    assert created and record.current and record.version == 1
    assert (record.tenant, record.name, record.digest) == (T, "math", digest("a"))
    assert (record.size, record.summary) == (2**53 + 1, summary)
    assert before <= record.created_at <= time.time()
    assert catalog.get_delta(T, "math") == catalog.get_delta(T, "math", 1) == record
    assert catalog.list_deltas(T) == catalog.list_versions(T, "math") == catalog.find_digest(T, digest("a")) == [record]


def test_new_versions_count_up_and_become_current(catalog: Catalog) -> None:
    assert [add(catalog, "math", content) for content in "abc"] == [1, 2, 3]
    assert catalog.get_delta(T, "math").version == 3
    assert [record.current for record in catalog.list_versions(T, "math")] == [False, False, True]


def test_without_activate_the_current_version_stays(catalog: Catalog) -> None:
    add(catalog, "math", "a")
    add(catalog, "math", "b", activate=False)
    assert catalog.get_delta(T, "math").version == 1


def test_a_name_may_have_no_current_version(catalog: Catalog) -> None:
    add(catalog, "math", "a", activate=False)
    add(catalog, "math", "b", activate=False)
    with pytest.raises(NotFound, match="no version of delta 'math' is current; it has versions 1, 2"):
        catalog.get_delta(T, "math")
    [record] = catalog.list_deltas(T)
    assert (record.version, record.current) == (2, False)
    assert catalog.set_current(T, "math", 1).current
    assert catalog.get_delta(T, "math").version == 1


def test_the_same_bytes_again_are_the_same_record_and_move_nothing(catalog: Catalog) -> None:
    add(catalog, "math", "a")
    add(catalog, "math", "b")
    record, created = catalog.add_version(T, "math", digest("a"), 99, '{"other": 1}', activate=True)
    assert not created
    assert record == catalog.get_delta(T, "math", 1) and not record.current
    assert catalog.get_delta(T, "math").version == 2


def test_the_same_bytes_under_another_name_are_another_delta(catalog: Catalog) -> None:
    add(catalog, "math", "a")
    add(catalog, "code", "a")
    assert [record.name for record in catalog.find_digest(T, digest("a"))] == ["code", "math"]


def test_numbers_are_never_used_again(catalog: Catalog) -> None:
    for content in "abc":
        add(catalog, "math", content)
    catalog.set_current(T, "math", 1)
    catalog.delete_delta(T, "math", 3)
    assert add(catalog, "math", "c") == 4
    catalog.delete_delta(T, "math")
    assert add(catalog, "math", "d") == 5
    assert versions(catalog, "math") == [5]


def test_set_current_compares(catalog: Catalog) -> None:
    for content in "abc":
        add(catalog, "math", content)
    record = catalog.set_current(T, "math", 1, expected=3)
    assert record == catalog.get_delta(T, "math") and record.version == 1 and record.current
    with pytest.raises(VersionConflict, match="'math' is version 1, not 3"):
        catalog.set_current(T, "math", 2, expected=3)
    assert catalog.get_delta(T, "math").version == 1
    assert catalog.set_current(T, "math", 2).version == 2


def test_set_current_compares_with_none(catalog: Catalog) -> None:
    add(catalog, "math", "a", activate=False)
    with pytest.raises(VersionConflict, match="is no version, not 1"):
        catalog.set_current(T, "math", 1, expected=1)
    assert not catalog.get_delta(T, "math", 1).current


def test_the_current_version_of_several_cannot_be_deleted(catalog: Catalog) -> None:
    add(catalog, "math", "a")
    add(catalog, "math", "b")
    with pytest.raises(VersionConflict, match="make another version current first"):
        catalog.delete_delta(T, "math", 2)
    assert versions(catalog, "math") == [1, 2]
    catalog.set_current(T, "math", 1)
    [gone] = catalog.delete_delta(T, "math", 2)
    assert (gone.version, gone.digest) == (2, digest("b"))
    [last] = catalog.delete_delta(T, "math", 1)
    assert last.current
    with pytest.raises(NotFound):
        catalog.get_delta(T, "math")


def test_deleting_a_name_deletes_all_versions_and_frees_it(catalog: Catalog) -> None:
    add(catalog, "math", "a")
    add(catalog, "math", "b")
    assert [(gone.version, gone.current) for gone in catalog.delete_delta(T, "math")] == [(1, False), (2, True)]
    assert catalog.list_deltas(T) == catalog.find_digest(T, digest("a")) == []
    assert catalog.live_digests() == set()
    catalog.save_merge(T, "math", "{}")
    with pytest.raises(NameTaken, match="belongs to a merge"):
        catalog.add_version(T, "math", digest("c"), 1, "{}")
    catalog.delete_merge(T, "math")
    assert add(catalog, "math", "c", activate=False) == 3
    with pytest.raises(NotFound, match="no version of delta 'math' is current"):
        catalog.get_delta(T, "math")


def test_what_is_not_there_is_not_found_with_close_names(catalog: Catalog) -> None:
    add(catalog, "mathematics", "a")
    catalog.save_merge(T, "math-code", "{}")
    for call in _readers(catalog, "mathematic"):
        with pytest.raises(NotFound, match=r"no delta 'mathematic'; close names: mathematics"):
            call()
    with pytest.raises(NotFound, match=r"no merge 'math-cod'; close names: math-code"):
        catalog.get_merge(T, "math-cod")
    with pytest.raises(NotFound, match=r"no merge 'math-cod'; close names: math-code"):
        catalog.delete_merge(T, "math-cod")


@pytest.mark.parametrize("version", [0, -1, 2, 10**30])
def test_a_missing_version_is_not_found_with_those_that_exist(catalog: Catalog, version: int) -> None:
    add(catalog, "math", "a")
    for call in _readers(catalog, "math", version):
        with pytest.raises(NotFound, match=rf"'math' has no version {version}; it has version 1"):
            call()
    assert versions(catalog, "math") == [1]


BAD_NAMES = ["", "Math", "a b", "-a", ".a", "a/b", "a@1", "a:b", "é", "a\n", "a\0", "\ud800", "a" * 64, "x" * 100_000]


@pytest.mark.parametrize("name", BAD_NAMES, ids=range(len(BAD_NAMES)))
def test_what_is_no_name_is_refused_or_not_found(catalog: Catalog, name: str) -> None:
    writers: list[Callable[[], Any]] = [
        lambda: catalog.add_version(T, name, digest("a"), 1, "{}"),
        lambda: catalog.add_version(name, "a", digest("a"), 1, "{}"),
        lambda: catalog.save_merge(T, name, "{}"),
        lambda: catalog.save_merge(name, "a", "{}"),
    ]
    for write in writers:
        with pytest.raises(InvalidName, match="is not a name") as refused:
            write()
        assert len(str(refused.value)) < 600
    readers = _readers(catalog, name, 1)
    readers += [lambda: catalog.get_merge(T, name), lambda: catalog.delete_merge(T, name)]
    for read in readers:
        with pytest.raises(NotFound) as missing:
            read()
        assert len(str(missing.value)) < 600
    assert catalog.find_digest(T, name) == []
    assert not catalog.list_deltas(T) and not catalog.list_merges(T)


def test_the_longest_names_work(catalog: Catalog) -> None:
    name = "a" + "z._-" * 15 + "09"
    assert len(name) == 63
    add(catalog, name, "a", tenant=name)
    assert catalog.get_delta(name, name).name == name


def test_merges_are_saved_replaced_and_deleted(catalog: Catalog) -> None:
    recipe = '{"scale": 0.30000000000000004, "who": "ünï"}'
    record = catalog.save_merge(T, "mix", recipe)
    assert record.recipe == recipe and catalog.get_merge(T, "mix") == record
    with pytest.raises(NameTaken, match="delete it first"):
        catalog.save_merge(T, "mix", "[]")
    assert catalog.get_merge(T, "mix") == record
    newer = catalog.save_merge(T, "mix", "[]", replace=True)
    first = catalog.save_merge(T, "all", "{}", replace=True)
    assert catalog.list_merges(T) == [first, newer]
    catalog.delete_merge(T, "mix")
    assert catalog.list_merges(T) == [first]


def test_a_merge_cannot_take_a_deltas_name(catalog: Catalog) -> None:
    add(catalog, "math", "a", activate=False)
    for replace in (False, True):
        with pytest.raises(NameTaken, match="belongs to a delta"):
            catalog.save_merge(T, "math", "{}", replace)
    assert catalog.list_merges(T) == []


def test_lists_are_sorted_by_name(catalog: Catalog) -> None:
    names = ["b", "a.b", "a-b", "a_b", "10", "9", "a"]
    for name in names:
        add(catalog, name, "a")
        catalog.save_merge(T, f"m{name}", "{}")
    assert [record.name for record in catalog.list_deltas(T)] == sorted(names)
    assert [record.name for record in catalog.list_merges(T)] == sorted(f"m{name}" for name in names)


def test_tenants_do_not_see_each_other(catalog: Catalog) -> None:
    add(catalog, "math", "a", tenant="one")
    add(catalog, "math", "b", tenant="two")
    catalog.save_merge("one", "mix", "{}")
    assert catalog.get_delta("two", "math").version == 1
    assert catalog.get_delta("two", "math").digest == digest("b")
    assert not catalog.find_digest("two", digest("a"))
    assert not catalog.list_merges("two") and not catalog.list_deltas("three")
    assert catalog.live_digests() == {digest("a"), digest("b")}
    add(catalog, "mix", "c", tenant="two")
    catalog.delete_delta("one", "math")
    assert catalog.get_delta("two", "math").digest == digest("b")
    assert catalog.live_digests() == {digest("b"), digest("c")}


def test_a_digest_lives_until_its_last_version_is_deleted(catalog: Catalog) -> None:
    add(catalog, "math", "a")
    add(catalog, "code", "a")
    catalog.delete_delta(T, "math")
    assert catalog.live_digests() == {digest("a")}
    assert [record.name for record in catalog.find_digest(T, digest("a"))] == ["code"]
    catalog.delete_delta(T, "code")
    assert catalog.live_digests() == set()


def test_everything_is_there_when_opened_again(store: Store) -> None:
    first = store()
    add(first, "math", "a")
    first.save_merge(T, "mix", "{}")
    expected = first.list_deltas(T), first.list_merges(T)
    first.close()
    second = store()
    second.ping()
    assert (second.list_deltas(T), second.list_merges(T)) == expected


# Races: half of the threads share one catalog, the others have the second, as another process would.


def race(store: Store, work: Callable[[Catalog, int], Any]) -> list[Any]:
    catalogs = [store(), store()]
    start = threading.Barrier(THREADS)

    def run(number: int) -> Any:
        start.wait()
        return work(catalogs[number % 2], number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def test_racing_uploads_get_numbers_without_gaps(store: Store) -> None:
    each = 10
    numbers = race(store, lambda catalog, me: [add(catalog, "math", f"{me} {i}") for i in range(each)])
    assert sorted(n for mine in numbers for n in mine) == list(range(1, THREADS * each + 1))
    assert all(mine == sorted(mine) for mine in numbers)
    assert store().get_delta(T, "math").version == THREADS * each


def test_racing_uploads_of_the_same_bytes_are_one_version(store: Store) -> None:
    def upload(catalog: Catalog, me: int) -> list[bool]:
        return [catalog.add_version(T, f"n{i}", digest("a"), 1, "{}")[1] for i in range(20)]

    answers = race(store, upload)
    assert [sum(created) for created in zip(*answers, strict=True)] == [1] * 20
    assert [(record.name, record.version) for record in store().list_deltas(T)] == sorted(
        (f"n{i}", 1) for i in range(20)
    )


def test_of_racing_compare_and_sets_one_wins(store: Store) -> None:
    catalog = store()
    for i in range(THREADS + 1):
        add(catalog, "math", f"{i}", activate=i == THREADS)
    current = THREADS + 1

    def swap(catalog: Catalog, me: int) -> int | None:
        try:
            return catalog.set_current(T, "math", me + 1, expected=current).version
        except VersionConflict:
            return None

    for _ in range(10):
        winners = [won for won in race(store, swap) if won is not None]
        # Whoever sets the version that is expected wins too, and changes nothing.
        [winner] = [won for won in winners if won != current]
        assert catalog.get_delta(T, "math").version == winner
        current = winner


def test_a_name_never_belongs_to_both_kinds(store: Store) -> None:
    def claim(catalog: Catalog, me: int) -> list[str]:
        won = []
        for i in range(10):
            try:
                if me // 2 % 2:
                    catalog.save_merge(T, f"n{i}", "{}", replace=True)
                else:
                    catalog.add_version(T, f"n{i}", digest("a"), 1, "{}")
                won.append(f"n{i}")
            except NameTaken:
                pass
        return won

    race(store, claim)
    deltas = {record.name for record in store().list_deltas(T)}
    merges = {record.name for record in store().list_merges(T)}
    assert not deltas & merges
    assert len(deltas | merges) == 10


def test_readers_see_whole_changes(store: Store) -> None:
    """A digest moves from name to name, always added before it is deleted: whoever looks must find it."""
    catalog = store()
    add(catalog, "n0", "a")
    done = threading.Event()

    def move() -> None:
        try:
            for i in range(40):
                add(catalog, f"n{i + 1}", "a")
                catalog.delete_delta(T, f"n{i}")
        finally:
            done.set()

    other = store()
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move)
        while not done.is_set():
            assert other.find_digest(T, digest("a"))
            assert other.live_digests() == {digest("a")}
            assert other.list_deltas(T)
        moving.result()


def _readers(catalog: Catalog, name: str, version: int | None = None) -> list[Callable[[], Any]]:
    """Every call that looks for a delta."""
    calls: list[Callable[[], Any]] = [
        lambda: catalog.get_delta(T, name, version),
        lambda: catalog.delete_delta(T, name, version),
        lambda: catalog.set_current(T, name, 1 if version is None else version),
    ]
    return calls if version is not None else [*calls, lambda: catalog.list_versions(T, name)]


def test_a_blob_is_its_tenants(catalog: Catalog) -> None:
    assert catalog.add_blob(T, digest("a"), 3) and not catalog.add_blob(T, digest("a"), 3)
    assert catalog.has_blob(T, digest("a")) and not catalog.has_blob("other", digest("a"))
    assert catalog.add_blob("other", digest("a"), 3), "bytes of somebody else are news"
    for text in ("", "x", digest("b"), "\ud800"):
        assert not catalog.has_blob(T, text)
    with pytest.raises(InvalidName):
        catalog.add_blob("No Name", digest("a"), 3)
