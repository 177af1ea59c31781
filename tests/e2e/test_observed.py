"""What people send, what they are answered and their keys are in nothing that a server writes: log, traces, metrics."""

from __future__ import annotations

import gzip
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
from tests import pico
from tests.e2e.processes import ENVIRONMENT, announced, ended, start
from tests.service.serving import ok
from tests.service.streaming import TEMPLATE
from tests.service.test_api_doc import section, table
from tests.test_deploy import promtool, watched

from patchbay_server.access_log import PROBES

FAILING = Path(__file__).with_name("failing.py")
CANARY = "canary"  # in all that is sent
KEY = "a-key-of-canary-signs"
JSON = {"content-type": "application/json"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(slots=True)
class Heard:
    """What was answered, and at the end all that the server wrote."""

    answers: list[str] = field(default_factory=list)
    log: str = ""
    output: str = ""  # the spans, as OpenTelemetry's console exporter writes them
    metrics: str = ""
    collected: list[bytes] = field(default_factory=list)  # the spans, as a collector gets them

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines()]

    @property
    def spans(self) -> list[dict[str, Any]]:
        found, rest = [], self.output.strip()
        while rest:
            span, end = json.JSONDecoder().raw_decode(rest)
            found.append(span)
            rest = rest[end:].strip()
        return found


@pytest.fixture(scope="module")
def heard(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Heard]:
    folder = tmp_path_factory.mktemp("private")
    base = pico.rewrite(model_folder("llama"), folder / "base", lambda tensors: tensors)
    (base / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    delta = pico.delta_file(model_folder("llama"), finetune_folder("llama"), folder / "math.safetensors")
    asked = [str(FAILING), str(base), str(folder / "store"), str(folder / "fail"), CANARY]
    found = Heard()
    with collector(found.collected) as endpoint, ended(start(*asked, **settings(endpoint))) as process:
        url = announced(process)[3]
        with httpx2.Client(base_url=url, timeout=60) as client:
            everywhere(client)
            client.headers["authorization"] = f"Bearer {KEY}"
            everywhere(client)
            garbage(url)
            meant(client, delta.read_bytes(), found)
            failures(client, folder)
            found.metrics = client.get("/metrics").text
        process.send_signal(signal.SIGTERM)
        found.output, found.log = process.communicate(timeout=60)
    yield found


def settings(collector: str) -> dict[str, str]:
    own = {"PATCHBAY_LOG_LEVEL": "debug", "PATCHBAY_API_KEY": KEY}
    return own | {"OTEL_TRACES_EXPORTER": "console,otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": collector}


@contextmanager
def collector(bodies: list[bytes]) -> Iterator[str]:
    """Takes what is sent to it, at its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def everywhere(client: httpx2.Client) -> None:
    """Every route, with bodies that break in different ways."""
    paths = client.get("/openapi.json").json()["paths"]
    assert len(paths) > 20
    bodies = [(b"", {}), (b'{"' + CANARY.encode(), JSON), (CANARY.encode(), {"content-type": f"text/{CANARY}"})]
    known = dict.fromkeys(("model", "prompt", "input", "recipe", "name", "base", "messages", CANARY), f"{CANARY} text")
    bodies.append((json.dumps(known).encode(), JSON))
    for path, methods in paths.items():
        for method in methods:
            for body, kind in bodies:
                headers = {**kind, "x-request-id": f"{CANARY} id", "idempotency-key": CANARY, "x-api-key": CANARY}
                client.request(
                    method.upper(),
                    re.sub(r"\{.*?\}", f"{CANARY}-name", path),
                    params={CANARY: CANARY, "name": CANARY},
                    content=body,
                    headers=headers,
                )
    client.get(f"/v1/models/{CANARY}", headers={"authorization": f"Bearer {CANARY}"})


def garbage(url: str) -> None:
    """What is no HTTP at all."""
    with socket.create_connection((url.split("/")[2].split(":")[0], int(url.rpartition(":")[2])), timeout=60) as broken:
        broken.sendall(f"{CANARY} {CANARY}\r\n{CANARY}\r\n\r\n".encode())
        broken.recv(1000)


def meant(client: httpx2.Client, delta: bytes, found: Heard) -> None:
    """Requests that are answered."""
    ok(client.post("/v1/deltas", params={"name": "math"}, content=delta), 201)
    text, words = f"the cat {CANARY} sees", {str(token): 100 for token in range(4, 20)}
    asked = {"model": "0.5*math", "prompt": text, "max_tokens": 8, "ignore_eos": True, "stop": [f"{CANARY} stop"]} | {
        "logit_bias": words
    }
    whole = ok(client.post("/v1/completions", json={**asked, "echo": True}, headers={"traceparent": PARENT}))
    assert whole["choices"][0]["text"].startswith(text)
    found.answers.append(whole["choices"][0]["text"].removeprefix(text))
    assert '"finish_reason":"length"' in client.post("/v1/completions", json={**asked, "stream": True}).text
    chat = {"model": "math", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "logit_bias": words}
    found.answers.append(ok(client.post("/v1/chat/completions", json=chat))["choices"][0]["message"]["content"])
    ok(client.post("/v1/merges", json={"name": "both", "recipe": "0.25*math"}), 201)


def failures(client: httpx2.Client, folder: Path) -> None:
    """Of the server, with what was sent in the exceptions' messages."""
    (folder / "fail").touch()
    body = {"model": "base", "prompt": f"the dog {CANARY}"}
    assert client.post("/v1/completions", json=body).status_code == 500
    assert "backbone_error" in client.post("/v1/completions", json={**body, "stream": True}).text
    with closing(sqlite3.connect(folder / "store" / "catalog.db")) as catalog, catalog:
        broken = json.dumps({"recipe": {"method": CANARY}, "follow": False, "pins": {}})
        assert catalog.execute("UPDATE merges SET recipe = ?", [broken]).rowcount == 1
    assert client.get("/v1/merges/both").status_code == 500


def test_nothing_that_was_sent_is_in_anything_that_was_written(heard: Heard) -> None:
    assert len(heard.lines) > 200 and heard.metrics and len(heard.spans) > 200 and heard.collected
    sent = b"".join(heard.collected).decode("utf-8", "replace")
    for text in (heard.log, heard.output, heard.metrics, sent):
        assert [line for line in text.splitlines() if CANARY in line.lower()] == []


def test_nothing_that_was_answered_is(heard: Heard) -> None:
    for answer in heard.answers:
        assert len(answer.split()) > 3
        assert answer not in heard.log and answer not in heard.output


def test_the_failures_are_there_all_the_same(heard: Heard) -> None:
    failed = [line for line in heard.lines if "exception" in line]
    assert {"ValueError", "ValidationError"} <= {line["exception"] for line in failed}
    assert any("failing.py" in line["traceback"] for line in failed)
    by_code = {line["code"] for line in heard.lines if line["message"] == "request" and "code" in line}
    assert {"unauthorized", "not_found", "invalid_request", "internal_error", "backbone_error"} <= by_code


def test_every_line_is_an_object_libraries_included(heard: Heard) -> None:
    loggers = {line["logger"] for line in heard.lines}
    assert {"patchbay_server", "patchbay_server.access", "uvicorn.error", "patchbay.engine.generator"} <= loggers
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in heard.lines)


