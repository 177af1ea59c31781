"""Streams of the encodings that came with version 2, bent one by one."""

from __future__ import annotations

import numpy as np
import torch
from tests.attacks.registry import attack
from tests.delta.samples import assemble, parts, replaced, sample

from patchbay.delta import SparseRows
from patchbay.delta.encode import Streams
from patchbay.delta.streams import Stream
from patchbay.errors import MalformedDelta, NonFiniteValue


def handmade(streams: Streams, kind: str, data: bytes, part: int = 0) -> bytes:
    """A file of one tensor, `mlp.weight`, with one stream's bytes replaced by as many others."""
    manifest, raw = parts(streams)
    assert len(raw[Stream(kind, "mlp.weight", part)]) == len(data)
    return assemble(manifest, {**raw, Stream(kind, "mlp.weight", part): data})


@attack(MalformedDelta, "'mlp.weight': 200 entries where all 3840 are meant")
def all_of_too_few() -> bytes:
    """Every entry, of which there are more than are declared."""
    manifest, streams = sample()
    manifest["tensors"]["mlp.weight"]["positions"] = "all"
    manifest["unused"][list(streams).index(Stream("positions", "mlp.weight"))] = 0
    return assemble(manifest, {**streams, Stream("positions", "mlp.weight"): b""})


@attack(MalformedDelta, "'mlp.weight': 7 bytes of seed")
def short_seed() -> bytes:
    """Two readers could fill it up differently."""
    manifest, streams = sample()
    manifest["tensors"]["mlp.weight"]["positions"] = "seeded"
    manifest["unused"][list(streams).index(Stream("positions", "mlp.weight"))] = 1
    return assemble(manifest, {**streams, Stream("positions", "mlp.weight"): bytes(7)})


def encoded(values: str) -> Streams:
    """`mlp.weight` with 201 entries of two magnitudes, and statistics and a row behind its last."""
    streams = Streams()
    signs = torch.where(torch.arange(201) % 3 == 0, -1.0, 0.5)
    streams.add_sparse("mlp.weight", SparseRows((64, 60), torch.arange(0, 2010, 10), signs), values, torch.float32)
    streams.add_neurons("mlp.weight", torch.ones(64), torch.zeros(64))
    streams.add_appended("mlp.weight", torch.zeros(1, 60))
    return streams


@attack(MalformedDelta, "'mlp.weight': a digit beyond the 3 kinds")
def level_beyond_the_table() -> bytes:
    """An index into what lies behind the table."""
    table = np.pad(np.array([0.5, 1, 2], "<f4"), (0, 13)).tobytes()
    manifest, raw = parts(encoded("levels"))
    codes = Stream("values", "mlp.weight")
    manifest["unused"][list(raw).index(codes)] = 201 - 41
    return assemble(manifest, {**raw, Stream("scales", "mlp.weight"): table, codes: b"\xff" * 41 + bytes(26)})


@attack(MalformedDelta, "'mlp.weight': a table of levels does not rise")
def table_that_does_not_rise() -> bytes:
    """A second spelling of the same values."""
    return handmade(encoded("levels"), "scales", np.pad(np.array([1, 0.5], "<f4"), (0, 14)).tobytes())


@attack(MalformedDelta, "'mlp.weight': the half byte behind the last int4 value")
def half_byte_set() -> bytes:
    """Bits that nobody reads can carry something."""
    return handmade(encoded("int4"), "values", b"\x11" * 101)


@attack(MalformedDelta, "'mlp.weight': the maximum of a grid is negative or not finite")
def infinite_grid() -> bytes:
    """Spreads to every column."""
    return handmade(encoded("sign_column_log"), "scales", np.array(np.inf, "<f4").tobytes() + bytes(60))


@attack(MalformedDelta, "'mlp.weight': the maximum of a grid is negative or not finite")
def negative_energy() -> bytes:
    """A squared norm below zero: its root is no number."""
    return handmade(encoded("int8"), "neuron_energy", np.array(-1, "<f4").tobytes() + bytes(64))


@attack(MalformedDelta, "'mlp.weight': a cosine's code is above 30")
def cosine_above_one() -> bytes:
    """No angle has it."""
    return handmade(encoded("int8"), "neuron_cosine", b"\x1f" * 64)


