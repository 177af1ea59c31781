"""The manifest of a delta file: what it was made from, how, and how every tensor is encoded. FORMAT.md is its
specification.

Strict: an unknown field or version is refused, never ignored. Knows nothing of bytes and files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from patchbay.delta.codecs import POSITIONS, VALUES
from patchbay.errors import MalformedDelta

FORMAT_VERSION = 1
MAX_TENSORS = 20_000
MAX_RANK = 8
MAX_DIM = 2**31
MAX_NUMEL = 2**48

# safetensors' names of the dtypes that a model's tensor may have.
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\-/]{1,256}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=1024)]
Dim = Annotated[int, Field(ge=0, le=MAX_DIM)]
Count = Annotated[int, Field(ge=0, le=MAX_NUMEL)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Entries(Strict):
    """A list of positions with values: `own` values of a sign tensor, or raw-bit `exceptions`."""

    count: Count
    positions: str

    @field_validator("positions")
    @classmethod
    def _known_positions(cls, name: str) -> str:
        return _known(name, POSITIONS, "position encoding")


class Sparse(Entries):
    """A pruned matrix: base + the values at the positions. `own` lists further entries that keep a bf16 value of their
    own.
    """

    kind: Literal["sparse"]
    shape: tuple[Dim, ...] = Field(max_length=MAX_RANK)
    dtype: str
    values: str
    own: Entries | None = None
    exceptions: Entries | None = None

    @field_validator("values")
    @classmethod
    def _known_values(cls, name: str) -> str:
        return _known(name, VALUES, "value encoding")


class Dense(Strict):
    """A tensor stored whole. `delta` is added to the base; `added` is a head of the fine-tune; `copied` replaces
    integers.
    """

    kind: Literal["delta", "added", "copied"]
    shape: tuple[Dim, ...] = Field(max_length=MAX_RANK)
    dtype: str  # of the fine-tuned tensor
    values: Literal["fp32", "bf16", "raw"]
    exceptions: Entries | None = None

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if (self.values == "raw") == (self.kind == "delta"):
            raise ValueError(f"a tensor of kind {self.kind!r} cannot be stored as {self.values!r}")
        if self.exceptions and self.kind != "delta":
            raise ValueError(f"a tensor of kind {self.kind!r} is stored as it is and has no exceptions")
        return self


Entry = Annotated[Sparse | Dense, Field(discriminator="kind")]


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


class Token(Strict):
    id: Annotated[int, Field(ge=0, le=MAX_DIM)]
    content: Text
    special: bool


class Manifest(Strict):
    """One delta. `tensors` is in sorted order of names, which is also the order inside the packed stream."""

    format_version: Literal[1]
    base: Base
    compression: Compression
    statistics: Statistics
    provenance: Provenance
    tensors: dict[Name, Entry] = Field(max_length=MAX_TENSORS, fail_fast=True)
    missing: tuple[Name, ...] = Field(default=(), max_length=MAX_TENSORS, fail_fast=True)
    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{0,64}$")] = ""
    config: dict[str, Any] = Field(default={}, max_length=1000)
    config_removed: tuple[Text, ...] = Field(default=(), max_length=1000, fail_fast=True)
    labels: tuple[Text, ...] | None = Field(default=None, max_length=100_000, fail_fast=True)
    tokens: tuple[Token, ...] = Field(default=(), max_length=100_000, fail_fast=True)
    payload_sha256: Hash

    @field_validator("tensors")
    @classmethod
    def _valid_tensors(cls, tensors: dict[str, Sparse | Dense]) -> dict[str, Sparse | Dense]:
        for name, entry in tensors.items():
            if ".." in name:
                raise ValueError(f"tensor name {name!r} contains '..'")
            if entry.dtype not in DTYPES:
                raise ValueError(f"{name!r} has unknown dtype {entry.dtype!r}; known: {', '.join(DTYPES)}")
            _check_counts(name, entry)
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
            raise MalformedDelta(f"manifest: {place}: {first['msg'][:500]}", param=place) from error

    def to_json(self) -> str:
        return self.model_dump_json(exclude_defaults=True)

    @property
    def num_kept(self) -> int:
        """Kept entries of the sparse tensors."""
        sparse = [entry for entry in self.tensors.values() if isinstance(entry, Sparse)]
        return sum(entry.count + (entry.own.count if entry.own else 0) for entry in sparse)


def numel(shape: tuple[int, ...]) -> int:
    """Entries of a shape in exact integers: a shape from a file can multiply beyond 64 bits."""
    product = 1
    for dim in shape:
        product *= dim
    return product


def _check_counts(name: str, entry: Sparse | Dense) -> None:
    if numel(tuple(max(dim, 1) for dim in entry.shape)) > MAX_NUMEL:
        raise ValueError(f"{name!r} has shape {list(entry.shape)}: more than {MAX_NUMEL} entries")
    total = numel(entry.shape)
    lists = [entry.exceptions] + ([entry, entry.own] if isinstance(entry, Sparse) else [])
    for part in lists:
        if part is not None and part.count > total:
            raise ValueError(f"{name!r} keeps {part.count} entries of {total}")


def _known(name: str, registry: Mapping[str, object], what: str) -> str:
    if name not in registry:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(registry)}")
    return name
