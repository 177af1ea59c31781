"""What was acknowledged, read from the logs of processes that were killed, and whether a store still has all of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.crash.operations import HELD_S, NAMES

from patchbay.errors import NotFound
from patchbay.store import Hub
from patchbay.store.fsck import check_store
from patchbay_server.jobs.base import Job, JobQueue, State

Line = dict[str, Any]
EVERY_JOB = 1_000_000


@dataclass(frozen=True, slots=True)
class Name:
    """One name: its live versions, the current one (0: none), and the last number that was given out."""

    live: tuple[tuple[int, str], ...] = ()
    current: int = 0
    last: int = 0

    def published(self, digest: str) -> Name:
        if digest in dict(self.live).values():
            return self
        version = self.last + 1
        return Name((*self.live, (version, digest)), version, version)

    def deleted(self, version: int | None) -> Name:
        left = tuple(each for each in self.live if version not in (None, each[0]))
        return replace(self, live=left, current=self.current if left else 0)

    def after(self, change: Line) -> Name:
        match change["change"]:
            case "publish":
                return self.published(change["digest"])
            case "choose":
                return replace(self, current=change["version"])
            case "delete":
                return self.deleted(change["version"])
        raise AssertionError(change)


@dataclass(slots=True)
class JobFacts:
    evaluations: dict[int, float] = field(default_factory=dict)
    end: tuple[str, Line | None] | None = None


@dataclass(slots=True)
class Ledger:
    """`names` are what each must be; `either` what one may be instead, whose last change was not acknowledged."""

    names: dict[tuple[str, str], Name] = field(default_factory=dict)
    either: dict[tuple[str, str], Name] = field(default_factory=dict)
    jobs: dict[str, JobFacts] = field(default_factory=dict)
    ended: dict[str, Job] = field(default_factory=dict)
    brought: list[tuple[str, Line]] = field(default_factory=list)
    acknowledged: Counter[str] = field(default_factory=Counter)
    removed: int = 0

    def read(self, tenant: str, log: Path) -> None:
        """The log of one process that is dead."""
        change: Line | None = None
        for line in map(json.loads, log.read_text().splitlines() if log.exists() else []):
            assert "failed" not in line, line["failed"]
            if "change" in line:
                change = line
            else:
                assert change is not None
                if line["came"] == "done":
                    self._note(tenant, change, line)
                change = None
        if change is not None and "name" in change:
            key = tenant, change["name"]
            self.either[key] = self.names.get(key, Name()).after(change)
            self._named(tenant, change)

    def _note(self, tenant: str, change: Line, done: Line) -> None:
        self.acknowledged[change["change"]] += 1
        match change["change"]:
            case "publish" | "choose" | "delete":
                key = tenant, change["name"]
                self.names[key] = self.names.get(key, Name()).after(change)
                self._named(tenant, change)
                if "version" in done:
                    assert (done["version"], change["digest"]) in self.names[key].live
            case "bring":
                self.brought.append((tenant, change))
            case "collect":
                self.removed += len(done["removed"])
            case "submit":
                self.jobs[done["job"]] = JobFacts()
            case "evaluate":
                self._job(change).evaluations[change["number"]] = change["value"]
            case "finish":
                self._job(change).end = (State.DONE, change["result"])
            case "cancel" if done["state"] == State.CANCELLED:
                self._job(change).end = (State.CANCELLED, None)

    def _named(self, tenant: str, change: Line) -> None:
        """What is published is a version from then on, and goes with it: it does not count as brought any more."""
        if change["change"] == "publish":
            digest = change["digest"]
            self.brought = [each for each in self.brought if (each[0], each[1]["digest"]) != (tenant, digest)]

    def _job(self, change: Line) -> JobFacts:
        # It may be one whose submission was made and never acknowledged, or one that was seen ended before its log was.
        return self.jobs.setdefault(change["job"], JobFacts())

    def check(self, hub: Hub, queue: JobQueue, tenants: Iterable[str]) -> None:
        """Everything that was acknowledged is there, and the store is whole."""
        problems = [problem.message for problem in check_store(hub)]
        assert problems == []
        for tenant in tenants:
            for name in NAMES:
                self._check_name(hub, tenant, name)
        self.either.clear()
        recorded = {record.digest for record in hub.catalog.all_versions()}
        assert hub.catalog.live_digests() == recorded
        self._check_brought(hub)
        self._check_jobs(hub, queue, [job for tenant in tenants for job in queue.list_jobs(tenant, EVERY_JOB)])

    def _check_name(self, hub: Hub, tenant: str, name: str) -> None:
        key = tenant, name
        expected = self.names.get(key, Name())
        try:
            records = hub.catalog.list_versions(tenant, name)
        except NotFound:
            records = []
        live = tuple((record.version, record.digest) for record in records)
        current = sum(record.version for record in records if record.current)
        allowed = [expected, self.either.get(key, expected)]
        fitting = [each for each in allowed if (each.live, each.current) == (live, current)]
        assert fitting, f"{key} is {live}, current {current}, and should be one of {allowed}"
        self.names[key] = fitting[0]

    def _check_brought(self, hub: Hub) -> None:
        """They stay for a while: nothing is said of those that were brought longer ago."""
        for tenant, change in self.brought:
            if time.time() - change["at"] < HELD_S / 2:
                assert hub.has_blob(tenant, change["digest"]), change
        self.brought.clear()

    def _check_jobs(self, hub: Hub, queue: JobQueue, jobs: list[Job]) -> None:
        found, blobs = {job.id: job for job in jobs}, hub.blobs.digests()
        assert set(self.jobs) <= set(found)
        assert {each: found.get(each) for each in self.ended} == self.ended, "what is over changes no more"
        assert queue.count_states() == {state: sum(job.state is state for job in jobs) for state in State}
        for job in jobs:
            assert job.state.is_final or job.spec["reads"] in blobs, f"what {job} reads is gone"
        for each, facts in self.jobs.items():
            values = [evaluation["value"] for evaluation in queue.evaluations(each)]
            assert {number: values[number] for number in facts.evaluations} == facts.evaluations
            assert len(set(values)) == len(values), "an evaluation was recorded twice"
            assert facts.end in (None, (found[each].state, found[each].result)), f"{found[each]}, not {facts.end}"
        self.ended |= {each: found[each] for each in self.jobs if found[each].state.is_final}
        self.jobs = {each: facts for each, facts in self.jobs.items() if each not in self.ended}
