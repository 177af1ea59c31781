"""The manifest of a delta file: what it was made from, how, and how every tensor is encoded. FORMAT.md is its
specification.

Strict: an unknown field or version is refused, never ignored. Knows nothing of bytes and files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, StringConstraints, ValidationError, field_validator

from patchbay.delta.entries import (
    DTYPES,
    MAX_DIM,
    MAX_NUMEL,
    MAX_RANK,
    Band,
    Count,
    Dense,
    Entries,
    Entry,
    Lossless,
    LowRank,
    Sparse,
    Strict,
    entry_lists,
    numel,
)
from patchbay.errors import MalformedDelta, complaint

__all__ = [
    "DTYPES",
    "FORMAT_VERSION",
    "MAX_DIM",
    "MAX_NUMEL",
    "MAX_RANK",
    "MAX_STREAMS",
    "MAX_TENSORS",
    "Band",
    "Base",
    "Compression",
    "Dense",
    "Entries",
    "Entry",
    "LowRank",
    "Lossless",
    "Manifest",
    "Provenance",
    "Sparse",
    "Statistics",
    "Token",
    "numel",
]

FORMAT_VERSION = 2
MAX_TENSORS = 20_000
MAX_STREAMS = 20 * MAX_TENSORS

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\-/]{1,256}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=1024)]


class Base(Strict):
    name: Text
    fingerprint: Hash


class Compression(Strict):
    """How the delta was made. `density` is the fraction kept over all prunable entries."""

    method: Text
    density: Annotated[FiniteFloat, Field(ge=0, le=1)]
    seed: int | None = None
    params: dict[str, int | float | str | bool] = Field(default={}, max_length=1000, fail_fast=True)


class Statistics(Strict):
    """Taken against the full task vector tau: |tau - delta|_2 / |tau|_2 and sigma = max(0, 1 - |delta|_1 / |tau|_1)."""

    relative_error: Annotated[FiniteFloat, Field(ge=0)]
    sigma: Annotated[FiniteFloat, Field(ge=0, le=1)]


class Provenance(Strict):
    finetuned: Text
    tool: Text
    original_bytes: Count
    parameters: Count | None = None


class Token(Strict):
    id: Annotated[int, Field(ge=0, le=MAX_DIM)]
    content: Text
    special: bool


class Manifest(Strict):
    """One delta. `tensors` is in sorted order of names, which is also the order of their streams.

    `unused`: for each stream in order, by how many bytes it is shorter than it could be (version 2).
    """

    format_version: Literal[1, 2]
    base: Base
    compression: Compression
    statistics: Statistics
    provenance: Provenance
    tensors: dict[Name, Annotated[Entry, Field(discriminator="kind")]] = Field(max_length=MAX_TENSORS, fail_fast=True)
    unused: tuple[Count, ...] = Field(default=(), max_length=MAX_STREAMS, fail_fast=True)
    missing: tuple[Name, ...] = Field(default=(), max_length=MAX_TENSORS, fail_fast=True)
    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{0,64}$")] = ""
    config: dict[str, Any] = Field(default={}, max_length=1000)
    config_removed: tuple[Text, ...] = Field(default=(), max_length=1000, fail_fast=True)
    labels: tuple[Text, ...] | None = Field(default=None, max_length=100_000, fail_fast=True)
    tokens: tuple[Token, ...] = Field(default=(), max_length=100_000, fail_fast=True)
    payload_sha256: Hash

    @field_validator("tensors")
    @classmethod
    def _valid_tensors(cls, tensors: dict[str, Entry]) -> dict[str, Entry]:
        for name, entry in tensors.items():
            if ".." in name:
                raise ValueError(f"tensor name {name!r} contains '..'")
            for listed in entry_lists(entry):
                if listed.count > numel(entry.shape):
                    raise ValueError(f"{name!r} keeps {listed.count} entries of {numel(entry.shape)}")
        return dict(sorted(tensors.items()))

    @classmethod
    def parse(cls, text: str | bytes) -> Manifest:
        """Validates JSON. Raises MalformedDelta that names the first offending field."""
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            # Cut short: names and values in the message are the file's own.
            place = ".".join(str(part)[:300] for part in first["loc"]) or "manifest"
            raise MalformedDelta(f"manifest: {place}: {complaint(first['msg'])[:500]}", param=place) from error

    def to_json(self) -> str:
        return self.model_dump_json(exclude_defaults=True)

    @property
    def is_head_alone(self) -> bool:
        """It brings tensors and changes none of the base's."""
        return bool(self.tensors) and not self.tokens and all(each.kind == "added" for each in self.tensors.values())

    @property
    def num_kept(self) -> int:
        """Kept entries of the sparse tensors."""
        sparse = [entry for entry in self.tensors.values() if isinstance(entry, Sparse)]
        return sum(entry.count + (entry.own.count if entry.own else 0) for entry in sparse)
