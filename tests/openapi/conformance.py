"""Schemathesis over a server's whole OpenAPI: every operation, and sequences of them by the links between. Knows no
server but by its URL.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
NAMES = [
    "base",
    "math",
    "code",
    "math@1",
    "saved",
    "0.5*math",
    "0.4*math + 0.6*code",
    "linear(math, code)",
    "ties(math)",
]
# Which names are there, and which input a model takes, is in no schema: what fits the schema may still be refused.
LEFT_OUT = ("positive_data_acceptance",)
CONFIG = """
hooks = "tests.openapi.hooks"
request-timeout = 60.0
max-stream-events = 20

[generation]
max-examples = {examples}
with-security-parameters = {has_key}
database = "none"

[phases.stateful.generation]
max-examples = {sequences}

[cache]
enabled = false

[dictionaries.names]
values = {names}

[dictionaries.blobs]
values = {blobs}

[parameters]
{bindings}

# A job that is cancelled can still be looked at.
[[operations]]
include-path = ["/v1/jobs/{{job}}", "/v1/jobs/{{job}}/events"]
checks.use_after_free.enabled = false
"""
SEQUENCES = 6
PHASES = ("examples", "coverage", "fuzzing", "stateful")
BOUND = {
    "names": (
        *("query.name", "path.name", "path.delta"),
        *("body.model", "body.recipe", "body.name", "body.prompt", "body.input"),
    ),
    "blobs": ("path.digest", "body.calibration", "body.labels", "body.retained", "body.blob"),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found. `failures` are those that Schemathesis lists, with what to send to see them again."""

    cases: int
    phases: dict[str, str]
    failures: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    output: str


def conform(
    url: str,
    folder: Path,
    samples: Path,
    files: Mapping[str, str],
    *,
    seed: int,
    examples: int,
    phases: Sequence[str],
    key: str | None,
) -> Report:
    """Runs these phases with at most so many examples an operation, and `SEQUENCES` times as many sequences. `files`
    are blobs that are there, by file name. The run's own files go to `folder`.
    """
    config, report = folder / "schemathesis.toml", folder / "report.json"
    config.write_text(_config(examples, [*files.values()], key is not None))
    left_out = (*LEFT_OUT, *([] if key else ["ignored_auth"]))  # a server without keys asks for none
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", f"--config-file={config}", "run", f"{url}/openapi.json"),
            *(f"--seed={seed}", f"--phases={','.join(phases)}", f"--exclude-checks={','.join(left_out)}"),
            *("--continue-on-failure", "--no-color", "--warnings=off"),
            *("--report=json", f"--report-json-path={report}"),
            *([f"--header=Authorization: Bearer {key}"] if key else []),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        | {"PATCHBAY_SAMPLES": str(samples), "PATCHBAY_FILES": json.dumps(files)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    found = json.loads(report.read_text())
    phases = {name: phase["status"] for name, phase in (found["phases"] or {}).items()}
    return Report(found["test_cases"]["generated"], phases, found["failures"], found["errors"], done.stdout)


def _config(examples: int, blobs: list[str], has_key: bool) -> str:
    bindings = "\n".join(
        f'"{place}" = {{dictionary = "{kind}", probability = 0.6}}'
        for kind, places in BOUND.items()
        for place in places
    )
    values = {"names": json.dumps(NAMES), "blobs": json.dumps(blobs), "has_key": json.dumps(has_key)}
    return CONFIG.format(**values, bindings=bindings, examples=examples, sequences=SEQUENCES * examples)
