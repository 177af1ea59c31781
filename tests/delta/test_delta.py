from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.delta.samples import FINGERPRINT, SPECS, assemble, factored_streams, parts, sample

from patchbay.delta import Delta, Factors, SparseRows, read_delta
from patchbay.delta.delta import apply_difference


def read_sample(tmp_path: Path) -> Delta:
    path = tmp_path / "sample.safetensors"
    path.write_bytes(assemble(*sample()))
    return read_delta(path, SPECS, FINGERPRINT)


def test_rows_become_dense_in_row_major_order() -> None:
    rows = SparseRows((2, 3), torch.tensor([1, 3], dtype=torch.int32), torch.tensor([1.0, -2.0]))
    assert torch.equal(rows.to_dense(), torch.tensor([[0.0, 1.0, 0.0], [-2.0, 0.0, 0.0]]))
    assert rows.num_bytes == 2 * 4 + 2 * 4


def test_a_scalar_and_an_empty_tensor_are_rows_too() -> None:
    assert SparseRows((), torch.tensor([0]), torch.tensor([3.0])).to_dense().item() == 3.0
    assert SparseRows((0, 4), torch.empty(0, dtype=torch.int32), torch.empty(0)).to_dense().shape == (0, 4)


def test_parts_of_a_delta(tmp_path: Path) -> None:
    delta = read_sample(tmp_path)
    assert "mlp.weight" in delta
    assert "norm.bias" in delta
    assert "head.weight" not in delta  # a head is no difference
    assert "position_ids" not in delta
    assert delta.labels == ("cat", "dog", "owl")
    entries = 8 * (200 + 200 + 9) + 4 * (64 + 64)  # int32 positions, fp32 values and vectors
    assert delta.num_bytes == entries + 3 * 64 * 4 + 7 * 8 + 3 * (4 + 4)


def test_factors_are_parts_of_a_delta(tmp_path: Path) -> None:
    plain, path = read_sample(tmp_path), tmp_path / "factored.safetensors"
    path.write_bytes(assemble(*parts(factored_streams())))
    delta = read_delta(path, SPECS, FINGERPRINT)
    assert "untouched.weight" in delta and "untouched.weight" not in plain
    assert delta.matrices.keys() == plain.matrices.keys()
    assert delta.num_bytes == plain.num_bytes + 4 * ((64 + 60) * (2 + 1) + (8 + 8) * 3)


def test_a_difference_is_dense_whatever_it_is_stored_as(tmp_path: Path) -> None:
    path = tmp_path / "factored.safetensors"
    path.write_bytes(assemble(*parts(factored_streams())))
    delta = read_delta(path, SPECS, FINGERPRINT)
    assert delta.difference("norm.bias") is delta.vectors["norm.bias"]
    assert torch.equal(delta.difference("attn.weight"), delta.matrices["attn.weight"].to_dense())
    assert torch.equal(delta.difference("untouched.weight"), delta.factors["untouched.weight"].to_dense())
    product, kept = delta.factors["mlp.weight"].to_dense(), delta.matrices["mlp.weight"].to_dense()
    assert torch.equal(delta.difference("mlp.weight"), product + kept)
    assert torch.equal(delta.difference("mlp.weight"), product + kept)  # nothing was added to what is kept
    for name in ("head.weight", "position_ids", "no.such"):
        with pytest.raises(KeyError):
            delta.difference(name)


def test_kept_entries_are_added_to_the_whole_product_and_rounded_once_more() -> None:
    """1 + 2^-24 + 2^-24 is 1 from the left, and 1 + 2^-23 from the right."""
    small = 2.0**-24
    factors = Factors((1, 1), torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, small]]))
    kept = SparseRows((1, 1), torch.tensor([0], dtype=torch.int32), torch.tensor([small]))
    delta = Delta(None, {"w": kept}, {}, {}, {}, {}, factors={"w": factors})  # type: ignore[arg-type]
    assert delta.difference("w").item() == 1.0
    swapped = Factors((1, 1), torch.tensor([[1.0, 1.0]]), torch.tensor([[small, small]]))
    one = SparseRows((1, 1), torch.tensor([0], dtype=torch.int32), torch.tensor([1.0]))
    delta = Delta(None, {"w": one}, {}, {}, {}, {}, factors={"w": swapped})  # type: ignore[arg-type]
    assert delta.difference("w").item() == 1.0 + 2 * small


def test_the_sum_is_rounded_once_to_nearest_even() -> None:
    base = torch.tensor([1.0, 1.0, 1.0], dtype=torch.bfloat16)
    half = 2.0**-8  # half a bf16 step at 1
    difference = torch.tensor([half, 3 * half, half * 1.001])
    tuned = apply_difference(base, difference, torch.bfloat16)
    assert tuned.tolist() == [1.0, 1.0 + 4 * half, 1.0 + 2 * half]


def test_the_sum_takes_the_fine_tunes_dtype_and_the_bases_shape() -> None:
    tuned = apply_difference(torch.ones(2, 2, dtype=torch.bfloat16), torch.full((4,), 1e-5), torch.float32)
    assert tuned.dtype == torch.float32
    assert torch.equal(tuned, torch.full((2, 2), 1.0) + 1e-5)