@attack(NonFiniteValue, "'mlp.weight' contains NaN or infinity")
def nan_in_an_appended_row() -> bytes:
    """Raw rows are checked like all others."""
    return handmade(encoded("int8"), "appended", b"\xff" * 240)


@attack(NonFiniteValue, "'mlp.weight' contains NaN or infinity")
def factors_whose_product_is_infinite() -> bytes:
    """Every stored number is finite; the product is not."""
    streams = Streams()
    bands = [(torch.full((64, 1), 3e38), torch.full((60, 1), 3e38), "fp32")]
    streams.add_low_rank("mlp.weight", bands, torch.float32)
    return assemble(*parts(streams))


def hybrid(values: str = "int8") -> Streams:
    """`mlp.weight` with 200 kept entries over a low-rank difference of two bands."""
    streams = Streams()
    entries = torch.arange(0, 2000, 10)
    streams.add_sparse("mlp.weight", SparseRows((64, 60), entries, torch.ones(200)), "fp32", torch.float32)
    streams.add_factors("mlp.weight", [(torch.ones(64, 1), torch.ones(60, 1), v) for v in (values, "fp32")])
    return streams


def shuffled(number: float, count: int) -> bytes:
    return np.full(count, number, "<f4").view(np.uint8).reshape(count, 4).T.tobytes()


@attack(NonFiniteValue, "'mlp.weight' contains NaN or infinity")
def kept_entries_that_overflow_a_product() -> bytes:
    """Product and kept entries are finite each; their sum is not."""
    manifest, raw = parts(hybrid())
    large = {Stream("values", "mlp.weight", 3): shuffled(3e38, 64), Stream("values", "mlp.weight"): shuffled(3e38, 200)}
    return assemble(manifest, {**raw, **large})


@attack(NonFiniteValue, "'mlp.weight' contains NaN or infinity")
def bands_whose_sum_is_infinite() -> bytes:
    """The product of every band is finite; their sum is not."""
    streams = Streams()
    bands = [(torch.full((64, 1), 1.4e19), torch.full((60, 1), 1.4e19), "fp32")] * 2
    streams.add_low_rank("mlp.weight", bands, torch.float32)
    return assemble(*parts(streams))


@attack(NonFiniteValue, "'mlp.weight' contains NaN or infinity")
def a_sum_that_rounding_makes_infinite() -> bytes:
    """In exact numbers product and kept entries stay below the largest number; rounded one by one they do not."""
    streams = Streams()
    kept = torch.full((200,), float.fromhex("0x1.9fa12ap+126"))
    rows = SparseRows((64, 60), torch.arange(200), kept)
    streams.add_sparse("mlp.weight", rows, "fp32", torch.float32)
    left, right = (float.fromhex(number) for number in ("0x1.9828dep+63", "0x1.7d92c4p+63"))
    streams.add_factors("mlp.weight", [(torch.full((64, 1), left), torch.full((60, 1), right), "fp32")])
    return assemble(*parts(streams))


@attack(MalformedDelta, "'mlp.weight': a scale is negative, not finite")
def nan_in_the_scales_of_a_factor() -> bytes:
    """One number that makes every entry of the matrix NaN."""
    scales = np.array(1, "<f4").tobytes() + np.array(np.nan, "<f2").tobytes()
    return handmade(hybrid(), "scales", scales * 2, 1)


@attack(NonFiniteValue, "'mlp.weight' contains NaN or infinity")
def nan_in_a_factor() -> bytes:
    """Behind the zeros of the other factor it is as bad."""
    manifest, raw = parts(hybrid())
    bent = {3: shuffled(0, 64), 4: shuffled(np.nan, 60)}
    return assemble(manifest, {**raw, **{Stream("values", "mlp.weight", part): data for part, data in bent.items()}})


@attack(MalformedDelta, "'mlp.weight': 7 bytes of fp32 for 64 values")
def factor_too_short() -> bytes:
    """Fewer numbers than the matrix has rows."""
    return assemble(*replaced(Stream("values", "mlp.weight", 3), bytes(7), *parts(hybrid())))
