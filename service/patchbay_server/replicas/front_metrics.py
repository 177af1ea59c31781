"""What the front counts itself. Everything else is the replicas'."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from patchbay_server.replicas.affinity import Outcome
from patchbay_server.request_metrics import RequestMetrics


class FrontMetrics:
    """One registry a front."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = RequestMetrics(self.registry)
        why = "Requests by why they went to the replica that they went to."
        self.routed = Counter("patchbay_routed", why, ["outcome"], registry=self.registry)
        for outcome in Outcome:
            self.routed.labels(outcome)
        self.lost = Counter("patchbay_replicas_lost", "Requests whose replica was gone.", registry=self.registry)
        self.replicas = Gauge("patchbay_replicas", "Replicas that answer.", registry=self.registry)
        self.auth_failures = Counter(
            "patchbay_auth_failures", "Requests without the key, or with another one.", registry=self.registry
        )

    def render(self) -> str:
        """Prometheus' text format."""
        return generate_latest(self.registry).decode()
