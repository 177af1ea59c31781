"""Tensors that are stored as the difference of their bits from the base's, which is all zeros here."""

from __future__ import annotations

from typing import Any

import torch
from tests.attacks.registry import attack
from tests.delta.samples import SPECS, Parts, assemble, parts, replaced

from patchbay.delta.encode import Streams
from patchbay.delta.manifest import DTYPES
from patchbay.delta.streams import Stream
from patchbay.errors import MalformedDelta, NonFiniteValue, UnknownTensor, WrongShape

CODES = Stream("lossless", "norm.weight")


def zeros(name: str) -> torch.Tensor:
    """The base's tensor."""
    return torch.zeros(SPECS[name].shape, dtype=DTYPES[SPECS[name].dtype])


def whole(value: float = 1.0) -> Parts:
    """A delta of one tensor with this value at every entry."""
    streams, tuned = Streams(), torch.full(SPECS["norm.weight"].shape, value)
    streams.add_lossless("norm.weight", zeros("norm.weight"), tuned)
    return parts(streams)


def bent(**changes: Any) -> bytes:
    manifest, streams = whole()
    manifest["tensors"]["norm.weight"].update(changes)
    return assemble(manifest, streams)


@attack(MalformedDelta, "no I32: integers are copied")
def lossless_integers() -> bytes:
    """Bits of integers differ by more than a float's order says."""
    return bent(dtype="I32")


@attack(MalformedDelta, "has every bit already")
def lossless_with_exceptions() -> bytes:
    """Two sources for the same bits."""
    return bent(exceptions={"count": 1, "positions": "gap"})


@attack(MalformedDelta, "values")
def lossless_in_an_unknown_encoding() -> bytes:
    """A way to write differences that no table has."""
    return bent(values="negabinary")


@attack(MalformedDelta, "norm.weight")
def lossless_too_short() -> bytes:
    """Three bytes of the last entry."""
    manifest, streams = whole()
    return assemble(*replaced(CODES, streams[CODES][:-1], manifest, streams))


@attack(NonFiniteValue, "norm.weight")
def lossless_that_decodes_to_nan() -> bytes:
    """Every code decodes to something: here to a NaN at every entry."""
    return assemble(*whole(float("nan")))


@attack(NonFiniteValue, "norm.weight")
def lossless_that_decodes_to_infinity() -> bytes:
    """As NaN, and finite in every difference that is looked at alone."""
    return assemble(*whole(float("inf")))


@attack(WrongShape, "norm.weight")
def lossless_of_another_shape() -> bytes:
    """As many entries as the base's tensor has, elsewhere."""
    return bent(shape=[8, 8])


@attack(UnknownTensor, "elsewhere")
def lossless_of_nothing() -> bytes:
    """Bits against a tensor that the base does not have."""
    manifest, streams = whole()
    manifest["tensors"] = {"elsewhere": manifest["tensors"]["norm.weight"]}
    return assemble(manifest, {Stream("lossless", "elsewhere"): streams[CODES]})
