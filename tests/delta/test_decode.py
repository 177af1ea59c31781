"""The gate against a base, and decoding. Hostile streams one by one are in tests/attacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.delta.samples import FINGERPRINT, SPECS, factored_streams, parts, sample, spec

from patchbay.architecture import TensorSpec
from patchbay.delta import Exceptions, Manifest, SparseRows
from patchbay.delta.decode import decode
from patchbay.delta.encode import Streams
from patchbay.delta.fits import MAX_ADDED_BYTES, check_fits
from patchbay.delta.streams import Stream
from patchbay.errors import DeltaTooLarge, MalformedDelta, NonFiniteValue, UnknownTensor, WrongBase, WrongShape


def manifest(tensors: dict[str, Any] | None = None) -> Manifest:
    fields = {**sample()[0], "payload_sha256": f"sha256:{'0' * 64}"}
    if tensors is not None:
        fields |= {"tensors": tensors, "unused": ()}
    return Manifest.model_validate(fields, strict=False)


def vector(shape: tuple[int, ...], kind: str = "delta", dtype: str = "F32") -> dict[str, Any]:
    return {"kind": kind, "shape": shape, "dtype": dtype, "values": "fp32" if kind == "delta" else "raw"}


def specs_of(*listed: TensorSpec) -> dict[str, TensorSpec]:
    return {s.name: s for s in listed}


def test_the_sample_fits() -> None:
    check_fits(manifest(), SPECS, FINGERPRINT)


def test_the_fingerprint_comes_before_everything_else() -> None:
    with pytest.raises(WrongBase, match="made for base 'pico'") as caught:
        check_fits(manifest({"zz": vector((1,))}), SPECS, f"sha256:{'0' * 64}")
    assert caught.value.param == "base.fingerprint"


def test_the_first_offender_in_order_of_names_is_named() -> None:
    wrong = manifest({"norm.weight": vector((2,)), "aa": vector((1,)), "ab": vector((1,))})
    with pytest.raises(UnknownTensor) as caught:
        check_fits(wrong, SPECS, FINGERPRINT)
    assert caught.value.param == "aa"


@pytest.mark.parametrize("shape", [(63,), (64, 1), (), (0,)])
def test_shapes_are_equal_or_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(WrongShape, match="norm.weight"):
        check_fits(manifest({"norm.weight": vector(shape)}), SPECS, FINGERPRINT)


@pytest.mark.parametrize(
    ("base", "kind", "dtype", "fits"),
    [
        ("F32", "delta", "BF16", True),  # fine-tuned in another float type
        ("F8_E4M3", "delta", "BF16", True),
        ("I64", "copied", "I32", True),
        ("F32", "delta", "I32", False),
        ("I64", "delta", "F32", False),
        ("I64", "copied", "F32", False),
        ("F32", "copied", "I64", False),
        ("BF16", "copied", "BF16", False),
    ],
)
def test_floats_are_added_to_and_integers_replaced(base: str, kind: str, dtype: str, fits: bool) -> None:
    made, specs = manifest({"w": vector((4,), kind, dtype)}), specs_of(spec("w", (4,), base))
    if fits:
        check_fits(made, specs, FINGERPRINT)
    else:
        with pytest.raises(WrongShape, match="'w' is of kind"):
            check_fits(made, specs, FINGERPRINT)


def test_added_tensors_are_new_or_replace_a_head() -> None:
    specs = specs_of(spec("head", (4, 2), is_head=True), spec("w", (4, 2)))
    check_fits(manifest({"head": vector((7, 2), "added"), "fresh": vector((3,), "added")}), specs, FINGERPRINT)
    with pytest.raises(WrongShape, match="'w' is a tensor of the base and no head"):
        check_fits(manifest({"w": vector((4, 2), "added")}), specs, FINGERPRINT)


def test_added_tensors_are_bounded_together() -> None:
    half = MAX_ADDED_BYTES // 8
    check_fits(manifest({"a": vector((half,), "added"), "b": vector((half,), "added")}), SPECS, FINGERPRINT)
    with pytest.raises(DeltaTooLarge, match=f"at most {MAX_ADDED_BYTES}"):
        check_fits(manifest({"a": vector((half,), "added"), "b": vector((half + 1,), "added")}), SPECS, FINGERPRINT)


@pytest.mark.parametrize(("axis", "neurons", "fits"), [(0, 4, True), (1, 3, True), (0, 3, False), (None, 4, False)])
def test_statistics_are_of_the_bases_neurons(axis: int | None, neurons: int, fits: bool) -> None:
    specs = specs_of(replace(spec("w", (4, 3)), neuron_axis=axis))
    made = manifest({"w": vector((4, 3)) | {"neurons": neurons}})
    if fits:
        check_fits(made, specs, FINGERPRINT)
    else:
        with pytest.raises(WrongShape, match="'w' has statistics of"):
            check_fits(made, specs, FINGERPRINT)


def test_appended_rows_are_bounded_with_added_tensors() -> None:
    specs, rows = specs_of(spec("w", (4, 1024))), MAX_ADDED_BYTES // 4096
    check_fits(manifest({"w": vector((4, 1024)) | {"appended": rows}}), specs, FINGERPRINT)
    with pytest.raises(DeltaTooLarge, match=f"at most {MAX_ADDED_BYTES}"):
        both = {"w": vector((4, 1024)) | {"appended": rows}, "x": vector((1,), "added")}
        check_fits(manifest(both), specs, FINGERPRINT)


def test_own_values_are_merged_in_order() -> None:
    rows = SparseRows((2, 300), torch.tensor([3, 4, 299, 300]), torch.tensor([1.0, 8.0, -1.0, -8.0]))
    streams = Streams()
    streams.add_sparse("w", rows, "sign_tensor", torch.float32, torch.tensor([False, True, False, True]))
    entries, data = streams.finish()
    seen = decode(manifest(dict(entries)), data.__getitem__).matrices["w"]
    assert seen.positions.tolist() == [3, 4, 299, 300]
    assert seen.values.tolist() == [1.0, 8.0, -1.0, -8.0]


@pytest.mark.parametrize("most", [2, 7, 65536])
def test_a_value_counts_as_often_as_its_multiple_says(most: int) -> None:
    times = torch.tensor([1, 2, 1, most])
    rows = SparseRows((2, 300), torch.tensor([3, 4, 299, 300]), torch.tensor([0.5, -0.5, -0.5, 0.5]) * times)
    streams = Streams()
    streams.add_sparse("w", rows, "sign_tensor", torch.float32, multiples=times)
    entries, data = streams.finish()
    seen = decode(manifest(dict(entries)), data.__getitem__).matrices["w"]
    assert seen.values.tolist() == rows.values.tolist()
    assert len(data[Stream("values", "w")]) == 1  # signs
    assert len(data[Stream("multiples", "w")]) == {2: 1, 7: 4, 65536: 8}[most]


def test_multiples_have_one_spelling() -> None:
    rows = SparseRows((2, 2), torch.tensor([0, 3]), torch.tensor([0.5, -1.0]))
    streams = Streams()
    streams.add_sparse("w", rows, "sign_tensor", torch.float32, multiples=torch.tensor([1, 2]))
    entries, data = streams.finish()
    data[Stream("multiples", "w")] = bytes(1)  # once, once
    with pytest.raises(MalformedDelta, match="no value counts 2 times"):
        decode(manifest(dict(entries)), data.__getitem__)
    entry = entries["w"].model_dump()
    for wrong in ({"count": 0}, {"own": {"count": 1, "positions": "gap"}}):
        with pytest.raises(ValueError, match="multiples of no values"):
            type(entries["w"]).model_validate({**entry, **wrong})


def test_multiples_of_one_are_not_stored() -> None:
    rows = SparseRows((2, 2), torch.tensor([0, 3]), torch.tensor([0.5, -0.5]))
    streams = Streams()
    streams.add_sparse("w", rows, "sign_tensor", torch.float32, multiples=torch.ones(2))
    assert [stream.kind for stream in streams.finish()[1]] == ["positions", "scales", "values"]


def test_multiples_beyond_a_float_are_refused() -> None:
    streams = Streams()
    rows = SparseRows((2, 2), torch.tensor([0, 3]), torch.tensor([1e38, 1e38]))
    streams.add_sparse("w", rows, "fp32", torch.float32, multiples=torch.tensor([1, 2]))
    entries, data = streams.finish()
    data[Stream("values", "w")] = np.full(2, 3e38, "<f4").view(np.uint8).reshape(2, 4).T.tobytes()
    with pytest.raises(NonFiniteValue, match="'w'"):
        decode(manifest(dict(entries)), data.__getitem__)


def test_positions_are_32_bits_wide_while_they_fit() -> None:
    for shape, dtype in (((4, 5), torch.int32), ((1 << 15, (1 << 16) + 1), torch.int64)):
        last = shape[0] * shape[1] - 1
        streams = Streams()
        streams.add_sparse("w", SparseRows(shape, torch.tensor([0, last]), torch.ones(2)), "bf16", torch.bfloat16)
        entries, data = streams.finish()
        seen = decode(manifest(dict(entries)), data.__getitem__).matrices["w"]
        assert seen.positions.dtype == dtype
        assert seen.positions.tolist() == [0, last]


def test_nan_is_admitted_only_in_exceptions_and_only_on_request() -> None:
    streams = Streams()
    streams.add_dense("w", torch.zeros(3), "fp32", torch.float32)
    streams.add_exceptions("w", Exceptions(torch.tensor([1]), torch.tensor([float("nan")])))
    entries, data = streams.finish()
    with pytest.raises(NonFiniteValue, match="'w'"):
        decode(manifest(dict(entries)), data.__getitem__)
    assert decode(manifest(dict(entries)), data.__getitem__, finite=False).exceptions["w"].bits.isnan().all()
    data[Stream("vectors", "w")] = np.full(3, np.inf, "<f4").view(np.uint8).reshape(3, 4).T.tobytes()
    with pytest.raises(NonFiniteValue, match="'w'"):
        decode(manifest(dict(entries)), data.__getitem__, finite=False)


@pytest.mark.parametrize(
    "stream",
    [
        Stream("exception_positions", "mlp.weight"),
        Stream("own_values", "attn.weight"),
        Stream("values", "odd.weight"),
        Stream("vectors", "norm.bias"),
        Stream("added", "head.weight"),
    ],
)
def test_a_damaged_stream_names_its_tensor(stream: Stream) -> None:
    with pytest.raises(MalformedDelta) as caught:
        decode(manifest(), {**sample()[1], stream: b""}.__getitem__)
    assert caught.value.param == stream.name
    assert repr(stream.name) in caught.value.message


def with_factors(left: float, right: float, kept: float | None) -> tuple[dict[str, Any], dict[Stream, bytes]]:
    """[1, 1] with two columns of factors, and one kept entry beside them."""
    streams = Streams()
    band = (torch.full((2, 2), left), torch.full((2, 2), right), "fp32")
    if kept is None:
        streams.add_low_rank("w", [band], torch.float32)
    else:
        streams.add_sparse("w", SparseRows((2, 2), torch.tensor([3]), torch.tensor([kept])), "fp32", torch.float32)
        streams.add_factors("w", [band])
    entries, data = streams.finish()
    return dict(entries), data


@pytest.mark.parametrize(
    ("left", "right", "kept", "fits"),
    [
        (9e18, 9e18, None, True),  # 1.62e38 of 2^127 = 1.7e38
        (1e19, 1e19, None, False),  # 2e38 are finite: sums that are rounded up might not be
        (1.4e19, 1.4e19, None, False),  # each product is finite, their sum is not
        (-1.4e19, 1.4e19, None, False),
        (3e38, 3e38, None, False),
        (3e38, 1e-38, None, True),
        (5e18, 5e18, 1e38, True),
        (1e19, 1e19, 2e38, False),
        (1e19, 1e19, -2e38, False),  # which would not reach infinity: the bound is of magnitudes
        (0.0, 0.0, 1.6e38, True),
        (float("nan"), 0.0, None, False),
        (0.0, float("nan"), 1.0, False),
        (float("inf"), 0.0, 1.0, False),
        (0.0, 0.0, float("nan"), False),
        (0.0, 0.0, float("inf"), False),
    ],
)
def test_factors_are_finite_where_their_product_cannot_overflow(
    left: float, right: float, kept: float | None, fits: bool
) -> None:
    entries, data = with_factors(left, right, kept)
    if fits:
        assert torch.isfinite(decode(manifest(entries), data.__getitem__).difference("w")).all()
        return
    for finite in (True, False):  # which is about exceptions alone
        with pytest.raises(NonFiniteValue, match="'w'"):
            decode(manifest(entries), data.__getitem__, finite=finite)


def test_kept_entries_may_be_none_over_factors() -> None:
    streams = Streams()
    nothing = SparseRows((2, 2), torch.empty(0, dtype=torch.int32), torch.empty(0))
    streams.add_sparse("w", nothing, "int8", torch.float32)
    factors = streams.add_factors("w", [(torch.ones(2, 1), torch.ones(2, 1), "fp32")])
    entries, data = streams.finish()
    seen = decode(manifest(dict(entries)), data.__getitem__)
    assert torch.equal(seen.difference("w"), factors.to_dense())


@pytest.mark.parametrize("kind", ["scales", "values"])
@pytest.mark.parametrize("part", [1, 2])
def test_a_damaged_factor_names_its_tensor(kind: str, part: int) -> None:
    manifest_fields, data = parts(factored_streams())
    made = Manifest.model_validate({**manifest_fields, "payload_sha256": f"sha256:{'0' * 64}"}, strict=False)
    assert len(data[Stream(kind, "mlp.weight", part)]) > 1
    with pytest.raises(MalformedDelta, match="'mlp.weight'") as caught:
        decode(made, {**data, Stream(kind, "mlp.weight", part): b"\1"}.__getitem__)
    assert caught.value.param == "mlp.weight"
