"""What the manifest says of one tensor: its kind, its shape and how its streams are encoded. Knows no bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from patchbay.delta.codecs import POSITIONS, VALUES
from patchbay.delta.codecs.digits import MAX_KINDS

MAX_RANK = 8
MAX_DIM = 2**31
MAX_NUMEL = 2**48
MAX_BANDS = 8

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


class TensorEntry(Strict):
    """What every kind of entry has. `shape` is the base's (of an added tensor its own), `dtype` the fine-tune's.

    `neurons`: with how many neurons' merge statistics; `appended`: rows behind the base's last one.
    """

    shape: tuple[Dim, ...] = Field(max_length=MAX_RANK)
    dtype: str
    exceptions: Entries | None = None
    neurons: Count = 0
    appended: Dim = 0

    @model_validator(mode="after")
    def _within_shape(self) -> Self:
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")
        if numel(tuple(max(dim, 1) for dim in self.shape)) > MAX_NUMEL:
            raise ValueError(f"shape {list(self.shape)} has more than {MAX_NUMEL} entries")
        if self.neurons > numel(self.shape):
            raise ValueError(f"statistics of {self.neurons} neurons for {numel(self.shape)} entries")
        if self.appended and not self.shape:
            raise ValueError("rows appended to a scalar")
        return self


class Band(Strict):
    """`rank` columns of both factors of a low-rank difference, in one value encoding."""

    rank: Annotated[int, Field(ge=1, le=MAX_DIM)]
    values: str

    @field_validator("values")
    @classmethod
    def _known_values(cls, name: str) -> str:
        return _known(name, VALUES, "value encoding")


class Sparse(Entries, TensorEntry):
    """A pruned matrix: base + the values at the positions. `own` lists further entries that keep a bf16 value of their
    own; `multiples` m says that a value counts 1 to m times, as often as the stream of that name says. The values are
    added to the low-rank difference of `bands`, if there are any.
    """

    kind: Literal["sparse"]
    values: str
    own: Entries | None = None
    multiples: Annotated[int, Field(ge=1, le=MAX_KINDS)] = 1
    bands: Annotated[tuple[Band, ...], Field(max_length=MAX_BANDS)] = ()

    @field_validator("values")
    @classmethod
    def _known_values(cls, name: str) -> str:
        return _known(name, VALUES, "value encoding")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.multiples > 1 and (self.own or not self.count):
            raise ValueError("multiples of no values, or beside own values")
        _check_rank(self.bands, self.shape)
        return self


class Dense(TensorEntry):
    """A tensor stored whole. `delta` is added to the base; `added` is a head of the fine-tune; `copied` replaces
    integers.
    """

    kind: Literal["delta", "added", "copied"]
    values: str

    @field_validator("values")
    @classmethod
    def _known_values(cls, name: str) -> str:
        return name if name == "raw" else _known(name, VALUES, "value encoding")

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if (self.values == "raw") == (self.kind == "delta"):
            raise ValueError(f"a tensor of kind {self.kind!r} cannot be stored as {self.values!r}")
        if self.kind != "delta" and (self.exceptions or self.neurons or self.appended):
            raise ValueError(
                f"a tensor of kind {self.kind!r} is stored as it is: no exceptions, statistics or appended rows"
            )
        return self


class LowRank(TensorEntry):
    """A matrix difference as a sum of products: sum_b U_b V_b^T, U_b [rows, rank_b], V_b [columns, rank_b]."""

    kind: Literal["low_rank"]
    bands: tuple[Band, ...] = Field(min_length=1, max_length=MAX_BANDS)

    @model_validator(mode="after")
    def _is_low(self) -> Self:
        _check_rank(self.bands, self.shape)
        return self


class Lossless(TensorEntry):
    """A float tensor to the bit, as the difference of its bit patterns from the base's. `dtype` says how wide."""

    kind: Literal["lossless"]
    values: Literal["zigzag"]

    @model_validator(mode="after")
    def _needs_no_exceptions(self) -> Self:
        if self.exceptions:
            raise ValueError("a tensor of kind 'lossless' has every bit already: no exceptions")
        if not DTYPES[self.dtype].is_floating_point:
            raise ValueError(f"a tensor of kind 'lossless' is no {self.dtype}: integers are copied")
        return self


Entry = Sparse | Dense | LowRank | Lossless


def numel(shape: tuple[int, ...]) -> int:
    """Entries of a shape in exact integers: a shape from a file can multiply beyond 64 bits."""
    product = 1
    for dim in shape:
        product *= dim
    return product


def rows_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor as a matrix: its first dimension, and the product of all others."""
    return (shape[0], numel(shape[1:])) if shape else (1, 1)


def entry_lists(entry: Entry) -> list[Entries]:
    """All lists of positions that an entry has."""
    listed = [entry.exceptions, *((entry, entry.own) if isinstance(entry, Sparse) else ())]
    return [part for part in listed if part is not None]


def _check_rank(bands: tuple[Band, ...], shape: tuple[int, ...]) -> None:
    rank = sum(band.rank for band in bands)
    if bands and (len(shape) < 2 or rank > min(rows_columns(shape))):
        raise ValueError(f"rank {rank} is not that of a factored matrix {list(shape)}")


def _known(name: str, registry: Mapping[str, object], what: str) -> str:
    if name not in registry:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(registry)}")
    return name
