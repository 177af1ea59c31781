"""A store that moves is the same store, whatever it is made of; and what is no store moves nothing."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.store.backends import new_store
from tests.store.test_catalog_contract import digest

from patchbay.errors import ImportConflict, InputError, StoreError, StoreUnavailable
from patchbay.store import Catalog, FileBlobs, Hub
from patchbay.store.archive import CATALOG, blob_path, read_catalog
from patchbay.store.audit import Entry
from patchbay.store.keys import Scope, new_key
from patchbay.store.moving import export_store, import_store
from patchbay.store.snapshot import Snapshot
from patchbay.store.tenants import Limits

T = "default"
TENANTS, NAMES, CONTENTS = ["default", "acme"], ["a", "b-c", "d.e"], ["one", "two", "three", ""]

change = st.one_of(
    st.tuples(
        st.just("add"), st.sampled_from(TENANTS), st.sampled_from(NAMES), st.sampled_from(CONTENTS), st.booleans()
    ),
    st.tuples(st.just("current"), st.sampled_from(TENANTS), st.sampled_from(NAMES), st.integers(1, 4)),
    st.tuples(st.just("delete"), st.sampled_from(TENANTS), st.sampled_from(NAMES), st.none() | st.integers(1, 4)),
    st.tuples(st.just("merge"), st.sampled_from(TENANTS), st.sampled_from(NAMES), st.text(max_size=5)),
    st.tuples(st.just("brought"), st.sampled_from(TENANTS), st.sampled_from(CONTENTS)),
    st.tuples(st.just("limits"), st.sampled_from(TENANTS), st.none() | st.integers(0, 2**53)),
    st.tuples(st.just("key"), st.sampled_from(TENANTS), st.booleans(), st.booleans()),
    st.tuples(st.just("audit"), st.text("ab ", max_size=3)),
)


def make(hub: Hub, changes: list[tuple[object, ...]]) -> None:
    for one in changes:
        try:
            _make(hub, *one)
        except StoreError:
            continue  # a random history asks for what cannot be, too


def _make(hub: Hub, kind: object, *rest: object) -> None:
    catalog = hub.catalog
    match kind, *rest:
        case "add", str(tenant), str(name), str(content), bool(activate):
            with hub.begin_upload(100) as upload:
                upload.write(content.encode())
                upload.finish()
                hub.commit(upload, tenant, name, json.dumps({"of": content, "π": 1e-9}), activate)
        case "current", str(tenant), str(name), int(version):
            catalog.set_current(tenant, name, version)
        case "delete", str(tenant), str(name), (int() | None) as version:
            catalog.delete_delta(tenant, name, version)
        case "merge", str(tenant), str(name), str(text):
            catalog.save_merge(tenant, name, json.dumps({"text": text, "pinned": digest("one")}), replace=True)
        case "brought", str(tenant), str(content):
            with hub.begin_upload(100) as upload:
                upload.write(content.encode())
                upload.finish()
                hub.keep_blob(upload, tenant)
        case "limits", str(tenant), (int() | None) as most:
            catalog.tenants.set_limits(tenant, Limits(max_jobs=most))
        case "key", str(tenant), bool(used), bool(revoked):
            record = new_key(tenant, [Scope.READ, Scope.WRITE], 4e9 if used else None)[1]
            catalog.keys.add(record)
            catalog.keys.touch(record.id, 1.7e9 + 0.1) if used else None
            catalog.keys.revoke(record.id) if revoked else None
        case "audit", str(text):
            catalog.audit.append(Entry(1.5, "default", text, "POST /v1/deltas", text, "201"))
        case _:
            raise AssertionError(kind)


@contextmanager
def hubs(*stores: tuple[str, str | None]) -> Iterator[list[Hub]]:
    with ExitStack() as opened:
        made = []
        for kind, server in stores:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            catalog: Catalog = opened.enter_context(new_store(kind, server))()
            made.append(Hub(catalog, FileBlobs(folder / "blobs"), frozenset()))
            opened.callback(made[-1].blobs.close)
        yield made


def export(hub: Hub, folder: Path) -> Snapshot:
    return export_store(hub, folder).snapshot


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("other", ["sqlite", "fakeredis"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(change, max_size=25))
def test_exported_imported_and_exported_again_is_the_same(
    kind: str, server: str | None, other: str, changes: list[tuple[object, ...]]
) -> None:
    with hubs((kind, server), (other, None)) as (one, two), tempfile.TemporaryDirectory() as place:
        make(one, changes)
        first, second = Path(place) / "first", Path(place) / "second"
        told = export_store(one, first)
        assert told.snapshot == one.catalog.snapshots.dump() == read_catalog(first)
        import_store(two, first)
        export_store(two, second)
        assert contents(first) == contents(second)
        import_store(two, first)  # and once more changes nothing
        assert two.catalog.snapshots.dump() == told.snapshot
        for tenant in TENANTS:
            for ask in ("list_deltas", "list_merges"):
                assert getattr(one.catalog, ask)(tenant) == getattr(two.catalog, ask)(tenant)
            assert one.catalog.tenants.usage(tenant) == two.catalog.tenants.usage(tenant)
        assert one.catalog.live_digests() == two.catalog.live_digests()
        assert one.catalog.keys.list_keys() == two.catalog.keys.list_keys()
        assert one.catalog.audit.list_entries() == two.catalog.audit.list_entries()
        for content in CONTENTS:
            assert one.catalog.find_digest("acme", digest(content)) == two.catalog.find_digest("acme", digest(content))


STORY: list[tuple[object, ...]] = [
    ("add", T, "a", "one", True),
    ("add", T, "a", "two", True),
    ("delete", T, "a", 1),
    ("add", "acme", "b-c", "one", False),
    ("merge", T, "d.e", "x"),
    ("brought", T, "three"),
    ("key", "acme", True, False),
    ("limits", "acme", 3),
    ("audit", "a"),
]


@pytest.fixture
def two(kind: str, server: str | None) -> Iterator[list[Hub]]:
    """A store with something in it, and an empty one."""
    with hubs(("sqlite", None), (kind, server)) as made:
        make(made[0], STORY)
        yield made


def test_numbers_go_on_where_they_were(two: list[Hub], tmp_path: Path) -> None:
    export(two[0], tmp_path)
    import_store(two[1], tmp_path)
    make(two[1], [("add", T, "a", "three", True)])
    assert [record.version for record in two[1].catalog.list_versions(T, "a")] == [2, 3]
    make(two[1], [("delete", T, "a", None), ("delete", "acme", "b-c", None)])
    assert two[1].catalog.condemn(digest("nothing"), 0.0, 0.0)


@pytest.mark.parametrize(
    "there",
    [
        ("add", T, "a", "other", True),
        ("add", T, "d.e", "other", True),
        ("merge", T, "a", "x"),
        ("merge", T, "d.e", "y"),
        ("limits", "acme", 4),
    ],
)
def test_what_is_in_the_way_stops_all_of_it(two: list[Hub], tmp_path: Path, there: tuple[object, ...]) -> None:
    export(two[0], tmp_path)
    make(two[1], [there])
    before, blobs = two[1].catalog.snapshots.dump(), two[1].blobs.digests()
    with pytest.raises(ImportConflict, match="nothing was imported"):
        import_store(two[1], tmp_path)
    assert two[1].catalog.snapshots.dump() == before and two[1].blobs.digests() == blobs
    with pytest.raises(ImportConflict):
        two[1].catalog.snapshots.load(read_catalog(tmp_path))
    assert two[1].catalog.snapshots.dump() == before


def test_what_is_not_in_the_way_stays(two: list[Hub], tmp_path: Path) -> None:
    export(two[0], tmp_path)
    make(two[1], [("add", "acme", "a", "one", True), ("audit", "own")])
    import_store(two[1], tmp_path)
    assert [record.name for record in two[1].catalog.list_deltas("acme")] == ["a", "b-c"]
    assert len(two[1].catalog.find_digest("acme", digest("one"))) == 2
    assert [entry.actor for entry in two[1].catalog.audit.list_entries()] == ["own", "a"]


def test_an_import_that_ends_anywhere_is_run_again(two: list[Hub], tmp_path: Path) -> None:
    snapshot = export(two[0], tmp_path)
    for runs in range(len(snapshot.digests()) + 1):
        calls = iter(range(runs, -1, -1))

        def end(done: int, total: int, calls: Iterator[int] = calls) -> None:
            if next(calls) == 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            import_store(two[1], tmp_path, end)
        assert two[1].catalog.snapshots.dump() == Snapshot()
        assert len(two[1].blobs.digests()) == runs
    import_store(two[1], tmp_path)
    assert two[1].catalog.snapshots.dump() == snapshot


def test_an_export_that_was_interrupted_is_no_export_and_goes_on(two: list[Hub], tmp_path: Path) -> None:
    def end(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_store(two[0], tmp_path, end)
    with pytest.raises(InputError, match="cannot be read"):
        import_store(two[1], tmp_path)
    copied = next((tmp_path / "blobs").rglob("??*/*"))
    before = copied.stat().st_ino
    snapshot = export(two[0], tmp_path)
    assert copied.stat().st_ino == before and read_catalog(tmp_path) == snapshot


def test_a_store_with_missing_or_damaged_bytes_is_not_exported(two: list[Hub], tmp_path: Path) -> None:
    hub = two[0]
    path = hub.open_blob(digest("two"))
    path.write_bytes(b"owt")
    with pytest.raises(StoreUnavailable, match="is damaged"):
        export(hub, tmp_path / "one")
    path.unlink()
    with pytest.raises(StoreUnavailable, match=r"default/a@2 are not there"):
        export(hub, tmp_path / "two")
    assert not list(tmp_path.rglob(CATALOG))


def test_what_a_tenant_brought_and_is_gone_is_left_out(two: list[Hub], tmp_path: Path) -> None:
    two[0].blobs.delete(digest("three"))
    assert export(two[0], tmp_path).brought == ()
    import_store(two[1], tmp_path)
    assert not two[1].catalog.has_blob(T, digest("three"))


def test_a_folder_of_something_else_is_left_alone(two: list[Hub], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(InputError, match="thesis"):
        export(two[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def rewritten(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Lines of the catalog changed by somebody who knows how their hash is made."""
    lines = change((folder / CATALOG).read_text().splitlines(keepends=True)[:-1])
    text = "".join(lines).encode()
    (folder / CATALOG).write_bytes(text + json.dumps({"sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n")


def replaced(old: str, new: str) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        assert any(old in line for line in lines)
        return [line.replace(old, new) for line in lines]

    return change


@pytest.mark.parametrize(
    "change",
    [
        replaced('"name": "a"', '"name": "../../etc"'),
        replaced('"tenant": "acme"', '"tenant": "a/b"'),
        replaced(digest("two"), "sha256:../../../../etc/passwd"),
        replaced('"size": 3', '"size": -3'),
        replaced('"size": 3', '"size": 3.0'),
        replaced('"size": 3', '"size": true'),
        replaced('"size": 3', '"size": 1e999'),
        replaced('"size": 3', f'"size": {2**63}'),
        replaced('"size": 3', '"bytes": 3'),
        replaced('"size": 3', '"size": 3, "more": 1'),
        replaced('"last_version": 2', '"last_version": 1'),
        replaced('"current": 2', '"current": 1'),
        replaced('"version": 2', '"version": 0'),
        replaced('"summary": "', '"summary": "{'),
        replaced('"summary": "', '"summary": "\\ud800'),
        replaced('"scopes": "read write"', '"scopes": "read root"'),
        replaced('"scopes": "read write"', '"scopes": ""'),
        replaced('"secret_hash": "', '"secret_hash": "x'),
        replaced('"max_jobs": 3', '"max_jobs": "3"'),
        replaced('{"names": {', '{"surnames": {'),
        replaced('{"names": {', '{"names": [{'),
        replaced('{"patchbay_store": 1}', '{"patchbay_store": 2}'),
        lambda lines: [*lines, lines[1]],
        lambda lines: [*lines, "[" * 100_000 + "\n"],
        lambda lines: [*lines, "{}\n"],
        lambda lines: lines[1:],
        lambda lines: [line for line in lines if not line.startswith('{"names"')],
        lambda lines: [],
    ],
)
def test_a_catalog_that_somebody_has_made_is_refused(tmp_path: Path, change: Callable[[list[str]], list[str]]) -> None:
    with hubs(("sqlite", None), ("sqlite", None)) as (one, two):
        make(one, STORY)
        export(one, tmp_path)
        rewritten(tmp_path, change)
        with pytest.raises(InputError, match="cannot be read"):
            import_store(two, tmp_path)
        assert two.catalog.snapshots.dump() == Snapshot() and two.blobs.digests() == set()


@settings(max_examples=40, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_one_byte_less_or_another_one_is_seen(exported: bytes, at: float, byte: int, cut: bool) -> None:
    where = int(at * len(exported))
    data = exported[:where] if cut else exported[:where] + bytes([byte]) + exported[where + 1 :]
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / CATALOG).write_bytes(data)
        if data == exported:
            assert read_catalog(Path(place)).names
        else:
            with pytest.raises(InputError):
                read_catalog(Path(place))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("export")
    with hubs(("sqlite", None)) as (one,):
        make(one, STORY)
        export(one, folder)
    return (folder / CATALOG).read_bytes()


@pytest.mark.parametrize("harm", ["other bytes", "longer", "missing", "a link", "a folder", "a pipe"])
def test_a_blob_that_is_not_what_it_says_stops_the_import(tmp_path: Path, harm: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"two")
    with hubs(("sqlite", None), ("sqlite", None)) as (one, two):
        make(one, STORY)
        export(one, tmp_path / "export")
        path = blob_path(tmp_path / "export", digest("two"))
        path.unlink()
        match harm:
            case "other bytes":
                path.write_bytes(b"owt")
            case "longer":
                path.write_bytes(b"two two")
            case "a link":
                path.symlink_to(secret)
            case "a folder":
                path.mkdir()
            case "a pipe":
                os.mkfifo(path)
        with pytest.raises(InputError):
            import_store(two, tmp_path / "export")
        assert two.catalog.snapshots.dump() == Snapshot() and not two.blobs.exists(digest("two"))


def test_a_cut_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deleted, added and collected while blobs are copied changes nothing of the export."""
    with hubs(("sqlite", None)) as (hub,):
        with monkeypatch.context() as patch:
            for name in ("PUBLISHING_S", "KEPT_S"):
                patch.setattr(f"patchbay.store.hub.{name}", 0.0)  # as if all of it had come long ago
            make(hub, STORY)
        before = hub.catalog.snapshots.dump()

        def meanwhile(done: int, total: int) -> None:
            make(hub, [("delete", "acme", "b-c", None), ("add", T, "b-c", "new", True), ("delete", T, "a", None)])
            assert not hub.catalog.condemn(digest("two"), 4e9, 0.0), "held until it was copied"

        assert export_store(hub, tmp_path, meanwhile).snapshot == before == read_catalog(tmp_path)
    with closing(FileBlobs(tmp_path / "blobs")) as blobs:
        assert digest("two") in blobs.digests() and digest("new") not in blobs.digests()
