"""OpenTelemetry spans of requests, where the operator asks for them with OpenTelemetry's own OTEL_* variables.

Imported only then, and needs `patchbay[otel]`. Spans have digests, weights and numbers, never what was sent or
answered. The framework makes the one of HTTP and reads `traceparent`; those below it are made when what they tell of
is over. Knows nothing of how they get where they go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib.metadata import entry_points
from weakref import WeakKeyDictionary

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

import patchbay
from patchbay.engine.observer import Observer
from patchbay.engine.recipes import Ready
from patchbay.engine.sequence import Sequence
from patchbay.errors import InputError
from patchbay.merge import CanonicalRecipe
from patchbay_server.logs import current
from patchbay_server.residents import digest_of

Attributes = Mapping[str, str | int | float | tuple[str, ...] | tuple[float, ...]]
EXPORTERS = "opentelemetry_traces_exporter"  # a group of entry points, the SDK's own
_PRIVATE = ("url.path", "url.query")  # of the framework's span: anything may be in them, and the route says enough


class Tracing(Observer):
    """Makes spans for what the engine tells. `provider` is for the framework."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("patchbay", patchbay.__version__)
        self._requests: WeakKeyDictionary[Ready, tuple[Context, Attributes]] = WeakKeyDictionary()

    def asked(self, label: str, ready: Ready, recipe: CanonicalRecipe | None) -> None:
        """The request that is under way here runs as `ready`."""
        attributes = {"patchbay.model": label, "patchbay.path": ready.path.value, **_described(recipe)}
        span, about = trace.get_current_span(), current.get()
        span.set_attributes(dict(attributes))
        if about is not None:
            span.set_attribute("patchbay.request_id", about.request_id)
        self._requests[ready] = context.get_current(), attributes

    def loaded(self, digest: str, seconds: float) -> None:
        now = time.time()
        self._tell("load", now - seconds, now, {"patchbay.deltas": (digest_of(digest),)}, context.get_current())

    def built(self, recipe: CanonicalRecipe, seconds: float) -> None:
        now = time.time()
        self._tell("plan", now - seconds, now, _described(recipe), context.get_current())

    def finished(self, sequence: Sequence) -> None:
        parent, attributes = self._requests.get(sequence.request.ready, (None, {}))
        if parent is None:  # nobody's request
            return
        nothing: Attributes = {}
        read: Attributes = {"gen_ai.usage.input_tokens": len(sequence.request.prompt)}
        written: Attributes = {
            "gen_ai.usage.output_tokens": len(sequence.draws.answer),
            "gen_ai.response.finish_reasons": (sequence.ended or "error",),
        }
        offset = time.time() - time.monotonic()
        for name, start, end, more in (
            ("queue", sequence.arrived, sequence.admitted or sequence.over, nothing),
            ("prefill", sequence.admitted, sequence.first or sequence.over, read),
            ("decode", sequence.first, sequence.over, written),
        ):
            if start is not None and end is not None:
                self._tell(name, start + offset, end + offset, {**attributes, **more}, parent)

    def _tell(self, name: str, start: float, end: float, attributes: Attributes, parent: Context) -> None:
        """In unix seconds."""
        span = self._tracer.start_span(name, parent, attributes=dict(attributes), start_time=_nanoseconds(start))
        span.end(_nanoseconds(end))


class _Private(SpanProcessor):
    """What OpenTelemetry would tell of an URL is taken back before anybody sees it."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for name in _PRIVATE:
            if name in (span.attributes or ()):
                span.set_attribute(name, "REDACTED")

    def on_end(self, span: ReadableSpan) -> None:
        """Nothing is left to do."""


def open_tracing() -> Tracing:
    """Raises InputError where an exporter that is asked for is not installed."""
    provider = TracerProvider(resource=_resource())
    provider.add_span_processor(_Private())
    for exporter in map(_exporter, _names()):
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def _names() -> list[str]:
    names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")]
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol)
    otlp = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    return [otlp if name == "otlp" else name for name in names if name not in ("", "none")]


def _exporter(name: str) -> SpanExporter:
    installed = {found.name: found for found in entry_points(group=EXPORTERS)}
    if name not in installed:
        raise InputError(
            f"there is no exporter of traces {name!r} here: install it, or set OTEL_TRACES_EXPORTER to one of "
            f"{', '.join(sorted(installed))} or none",
            param="OTEL_TRACES_EXPORTER",
        )
    made: SpanExporter = installed[name].load()()
    return made


def _resource() -> Resource:
    """Ours where the environment does not say otherwise."""
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({"service.version": patchbay.__version__} | ({} if named else {"service.name": "patchbay"}))


def _described(recipe: CanonicalRecipe | None) -> Attributes:
    if recipe is None:
        return {}
    return {
        "patchbay.method": recipe.method,
        "patchbay.deltas": tuple(digest_of(name) for name, _ in recipe.terms),
        "patchbay.weights": tuple(weight for _, weight in recipe.terms),
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
