"""Random histories: the queue must answer as a plain dictionary does."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from tests.jobs.clocks import Clock
from tests.jobs.queues import new_place

from patchbay_server.jobs.base import MAX_LOSSES, IdempotencyConflict, Key, Lease, LeaseLost, State

T = "default"
LEASE_S = 10.0
OWNERS = ["ann", "bob"]
owners = st.sampled_from(OWNERS)


@dataclass
class Row:
    """One job in its plainest form. `holder`: the lease whose writes are taken now."""

    state: str = "queued"
    holder: Lease | None = None
    lease_until: float = 0.0
    attempt: int = 0
    losses: int = 0
    cancelling: bool = False
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def become(self, state: str) -> None:
        self.state = state
        self.holder = self.holder if state == "running" else None
        self.cancelling = self.cancelling and state == "running"
        self.events.append(state)


class QueueMachine(RuleBasedStateMachine):
    kind: ClassVar[str]
    server: ClassVar[str | None]

    def __init__(self) -> None:
        super().__init__()
        self.opened = ExitStack()
        self.clock = Clock()
        self.queue = self.opened.enter_context(new_place(self.kind, self.server, self.clock))()
        self.rows: dict[str, Row] = {}
        self.keys: dict[str, tuple[str, str]] = {}
        self.leases: list[Lease] = []

    def teardown(self) -> None:
        self.opened.close()

    @rule(key=st.none() | st.sampled_from("kl"), body=st.sampled_from("xy"))
    def submit(self, key: str | None, body: str) -> None:
        known = self.keys.get(key) if key else None
        try:
            job, created = self.queue.submit(T, "search", {"body": body}, Key(key, body) if key else None)
        except IdempotencyConflict:
            assert known is not None and known[1] != body
            return
        assert created == (known is None) and (known is None or known == (job.id, body))
        if created:
            self.rows[job.id] = Row(events=["queued"])
            if key:
                self.keys[key] = job.id, body

    @rule(owner=owners)
    def claim(self, owner: str) -> None:
        job = self.queue.claim(owner, LEASE_S)
        for name, row in self.rows.items():
            lost = row.state == "running"
            if row.state not in ("queued", "running") or row.lease_until > self.clock.now:
                continue
            if row.cancelling:
                row.become("cancelled")
            elif row.losses + lost >= MAX_LOSSES:
                row.become("failed")
            else:
                assert job is not None and job.id == name
                row.holder, row.lease_until = Lease(name, owner, job.generation), self.clock.now + LEASE_S
                row.attempt, row.losses = row.attempt + 1, row.losses + lost
                row.become("running")
                self.leases.append(row.holder)
                return
        assert job is None

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S]))
    def wait(self, seconds: float) -> None:
        self.clock.pass_by(seconds)

    def writes(self, data: st.DataObject, write: Any) -> Row | None:
        """`write(lease)` of some worker that holds a lease, or held one; its row where it must be taken."""
        if not self.leases:
            return None
        lease = data.draw(st.sampled_from(self.leases[-4:]))
        row = self.rows[lease.job]
        try:
            write(lease, row)
        except LeaseLost:
            assert row.holder != lease
            return None
        assert row.holder == lease
        return row

    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        def write(lease: Lease, row: Row) -> None:
            assert self.queue.extend(lease, LEASE_S) == row.cancelling

        if row := self.writes(data, write):
            row.lease_until = self.clock.now + LEASE_S

    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        if row := self.writes(data, lambda lease, row: self.queue.report(lease, {"done": 1})):
            row.events.append("progress")

    @rule(data=st.data(), score=st.floats(allow_nan=False))
    def add_evaluation(self, data: st.DataObject, score: float) -> None:
        evaluation = {"point": [score], "score": score}

        def write(lease: Lease, row: Row) -> None:
            self.queue.add_evaluation(lease, len(row.evaluations), evaluation)

        if row := self.writes(data, write):
            row.evaluations.append(evaluation)
            row.losses = 0

    @rule(data=st.data(), state=st.sampled_from([State.DONE, State.FAILED, State.CANCELLED]))
    def finish(self, data: st.DataObject, state: State) -> None:
        if row := self.writes(data, lambda lease, row: self.queue.finish(lease, state)):
            row.losses = 0
            row.become(state)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if row := self.writes(data, lambda lease, row: self.queue.release(lease)):
            row.become("cancelled" if row.cancelling else "queued")
            row.lease_until = 0.0

    @rule(data=st.data(), seconds=st.sampled_from([0.0, LEASE_S]))
    def retry(self, data: st.DataObject, seconds: float) -> None:
        row = self.writes(data, lambda lease, row: self.queue.retry(lease, {"code": "away"}, seconds))
        if row is None:
            return
        row.losses += 1
        if row.losses >= MAX_LOSSES and not row.cancelling:
            row.become("failed")
        else:
            row.become("cancelled" if row.cancelling else "queued")
            row.lease_until = self.clock.now + seconds

    @rule(owner=owners)
    def release_owner(self, owner: str) -> None:
        self.queue.release_owner(owner)
        for row in self.rows.values():
            if row.holder and row.holder.owner == owner:
                row.become("cancelled" if row.cancelling else "queued")
                row.lease_until = 0.0

    @rule(owner=owners)
    def expire(self, owner: str) -> None:
        self.queue.expire(owner)
        for row in self.rows.values():
            if row.holder and row.holder.owner == owner:
                row.lease_until = 0.0

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.rows:
            return
        name = data.draw(st.sampled_from(list(self.rows)))
        row, job = self.rows[name], self.queue.cancel(T, name)
        if row.state == "queued" or (row.state == "running" and row.lease_until <= self.clock.now):
            row.become("cancelled")
        elif row.state == "running" and not row.cancelling:
            row.cancelling = True
            row.become("running")
        assert job.state == row.state

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        found = {job.id: job for job in self.queue.list_jobs(T, 1000)}
        assert list(found)[::-1] == list(self.rows)
        counts = Counter(row.state for row in self.rows.values())
        assert self.queue.count_states() == {state: counts[state] for state in State}
        for name, row in self.rows.items():
            job = found[name]
            assert (job.state, job.attempt, job.losses, job.cancelling) == (
                row.state,
                row.attempt,
                row.losses,
                row.cancelling,
            )
            assert job.owner == (row.holder.owner if row.holder else None)
            assert self.queue.evaluations(name) == row.evaluations
            events = self.queue.events(name, 0)
            assert [event.number for event in events] == list(range(1, len(events) + 1))
            assert [event.data.get("state", event.kind) for event in events] == row.events


def test_random_histories(kind: str, server: str | None) -> None:
    class Here(QueueMachine):
        pass

    Here.kind, Here.server = kind, server
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
