from __future__ import annotations

import json
from typing import Any

import pytest
from tests.delta.samples import sample

from patchbay.delta import Manifest
from patchbay.delta.codecs import POSITIONS, VALUES
from patchbay.delta.manifest import DTYPES, MAX_DIM, MAX_NUMEL, MAX_RANK, MAX_TENSORS, LowRank, Sparse, numel
from patchbay.errors import MalformedDelta

DIGEST = f"sha256:{'0' * 64}"


def fields(**changes: Any) -> dict[str, Any]:
    return {**sample()[0], "payload_sha256": DIGEST, **changes}


def parse(**changes: Any) -> Manifest:
    return Manifest.parse(json.dumps(fields(**changes)))


def refused(**changes: Any) -> MalformedDelta:
    with pytest.raises(MalformedDelta) as caught:
        parse(**changes)
    return caught.value


def tensor(**changes: Any) -> dict[str, Any]:
    return {
        "w": {"kind": "sparse", "shape": [4, 5], "dtype": "F32", "count": 3, "positions": "gap", "values": "int8"}
        | changes
    }


def low_rank(*bands: tuple[int, str], shape: list[int] | None = None) -> dict[str, Any]:
    listed = [{"rank": rank, "values": values} for rank, values in bands]
    return {"w": {"kind": "low_rank", "shape": shape or [4, 5], "dtype": "F32", "bands": listed}}


def test_text_and_back() -> None:
    manifest = parse()
    assert Manifest.parse(manifest.to_json()) == manifest
    assert manifest.to_json() == Manifest.parse(manifest.to_json()).to_json()


def test_defaults_are_not_written() -> None:
    written = json.loads(parse().to_json())
    assert not {"missing", "prefix", "config_removed"} & written.keys()
    assert "seed" not in written["compression"]
    assert not {"neurons", "appended", "exceptions"} & written["tensors"]["norm.bias"].keys()


def test_tensors_are_sorted_whatever_the_order_in_the_text() -> None:
    backwards = dict(reversed(fields()["tensors"].items()))
    assert list(parse(tensors=backwards).tensors) == sorted(backwards)


