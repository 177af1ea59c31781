"""Rounds of Schemathesis over one real server after another, until so many requests were made.

A program: `python -m tests.openapi.run CASES RECORD`. Every round is a line of RECORD and has a seed of its own; what
is in RECORD is not run again, so that a run that was stopped goes on. Ends with 1 and the failures where there are any.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from tests import pico
from tests.e2e.processes import forking
from tests.openapi.conformance import PHASES, Report, conform
from tests.service.serving import ok
from tests.service.streaming import TEMPLATE

KEY = "a-key-of-the-operator"
EXAMPLES = 10  # at most, for every operation and every phase


@dataclass(frozen=True, slots=True)
class Target:
    """A base, and whether its server asks for a key."""

    kind: str
    has_key: bool


TARGETS = (
    Target("llama", True),
    Target("vit", False),
    Target("neuript", True),
    Target("bert_encoder", False),
    Target("llama", False),
    Target("t5", True),
    Target("bert_classifier", True),
    Target("clip_vision", False),
)


@contextmanager
def served(target: Target, folder: Path) -> Iterator[tuple[httpx2.Client, Path, dict[str, str]]]:
    """A server with two deltas, a saved merge and a fine-tune's files; the deltas' folder, and the files' blobs."""
    base, samples = pico.MAKERS[target.kind](folder / "base"), folder / "samples"
    (base / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    samples.mkdir()
    for seed, name in enumerate(("math", "code"), 1):
        tuned = pico.perturb(base, folder / name, seed)
        pico.delta_file(base, tuned, samples / f"{name}.safetensors", density=0.3)
    environment = {"PATCHBAY_API_KEY": KEY} if target.has_key else {}
    with forking(base, folder / "store", **environment) as forker:
        client = forker.start()
        client.headers["Authorization"] = f"Bearer {KEY}"
        for file in samples.iterdir():
            ok(client.post("/v1/deltas", params={"name": file.stem}, content=file.read_bytes()), 201)
        ok(client.post("/v1/merges", json={"name": "saved", "recipe": "0.5*math + 0.5*code"}), 201)
        files = {name: _put(client, (folder / "math" / name).read_bytes()) for name in ("config.json", pico.WEIGHTS)}
        yield client, samples, files


def _put(client: httpx2.Client, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    ok(client.put(f"/v1/blobs/{digest}", content=data), 201)
    return digest


def answered(client: httpx2.Client) -> dict[str, int]:
    """Requests by status, as the server itself counted them."""
    found: dict[str, int] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "patchbay_http_requests_total":
                status = sample.labels["status"]
                found[status] = found.get(status, 0) + int(sample.value)
    return found


def one_round(
    target: Target, seed: int, examples: int, phases: Sequence[str] = PHASES
) -> tuple[Report, dict[str, int]]:
    with tempfile.TemporaryDirectory() as name, served(target, Path(name)) as (client, samples, files):
        key = KEY if target.has_key else None
        report = conform(
            str(client.base_url), Path(name), samples, files, seed=seed, examples=examples, phases=phases, key=key
        )
        assert ok(client.get("/readyz"))["status"] == "ready"
        assert ok(client.post("/v1/base/verify"))["ok"] is True
        return report, answered(client)


def run(cases: int, record: Path) -> int:
    done = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    while sum(line["cases"] for line in done) < cases:
        seed = len(done) + 1
        target = TARGETS[len(done) % len(TARGETS)]
        report, statuses = one_round(target, seed, EXAMPLES)
        line = {"seed": seed, "base": target.kind, "key": target.has_key, "cases": report.cases, "statuses": statuses}
        bad = report.failures or report.errors or any(status >= "5" for status in statuses)
        print(json.dumps(line), flush=True)
        if bad:
            print(report.output)
            return 1
        done.append(line)
        with record.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print(f"{sum(line['cases'] for line in done)} cases in {len(done)} rounds, no failure")
    return 0


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), Path(sys.argv[2])))
