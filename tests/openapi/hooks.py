"""What Schemathesis cannot know by itself: bytes of real deltas, digests of blobs, and deadlines that can be met.

Loaded by `schemathesis run`; `PATCHBAY_SAMPLES` is a folder of valid delta files, `PATCHBAY_FILES` has the
blobs of a fine-tune, by file name. Knows no server.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st

SAMPLES = [file.read_bytes() for file in sorted(Path(os.environ["PATCHBAY_SAMPLES"]).iterdir())]
FILES = json.loads(os.environ["PATCHBAY_FILES"])
PROMPT_TIMEOUT_S = 30  # less may be refused with 504: a request's own deadline, and no failure of the server


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = draw(st.sampled_from(SAMPLES))
    at = draw(st.integers(0, len(data) - 1))
    return data[:at] + draw(st.binary(max_size=20)) + data[at + draw(st.integers(0, 20)) :]


BYTES = st.one_of(
    st.sampled_from(SAMPLES),
    st.sampled_from(SAMPLES),
    damaged(),
    st.binary(max_size=200),
    st.just(b"the cat\nthe dog\n"),
)
for kind in ("application/octet-stream", "application/offset+octet-stream"):
    schemathesis.openapi.media_type(kind, BYTES)


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: schemathesis.Case) -> schemathesis.Case:
    body: Any = case.body
    if isinstance(body, dict) and isinstance(body.get("timeout"), int | float) and 0 < body["timeout"] <= 86400:
        body["timeout"] = max(body["timeout"], PROMPT_TIMEOUT_S)
    if isinstance(body, dict) and isinstance(body.get("files"), dict) and len(body["files"]) == 1:
        body["files"] = FILES
    if isinstance(body, bytes) and "digest" in case.path_parameters and len(body) % 2 == 0:
        case.path_parameters["digest"] = f"sha256:{hashlib.sha256(body).hexdigest()}"
    return case
