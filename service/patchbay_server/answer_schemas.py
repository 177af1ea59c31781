"""The bodies of answers, for OpenAPI. No answer passes through them: tests hold what is sent against them.

Knows no route.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from patchbay.merge import Recipe
from patchbay_server.openapi import Failure


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Health(Answer):
    status: Literal["ok"]


class Readiness(Answer):
    """`path` is how deltas run by default. While the catalog is away what is known goes on."""

    status: Literal["ready"]
    path: str
    catalog: Literal["answers", "away"]


class Cached(Answer):
    count: int
    bytes: int


class KeysAndValues(Answer):
    bytes: int | None
    budget_tokens: int
    used_tokens: int | None


class Execution(Answer):
    """What the proofs at start found, and from which size on deltas are patched."""

    decoupled: bool
    error: float | None
    reason: str | None
    break_even_bytes: int | None
    layers: dict[str, int]
    continuous_batching: bool | None
    not_continuous_reason: str | None
    kv: KeysAndValues | None


class Base(Answer):
    """The resident base. `cached_deltas` is null without the scope `admin`."""

    name: str
    task: str
    fingerprint: str
    resident_digest: str
    device: str
    dtype: str
    num_parameters: int
    resident_bytes: int
    labels: list[str] | None
    cached_deltas: Cached | None
    execution: Execution


class Verified(Answer):
    ok: bool
    fingerprint: str
    resident_digest: str


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    kind: Literal["base", "delta", "merge"]


class Models(Answer):
    object: Literal["list"]
    data: list[Model]


class Summary(Answer):
    """What the manifest says of a delta."""

    method: str
    density: float
    bits_per_parameter: float
    ratio: float
    relative_error: float
    labels: list[str] | None
    own_head: bool
    finetuned: str
    base: str


class Delta(Answer):
    """`resident_bytes` is null while it is not in this server's memory."""

    name: str
    version: int
    current: bool
    digest: str
    size: int
    created_at: float
    summary: Summary
    pinned: bool
    resident_bytes: int | None


class DeltaVersions(Delta):
    versions: list[Delta]


class Deltas(Answer):
    data: list[Delta]


class DeletedDeltas(Answer):
    deleted: list[Delta]


class PinnedTerm(Answer):
    """What a term meant when its merge was saved."""

    term: str
    name: str
    version: int
    digest: str


class Merge(Answer):
    """`expression` is null where terms have `params` of their own."""

    name: str
    recipe: Recipe
    expression: str | None
    follow: bool
    deltas: list[PinnedTerm]
    created_at: float


class Merges(Answer):
    data: list[Merge]


class DeletedMerges(Answer):
    deleted: list[Merge]


class Term(Answer):
    """`weight` is null where rules say it."""

    name: str
    version: int
    digest: str
    weight: float | None


class About(Answer):
    """What answered: the same digests, weights, head and inputs give the answer again."""

    path: Literal["base", "decoupled", "patched"]
    deltas: list[Term]
    recipe: str | Recipe | None
    warnings: list[str]


class Preview(Answer):
    method: str
    merged_to: Literal["plan", "delta"]
    bytes: int
    milliseconds: float
    hash: str
    terms: list[str]
    norms: list[float]
    kind_norms: dict[str, list[float]]
    along_base: list[float]
    cosines: list[list[float]]
    sign_conflicts: float
    patchbay: About


class Blob(Answer):
    digest: str
    size: int


class Presigned(Answer):
    """Without a URL where the tenant has the bytes already. `expires_in` is seconds."""

    blob: str
    url: str | None
    headers: dict[str, str]
    expires_in: float | None


class Job(Answer):
    """`result` is there once it is done, `error` once it has failed."""

    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    cancelling: bool
    attempt: int
    request: dict[str, Any]
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: Failure | None
    created_at: float
    updated_at: float


class Jobs(Answer):
    data: list[Job]