@pytest.mark.parametrize(
    "name", ["format_version", "base", "compression", "statistics", "provenance", "tensors", "payload_sha256"]
)
def test_required_fields_are_named_when_missing(name: str) -> None:
    with pytest.raises(MalformedDelta) as caught:
        Manifest.parse(json.dumps({key: value for key, value in fields().items() if key != name}))
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"extra": 1}, "extra"),
        ({"format_version": "1"}, "format_version"),
        ({"base": {"name": "b", "fingerprint": DIGEST, "url": "x"}}, "base.url"),
        ({"base": {"name": "b", "fingerprint": DIGEST.upper()}}, "base.fingerprint"),
        ({"compression": {"method": "m", "density": 1.5}}, "compression.density"),
        ({"compression": {"method": "m", "density": 0.5, "params": {"a": [1]}}}, "compression.params.a.int"),
        ({"statistics": {"relative_error": -1, "sigma": 0}}, "statistics.relative_error"),
        ({"statistics": {"relative_error": 0, "sigma": 2}}, "statistics.sigma"),
        ({"provenance": {"finetuned": "f", "tool": "t", "original_bytes": -1}}, "provenance.original_bytes"),
        ({"missing": ["a b"]}, "missing.0"),
        ({"prefix": "a/b"}, "prefix"),
        ({"labels": [1]}, "labels.0"),
        ({"tokens": [{"id": -1, "content": "x", "special": True}]}, "tokens.0.id"),
        ({"tokens": [{"id": 1, "content": "x", "special": 1}]}, "tokens.0.special"),
        ({"tensors": {"a b": tensor()["w"]}}, "tensors.a b.[key]"),
        ({"tensors": tensor(count=21)}, "tensors"),
        ({"tensors": tensor(own={"count": 21, "positions": "gap"})}, "tensors"),
        ({"tensors": tensor(exceptions={"count": 21, "positions": "gap"})}, "tensors"),
        ({"unused": [-1]}, "unused.0"),
        (
            {"provenance": {"finetuned": "f", "tool": "t", "original_bytes": 1, "parameters": -1}},
            "provenance.parameters",
        ),
        ({"tensors": tensor(shape=[1] * (MAX_RANK + 1))}, "tensors.w.sparse.shape"),
        ({"tensors": tensor(shape=[MAX_DIM + 1])}, "tensors.w.sparse.shape.0"),
        ({"tensors": tensor(shape=[MAX_NUMEL // 2, 4])}, "tensors.w.sparse.shape.0"),
        ({"tensors": tensor(shape=[1 << 24, 1 << 24, 2])}, "tensors.w.sparse"),
        ({"tensors": tensor(dtype="C64")}, "tensors.w.sparse"),
        ({"tensors": tensor(neurons=21)}, "tensors.w.sparse"),
        ({"tensors": tensor(shape=[], appended=1)}, "tensors.w.sparse"),
        ({"tensors": low_rank()}, "tensors.w.low_rank.bands"),
        ({"tensors": low_rank((0, "int8"))}, "tensors.w.low_rank.bands.0.rank"),
        ({"tensors": low_rank((1, "int9"))}, "tensors.w.low_rank.bands.0.values"),
        ({"tensors": low_rank((3, "int8"), (2, "bf16"))}, "tensors.w.low_rank"),
        ({"tensors": low_rank((1, "int8"), shape=[20])}, "tensors.w.low_rank"),
        ({"tensors": low_rank(*[(1, "int8")] * 9, shape=[20, 20])}, "tensors.w.low_rank.bands"),
        ({"tensors": tensor(bands=[{"rank": 0, "values": "int8"}])}, "tensors.w.sparse.bands.0.rank"),
        ({"tensors": tensor(bands=[{"rank": MAX_DIM + 1, "values": "int8"}])}, "tensors.w.sparse.bands.0.rank"),
        ({"tensors": tensor(bands=[{"rank": 1, "values": "raw"}])}, "tensors.w.sparse.bands.0.values"),
        ({"tensors": tensor(bands=[{"rank": 5, "values": "int8"}])}, "tensors.w.sparse"),
        ({"tensors": tensor(bands=[{"rank": 2, "values": "int8"}, {"rank": 3, "values": "bf16"}])}, "tensors.w.sparse"),
        ({"tensors": tensor(shape=[20], bands=[{"rank": 1, "values": "int8"}])}, "tensors.w.sparse"),
        ({"tensors": tensor(shape=[3, 0], count=0, bands=[{"rank": 1, "values": "int8"}])}, "tensors.w.sparse"),
        ({"tensors": tensor(shape=[20, 20], bands=[{"rank": 1, "values": "int8"}] * 9)}, "tensors.w.sparse.bands"),
        ({"tensors": tensor(bands=None)}, "tensors.w.sparse.bands"),
        ({"tensors": tensor(positions="seed")}, "tensors.w.sparse.positions"),
        ({"tensors": tensor(values="int3")}, "tensors.w.sparse.values"),
        ({"tensors": {f"t{i}": tensor()["w"] for i in range(MAX_TENSORS + 1)}}, "tensors"),
    ],
)
def test_the_offending_field_is_named(changes: dict[str, Any], param: str) -> None:
    assert refused(**changes).param == param


@pytest.mark.parametrize(
    ("kind", "values", "allowed"),
    [("delta", values, True) for values in VALUES]
    + [("delta", "raw", False)]
    + [(kind, values, values == "raw") for kind in ("added", "copied") for values in ("raw", "fp32", "bf16")],
)
def test_differences_are_encoded_and_everything_else_is_raw(kind: str, values: str, allowed: bool) -> None:
    entry = {"kind": kind, "shape": [2], "dtype": "F32", "values": values}
    if allowed:
        assert parse(tensors={"w": entry}).tensors["w"].kind == kind
    else:
        assert "cannot be stored as" in refused(tensors={"w": entry}).message


@pytest.mark.parametrize(
    "companion", [{"exceptions": {"count": 0, "positions": "gap"}}, {"neurons": 1}, {"appended": 1}]
)
def test_what_is_stored_as_it_is_has_no_companions(companion: dict[str, Any]) -> None:
    entry = {"kind": "added", "shape": [2], "dtype": "F32", "values": "raw"}
    assert "stored as it is" in refused(tensors={"w": entry | companion}).message


def test_bands_of_a_low_rank_difference() -> None:
    entry = parse(tensors=low_rank((3, "int8"), (1, "bf16"))).tensors["w"]
    assert isinstance(entry, LowRank)
    assert [(band.rank, band.values) for band in entry.bands] == [(3, "int8"), (1, "bf16")]
    assert parse(tensors=low_rank((4, "fp32"), shape=[4, 1, 5])).tensors["w"].shape == (4, 1, 5)


def test_bands_beside_kept_entries() -> None:
    entry = parse(tensors=tensor(bands=[{"rank": 3, "values": "int8"}, {"rank": 1, "values": "bf16"}])).tensors["w"]
    assert isinstance(entry, Sparse)
    assert [(band.rank, band.values) for band in entry.bands] == [(3, "int8"), (1, "bf16")]
    assert parse(tensors=tensor(count=0, shape=[4, 1, 5], bands=[{"rank": 4, "values": "fp32"}])).num_kept == 0
    plain = parse(tensors=tensor())
    assert isinstance(plain.tensors["w"], Sparse) and plain.tensors["w"].bands == ()
    assert "bands" not in json.loads(plain.to_json())["tensors"]["w"]


def test_every_encoding_and_dtype_is_accepted() -> None:
    for name in POSITIONS:
        parse(tensors=tensor(positions=name))
    for name in VALUES:
        parse(tensors=tensor(values=name))
    for name in DTYPES:
        parse(tensors=tensor(dtype=name))


def test_kept_entries_are_counted_with_their_own_values() -> None:
    assert parse().num_kept == 200 + 200 + 9
    assert parse(tensors=tensor(own={"count": 2, "positions": "gap"})).num_kept == 5


def test_numel_does_not_wrap() -> None:
    assert numel((2**31,) * 8) == 2**248
    assert numel(()) == 1
    assert numel((0, 2**31)) == 0


def test_messages_stay_short() -> None:
    assert len(refused(**{"x" * 100_000: 1}).message) < 1000
    assert len(refused(tensors=tensor(dtype="x" * 100_000)).message) < 1000
