"""The metrics of several replicas as one text, each series with the replica that it is of. Knows nothing of what they
measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

REPLICA = "replica"
SHARED = ("patchbay_jobs", "patchbay_job_stage_ratio", "patchbay_job_evaluations", "patchbay_job_best_score")
"""Of the queue of jobs, which is one for all: every replica says the same of it, and one is heard."""


class Gathered(Collector):
    """`texts`: what each replica's `/metrics` is, by its name."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        for number, (replica, text) in enumerate(self._texts.items()):
            for family in text_string_to_metric_families(text):
                if number and family.name in SHARED:
                    continue
                metric = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                named = {} if family.name in SHARED else {REPLICA: replica}
                metric.samples += [sample._replace(labels={**sample.labels, **named}) for sample in family.samples]
        yield from found.values()


def gathered(texts: Mapping[str, str]) -> bytes:
    """Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(Gathered(texts))
    return generate_latest(registry)
