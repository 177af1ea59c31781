"""A few rounds of real servers: a line for each catalog and kind of request."""

from __future__ import annotations

import json
import sys

import pytest
from tests.long import long

from benchmarks import overhead


@long
def test_every_request_is_measured_on_every_catalog(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["overhead", "--rounds", "3"])
    overhead.main()
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    found = [line for line in lines if line.get("kind") == "overhead"]
    assert {(line["catalog"], line["request"]) for line in found} == {
        (catalog, request) for catalog in ("sqlite", "redis") for request in ("read", "infer", "change")
    }
    for line in found:
        assert line["with_ms"] > 0 and line["added_ms"] == pytest.approx(line["with_ms"] - line["without_ms"])
