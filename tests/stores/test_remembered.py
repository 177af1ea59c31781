"""Names while the catalog answers, while it does not, and after changes made here and elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.waiting import until

from patchbay.errors import NotFound, StoreUnavailable, VersionConflict
from patchbay.store import SqliteCatalog
from patchbay_server.stores import remembered
from patchbay_server.stores.remembered import MAX_AGE_S, RememberedCatalog

T = "default"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@dataclass(slots=True)
class Line:
    """To a real catalog; it can be cut, and can lose the answer to a change that was made."""

    catalog: SqliteCatalog
    cut: bool = False
    loses_answers: bool = False
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            if self.cut and name != "close":
                raise StoreUnavailable("the line is cut")
            answer = getattr(self.catalog, name)(*args, **options)
            if self.loses_answers:
                raise StoreUnavailable("the answer was lost")
            return answer

        return call


@dataclass(slots=True)
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "LOOK_S", 0.002)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(SqliteCatalog(tmp_path / "catalog.db"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(line: Line, clock: Clock) -> Iterator[RememberedCatalog]:
    catalog = RememberedCatalog(line, clock)  # type: ignore[arg-type]
    yield catalog
    catalog.close()


@pytest.fixture
def elsewhere(line: Line) -> SqliteCatalog:
    """As another server sees it."""
    return line.catalog


def restore(line: Line, catalog: RememberedCatalog) -> None:
    line.cut = line.loses_answers = False
    until(lambda: catalog._lost is None)


def test_a_blob_that_is_being_removed_is_no_sign_of_a_lost_catalog(catalog: RememberedCatalog, line: Line) -> None:
    line.catalog.add_version(T, "math", digest(1), 1, "{}")
    assert catalog.condemn(digest(2), 0, 60)
    with pytest.raises(StoreUnavailable, match="being removed"):
        catalog.hold(digest(2), 60)
    assert catalog.get_delta(T, "math").version == 1 and catalog._lost is None
    line.cut = True
    with pytest.raises(StoreUnavailable, match="the line is cut"):
        catalog.list_deltas(T)
    line.calls.clear()
    with pytest.raises(StoreUnavailable, match="the line is cut"):
        catalog.hold(digest(3), 60)
    assert "hold" not in line.calls  # answered at once


def test_a_name_is_asked_for_once_a_second(catalog: RememberedCatalog, line: Line, clock: Clock) -> None:
    catalog.add_version(T, "math", digest(1), 1, "{}")
    line.calls.clear()
    for _ in range(5):
        assert catalog.get_delta(T, "math").digest == digest(1)
    assert line.calls == ["get_delta"]
    clock.now += MAX_AGE_S
    catalog.get_delta(T, "math")
    assert line.calls == ["get_delta", "get_delta"]


def test_changes_made_here_are_seen_at_once(catalog: RememberedCatalog) -> None:
    for number in (1, 2):
        catalog.add_version(T, "math", digest(number), 1, "{}")
        assert catalog.get_delta(T, "math").version == number
    catalog.set_current(T, "math", 1)
    assert catalog.get_delta(T, "math").version == 1 and catalog.get_delta(T, "math", 2).version == 2
    catalog.delete_delta(T, "math", 2)
    with pytest.raises(NotFound):
        catalog.get_delta(T, "math", 2)
    catalog.delete_delta(T, "math")
    with pytest.raises(NotFound):
        catalog.get_delta(T, "math")
    catalog.save_merge(T, "math", "one")
    assert catalog.get_merge(T, "math").recipe == "one"
    catalog.save_merge(T, "math", "two", replace=True)
    assert catalog.get_merge(T, "math").recipe == "two"
    catalog.delete_merge(T, "math")
    with pytest.raises(NotFound):
        catalog.get_merge(T, "math")


def test_changes_made_elsewhere_are_seen_within_the_second(
    catalog: RememberedCatalog, elsewhere: SqliteCatalog, clock: Clock
) -> None:
    elsewhere.add_version(T, "math", digest(1), 1, "{}")
    assert catalog.get_delta(T, "math").version == 1
    elsewhere.add_version(T, "math", digest(2), 1, "{}")
    clock.now += MAX_AGE_S
    assert catalog.get_delta(T, "math").version == 2
    elsewhere.delete_delta(T, "math")
    clock.now += MAX_AGE_S
    with pytest.raises(NotFound):
        catalog.get_delta(T, "math")
    elsewhere.add_version(T, "code", digest(3), 1, "{}")
    assert catalog.get_delta(T, "code").version == 1, "what is not known is always asked for"


def test_compare_and_set_is_the_catalogs(catalog: RememberedCatalog, elsewhere: SqliteCatalog) -> None:
    for number in (1, 2):
        catalog.add_version(T, "math", digest(number), 1, "{}")
    assert catalog.get_delta(T, "math").version == 2
    elsewhere.set_current(T, "math", 1)
    assert catalog.get_delta(T, "math").version == 2, "not asked for again yet"
    with pytest.raises(VersionConflict, match="is version 1, not 2"):
        catalog.set_current(T, "math", 2, expected=2)
    assert catalog.get_delta(T, "math").version == 1, "who was refused sees why"


def test_what_is_known_is_used_while_the_catalog_is_away(
    catalog: RememberedCatalog, line: Line, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    catalog.add_version(T, "math", digest(1), 1, "{}")
    catalog.save_merge(T, "both", "one")
    before = catalog.get_delta(T, "math"), catalog.get_merge(T, "both")
    line.cut = True
    clock.now += 1000
    assert catalog.get_delta(T, "math", 1) == before[0], "by its version, which nobody asked for"
    for _ in range(3):
        assert (catalog.get_delta(T, "math"), catalog.get_merge(T, "both")) == before
    for name in ("math", "0.5*math", "math@1"):
        with pytest.raises(NotFound):  # so that requests go on to look for a delta
            catalog.get_merge(T, name)
    restore(line, catalog)
    assert catalog.get_delta(T, "math") == before[0]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the line is cut; names stand for what they stood for last",
        "the catalog answers again",
    ]


def test_what_is_not_known_is_unavailable_and_nobody_waits(catalog: RememberedCatalog, line: Line) -> None:
    line.cut = True
    for call in (lambda: catalog.get_delta(T, "code"), lambda: catalog.get_merge(T, "code")):
        with pytest.raises(StoreUnavailable, match="the line is cut"):
            call()
    line.calls.clear()
    with pytest.raises(StoreUnavailable):
        catalog.get_delta(T, "code")
    assert "get_delta" not in line.calls, "it is known to be away"
    restore(line, catalog)
    with pytest.raises(NotFound):
        catalog.get_delta(T, "code")


def test_changes_and_lists_fail_with_the_catalog(catalog: RememberedCatalog, line: Line) -> None:
    catalog.add_version(T, "math", digest(1), 1, "{}")
    catalog.get_delta(T, "math")
    line.cut = True
    calls: list[Callable[[], object]] = [
        lambda: catalog.add_version(T, "math", digest(2), 1, "{}"),
        lambda: catalog.set_current(T, "math", 1),
        lambda: catalog.delete_delta(T, "math"),
        lambda: catalog.save_merge(T, "both", "{}"),
        lambda: catalog.delete_merge(T, "both"),
        lambda: catalog.list_deltas(T),
        lambda: catalog.list_versions(T, "math"),
        lambda: catalog.list_merges(T),
        lambda: catalog.find_digest(T, digest(1)),
        catalog.live_digests,
        catalog.ping,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="the line is cut"):
            call()
    assert catalog.get_delta(T, "math").version == 1, "a change that failed leaves what was known"


def test_a_change_whose_answer_was_lost_is_seen_when_the_catalog_is_back(
    catalog: RememberedCatalog, line: Line
) -> None:
    for number in (1, 2):
        catalog.add_version(T, "math", digest(number), 1, "{}")
    assert catalog.get_delta(T, "math").version == 2
    line.loses_answers = True
    with pytest.raises(StoreUnavailable):
        catalog.set_current(T, "math", 1)
    line.cut = True
    assert catalog.get_delta(T, "math").version == 2, "the last that was known"
    restore(line, catalog)
    assert catalog.get_delta(T, "math").version == 1


def test_what_was_deleted_here_is_not_remembered(catalog: RememberedCatalog, line: Line) -> None:
    catalog.add_version(T, "math", digest(1), 1, "{}")
    catalog.get_delta(T, "math")
    catalog.delete_delta(T, "math")
    line.cut = True
    with pytest.raises(StoreUnavailable):
        catalog.get_delta(T, "math")


def test_what_was_deleted_elsewhere_is_not_remembered_once_that_is_known(
    catalog: RememberedCatalog, line: Line, elsewhere: SqliteCatalog, clock: Clock
) -> None:
    catalog.add_version(T, "math", digest(1), 1, "{}")
    catalog.get_delta(T, "math")
    elsewhere.delete_delta(T, "math")
    clock.now += MAX_AGE_S
    with pytest.raises(NotFound):
        catalog.get_delta(T, "math")
    line.cut = True
    for version in (None, 1):
        with pytest.raises(StoreUnavailable):
            catalog.get_delta(T, "math", version)


def test_an_answer_from_before_a_change_is_not_remembered_after_it(catalog: RememberedCatalog, line: Line) -> None:
    """A reader asks, a change is made here, and only then the reader gets its answer."""
    for number in (1, 2):
        catalog.add_version(T, "math", digest(number), 1, "{}")
    asked, changed = Barrier(2), Barrier(2)
    real = line.catalog.get_delta

    def slow(tenant: str, name: str, version: int | None) -> Any:
        answer = real(tenant, name, version)
        asked.wait(60)
        changed.wait(60)
        return answer

    line.catalog.get_delta = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(catalog.get_delta, T, "math")
        asked.wait(60)
        line.catalog.get_delta = real  # type: ignore[method-assign]
        catalog.set_current(T, "math", 1)
        changed.wait(60)
        assert reader.result(60).version == 2, "it was asked for before the change"
    assert catalog.get_delta(T, "math").version == 1


def test_memory_is_bounded(catalog: RememberedCatalog, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MAX_RECORDS", 4)
    for number in range(5):
        catalog.add_version(T, f"d{number}", digest(number), 1, "{}")
        catalog.get_delta(T, f"d{number}")
    assert len(catalog._known) == 4
    line.cut = True
    assert catalog.get_delta(T, "d4")
    with pytest.raises(StoreUnavailable):
        catalog.get_delta(T, "d0")


STEPS = st.lists(
    st.tuples(st.sampled_from(["here", "there"]), st.sampled_from(["add", "use", "delete", "read", "wait", "cut"])),
    min_size=20,
    max_size=40,
)


@settings(max_examples=30, deadline=None)
@given(steps=STEPS, numbers=st.randoms(use_true_random=False))
def test_the_law(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]], numbers: Any) -> None:
    """An answer was the truth at some moment of the last second and not before this server's own last change; while
    the catalog is away, it was the truth once.
    """
    clock = Clock()
    sqlite = SqliteCatalog(tmp_path_factory.mktemp("law") / "catalog.db")
    lines = {side: Line(sqlite) for side in ("here", "there")}
    servers = {side: RememberedCatalog(line, clock) for side, line in lines.items()}  # type: ignore[arg-type]
    truths: list[tuple[float, str | None]] = [(clock.now, None)]  # since when, which digest
    changed = dict.fromkeys(servers, 0)
    for side, step in steps:
        server, line = servers[side], lines[side]
        if step == "wait":
            clock.now += numbers.choice([0.3, 0.6, 1.0])
        elif step == "cut":
            if line.cut:
                restore(line, server)
            line.cut = not line.cut and numbers.random() < 0.5
        elif step == "read":
            allowed = {
                truth
                for number, (_, truth) in enumerate(truths)
                if number >= changed[side] and (number + 1 == len(truths) or truths[number + 1][0] > clock.now - 1)
            }
            found = read(server)
            assert found in (allowed if not line.cut else {truth for _, truth in truths} | {"away"})
        elif not line.cut:
            change(server, step, numbers.randrange(1, 4))
            truths.append((clock.now, read_truth(sqlite)))
            changed[side] = len(truths) - 1
    for server in servers.values():
        server.close()


def change(server: RememberedCatalog, step: str, number: int) -> None:
    try:
        if step == "add":
            server.add_version(T, "math", digest(number), 1, "{}")
        elif step == "use":
            server.set_current(T, "math", number)
        else:
            server.delete_delta(T, "math")
    except NotFound:
        pass


def read(server: RememberedCatalog) -> str | None:
    try:
        return server.get_delta(T, "math").digest
    except NotFound:
        return None
    except StoreUnavailable:
        return "away"


def read_truth(sqlite: SqliteCatalog) -> str | None:
    try:
        return sqlite.get_delta(T, "math").digest
    except NotFound:
        return None
