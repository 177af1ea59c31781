"""Metrics that show what somebody else counts: read when Prometheus asks. Knows nothing of what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Counter, Gauge
from prometheus_client.samples import Sample

Series = Iterable[tuple[Mapping[str, str], float]]


class ReadCounter(Counter):
    """A counter that may show what somebody else counts, as a gauge may."""

    def set_function(self, read: Callable[[], float]) -> None:
        self._child_samples = lambda: (Sample("_total", {}, float(read()), None, None),)  # type: ignore[method-assign]


class ReadSeries(Gauge):
    """A gauge with labels whose series come and go with what there is: `read` gives all of them, with all labels."""

    def set_series(self, read: Callable[[], Series]) -> None:
        self._multi_samples = lambda: [  # type: ignore[method-assign]
            Sample("", dict(labels), float(value), None, None) for labels, value in read()
        ]