def parts(heard: Heard) -> dict[str, dict[str, Any]]:
    """The spans of the request that brought a traceparent, by name."""
    _, trace, _, _ = PARENT.split("-")
    found = [span for span in heard.spans if span["context"]["trace_id"] == f"0x{trace}"]
    assert len({span["name"] for span in found}) == len(found)
    return {span["name"]: span for span in found}


def test_a_request_is_a_trace_below_its_callers(heard: Heard) -> None:
    spans = parts(heard)
    request = spans.pop("POST /v1/completions")
    assert request["parent_id"] == f"0x{PARENT.split('-')[2]}" and request["kind"] == "SpanKind.SERVER"
    assert spans.keys() == {"load", "plan", "queue", "prefill", "decode"}
    assert {span["parent_id"] for span in spans.values()} == {request["context"]["span_id"]}
    times = [(spans[name]["start_time"], spans[name]["end_time"]) for name in ("queue", "prefill", "decode")]
    assert times == sorted(times) and all(start <= end for start, end in times)
    assert request["start_time"] <= spans["load"]["start_time"] <= spans["plan"]["end_time"] <= times[0][0]


def test_spans_say_which_deltas_and_how_much_of_them(heard: Heard) -> None:
    spans = parts(heard)
    [digest] = spans["load"]["attributes"]["patchbay.deltas"]
    for name in ("POST /v1/completions", "queue", "prefill", "decode"):
        found = spans[name]["attributes"]
        assert (found["patchbay.deltas"], found["patchbay.weights"]) == ([digest], [0.5])
        assert (found["patchbay.model"], found["patchbay.path"]) == ("math", "decoupled")
    request = spans["POST /v1/completions"]["attributes"]
    assert re.fullmatch("[0-9a-f]{32}", request["patchbay.request_id"]) and request["url.path"] == "REDACTED"
    assert spans["decode"]["attributes"]["gen_ai.usage.output_tokens"] == 8
    assert spans["prefill"]["attributes"]["gen_ai.usage.input_tokens"] == 4
    assert spans["queue"]["resource"]["attributes"]["service.name"] == "patchbay"


def test_probes_leave_no_spans(heard: Heard) -> None:
    logged = {line["route"] for line in heard.lines if line["message"] == "request"}
    traced = {route for span in heard.spans if (route := span["attributes"].get("http.route"))}
    assert len(traced) > 20 and logged >= PROBES and not traced & PROBES


def test_the_document_names_every_span_and_attribute(heard: Heard) -> None:
    spans = [
        span for span in heard.spans if "http.route" not in span["attributes"] or "patchbay.path" in span["attributes"]
    ]
    names = {span["name"] for span in heard.spans if " " not in span["name"] and span["parent_id"]}
    own = {name for span in spans for name in span["attributes"] if name.startswith(("patchbay.", "gen_ai."))}
    documented = table(section("## Traces"), "span").keys() - {"METHOD /route"}
    assert documented == names and table(section("## Traces"), "attribute").keys() == own


def test_who_wants_no_traces_imports_nothing_of_them() -> None:
    code = """
import os, sys
from patchbay_server.traces import tracing
with tracing() as none:
    assert none is None
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "patchbay_server.tracing"))]
os.environ |= {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}
with tracing() as none:
    assert none is None
sys.modules["opentelemetry.sdk.resources"] = None  # as if it were not installed
del os.environ["OTEL_SDK_DISABLED"]
with tracing() as none:
    assert none is None
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "pip install 'patchbay[otel]'" in done.stderr


def test_every_metric_that_is_watched_is_shown(heard: Heard) -> None:
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", heard.metrics, re.MULTILINE))
    assert len(watched()) > 50 and watched() <= types.keys()


def test_metrics_keep_prometheus_own_rules(heard: Heard) -> None:
    """But for vLLM's names, which have a colon and are given."""
    done = promtool("check", "metrics", stdin=heard.metrics)
    assert done.returncode in (0, 3), done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("vllm:")] == []
