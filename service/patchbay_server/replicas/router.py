"""Ray Serve's side of `affinity`: what its routers know of replicas, as candidates. Knows no HTTP and no deltas' names.

One router is made in every process that sends requests; all of them learn from the replicas themselves, once a second.
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from patchbay_server.replicas.affinity import Candidate, Held, Wanted, outcome_of, rank

WANTED = "wanted"


class AffinityRouter(RequestRouter):
    """Ranks replicas by `affinity.rank`. A replica says `{"deltas": [...], "capacity": n}` of itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = Held()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One a rank: the next is asked only where the one before takes no more requests."""
        wanted = Wanted()
        if pending_request is not None:
            wanted = pending_request.kwargs.get(WANTED, wanted)
            pending_request.routing_context.should_backoff = True  # else Serve asks again and again without a pause
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        self._held.keep(replicas)
        ranked = rank([self._candidate(name, replica) for name, replica in replicas.items()], wanted.deltas)
        if ranked:
            wanted.outcome = outcome_of(ranked[0], ranked, wanted.deltas)
            self._held.sent(ranked[0].name, wanted.deltas)
        return [[replicas[candidate.name]] for candidate in ranked]

    def _candidate(self, name: str, replica: RunningReplica) -> Candidate:
        stats = replica.routing_stats or {}
        self._held.said(name, stats.get("deltas", ()))
        load = self.replica_queue_len_cache.get(replica.replica_id) or 0
        return Candidate(name, self._held.of(name), load, stats.get("capacity", replica.max_ongoing_requests))
