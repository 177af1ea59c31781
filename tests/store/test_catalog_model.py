"""Random histories: each catalog must answer as a plain dictionary does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.store.backends import new_store

from patchbay.errors import NameTaken, NotFound, StoreError, VersionConflict
from patchbay.store import Catalog, DeltaRecord

TENANTS = ["default", "other"]
NAMES = ["a", "b", "a-b"]
DIGESTS = [f"sha256:{hashlib.sha256(bytes([i])).hexdigest()}" for i in range(3)]

tenants, names, digests = st.sampled_from(TENANTS), st.sampled_from(NAMES), st.sampled_from(DIGESTS)
numbers = st.integers(1, 5)
maybe = st.none() | numbers

Row = tuple[int, str, str, bool]  # version, digest, summary, current


@dataclass
class Name:
    last: int = 0
    current: int | None = None
    live: dict[int, tuple[str, str]] = field(default_factory=dict)

    def row(self, version: int) -> Row:
        return (version, *self.live[version], version == self.current)


class Model:
    """The contract in its plainest form: one tenant, no clock, no concurrency."""

    def __init__(self) -> None:
        self.names = {name: Name() for name in NAMES}
        self.merges: dict[str, str] = {}

    def add(self, name: str, digest: str, summary: str, activate: bool) -> tuple[Row, bool]:
        if name in self.merges:
            raise NameTaken("")
        mine = self.names[name]
        for version, (known, _) in mine.live.items():
            if known == digest:
                return mine.row(version), False
        mine.last += 1
        mine.live[mine.last] = digest, summary
        if activate:
            mine.current = mine.last
        return mine.row(mine.last), True

    def get(self, name: str, version: int | None) -> Row:
        mine = self.names[name]
        chosen = mine.current if version is None else version
        if chosen not in mine.live:
            raise NotFound("")
        return mine.row(chosen)

    def set_current(self, name: str, version: int, expected: int | None) -> Row:
        mine = self.names[name]
        if version not in mine.live:
            raise NotFound("")
        if expected is not None and expected != mine.current:
            raise VersionConflict("")
        mine.current = version
        return mine.row(version)

    def delete(self, name: str, version: int | None) -> list[Row]:
        mine = self.names[name]
        if not mine.live or (version is not None and version not in mine.live):
            raise NotFound("")
        if version is not None and version == mine.current and len(mine.live) > 1:
            raise VersionConflict("")
        gone = [mine.row(number) for number in sorted(mine.live) if version in (None, number)]
        for number, *_, current in gone:
            del mine.live[number]
            mine.current = None if current else mine.current
        return gone

    def save_merge(self, name: str, recipe: str, replace: bool) -> None:
        if self.names[name].live or (name in self.merges and not replace):
            raise NameTaken("")
        self.merges[name] = recipe

    def delete_merge(self, name: str) -> None:
        if name not in self.merges:
            raise NotFound("")
        del self.merges[name]


class Histories(RuleBasedStateMachine):
    kind: str
    server: str | None

    def __init__(self) -> None:
        super().__init__()
        self.opened = ExitStack()
        self.store = self.opened.enter_context(new_store(self.kind, self.server))
        self.models = {tenant: Model() for tenant in TENANTS}

    @initialize()
    def open(self) -> None:
        self.catalog: Catalog = self.store()

    def teardown(self) -> None:
        self.opened.close()

    @rule(tenant=tenants, name=names, digest=digests, summary=st.text(max_size=5), activate=st.booleans())
    def add(self, tenant: str, name: str, digest: str, summary: str, activate: bool) -> None:
        def real() -> tuple[Row, bool]:
            record, created = self.catalog.add_version(tenant, name, digest, 7, summary, activate)
            return row(record), created

        same(real, lambda: self.models[tenant].add(name, digest, summary, activate))

    @rule(tenant=tenants, name=names, version=maybe)
    def get(self, tenant: str, name: str, version: int | None) -> None:
        same(lambda: row(self.catalog.get_delta(tenant, name, version)), lambda: self.models[tenant].get(name, version))

    @rule(tenant=tenants, name=names, version=numbers, expected=maybe)
    def set_current(self, tenant: str, name: str, version: int, expected: int | None) -> None:
        same(
            lambda: row(self.catalog.set_current(tenant, name, version, expected)),
            lambda: self.models[tenant].set_current(name, version, expected),
        )

    @rule(tenant=tenants, name=names, version=maybe)
    def delete(self, tenant: str, name: str, version: int | None) -> None:
        same(
            lambda: [row(record) for record in self.catalog.delete_delta(tenant, name, version)],
            lambda: self.models[tenant].delete(name, version),
        )

    @rule(tenant=tenants, name=names, recipe=st.text(max_size=5), replace=st.booleans())
    def save_merge(self, tenant: str, name: str, recipe: str, replace: bool) -> None:
        def real() -> None:
            assert self.catalog.save_merge(tenant, name, recipe, replace).recipe == recipe

        same(real, lambda: self.models[tenant].save_merge(name, recipe, replace))

    @rule(tenant=tenants, name=names)
    def delete_merge(self, tenant: str, name: str) -> None:
        same(
            lambda: self.catalog.delete_merge(tenant, name),
            lambda: self.models[tenant].delete_merge(name),
        )

    @rule()
    def open_again(self) -> None:
        self.catalog.close()
        self.open()

    @invariant()
    def lists_agree(self) -> None:
        for tenant, model in self.models.items():
            live = {name: mine for name, mine in sorted(model.names.items()) if mine.live}
            deltas = [(record.name, row(record)) for record in self.catalog.list_deltas(tenant)]
            assert deltas == [(name, mine.row(mine.current or max(mine.live))) for name, mine in live.items()]
            for name, mine in live.items():
                listed = [row(record) for record in self.catalog.list_versions(tenant, name)]
                assert listed == [mine.row(version) for version in sorted(mine.live)]
            merges = {record.name: record.recipe for record in self.catalog.list_merges(tenant)}
            assert merges == model.merges

    @invariant()
    def digests_agree(self) -> None:
        for tenant, model in self.models.items():
            for digest in DIGESTS:
                found = [(record.name, row(record)) for record in self.catalog.find_digest(tenant, digest)]
                expected = [(name, mine.row(v)) for name, mine in model.names.items() for v in mine.live]
                assert found == sorted(each for each in expected if each[1][1] == digest)
        live = (mine.live for model in self.models.values() for mine in model.names.values())
        assert self.catalog.live_digests() == {digest for rows in live for digest, _ in rows.values()}


def row(record: DeltaRecord) -> Row:
    return record.version, record.digest, record.summary, record.current


def same(real: Callable[[], Any], model: Callable[[], Any]) -> None:
    assert outcome(real) == outcome(model)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except StoreError as error:
        return type(error)


def test_every_history_matches_the_model(kind: str, server: str | None) -> None:
    few = settings(max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

    class Here(Histories):
        pass

    Here.kind, Here.server = kind, server
    run_state_machine_as_test(Here, settings=few)
