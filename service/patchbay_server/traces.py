"""Whether the environment asks for traces. Imports nothing of OpenTelemetry, nor of the engine, where it does not."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchbay_server.tracing import Tracing

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
logger = logging.getLogger("patchbay_server")


def wants_traces() -> bool:
    """Whether OpenTelemetry's variables say where traces go, and do not forbid them."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip()
    return exporter != "none" and bool(exporter or any(os.environ.get(name) for name in ENDPOINTS))


@contextmanager
def tracing() -> Iterator[Tracing | None]:
    """None where no traces are wanted, or OpenTelemetry's SDK is not installed. What is left is sent on the way out.

    Raises InputError where an exporter that is asked for is not installed.
    """
    if not wants_traces():
        yield None
        return
    try:
        from patchbay_server.tracing import open_tracing  # noqa: PLC0415 - nobody else is to pay for it
    except ImportError:
        logger.warning("OTEL_* variables ask for traces, and there are none without: pip install 'patchbay[otel]'")
        yield None
        return
    opened = open_tracing()
    try:
        yield opened
    finally:
        opened.provider.shutdown()
