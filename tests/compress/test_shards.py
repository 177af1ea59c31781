"""Files as safetensors itself writes them, in any order of arrival."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from patchbay.checkpoint import INDEX, Checkpoint, same_bits
from patchbay.compress.shards import DTYPE_NAMES, Planned, write_file, write_shards

Tensors = dict[str, torch.Tensor]
DTYPES = sorted(DTYPE_NAMES, key=str)


def planned(tensors: Tensors) -> list[Planned]:
    return [Planned(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]


def made(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> Tensors:
    generator = torch.Generator().manual_seed(len(shapes))
    values = (torch.randint(0, 2, shape, generator=generator) for shape in shapes)
    return {f"t{number}": each.to(dtypes[number % len(dtypes)]) for number, each in enumerate(values)}


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=8),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1),
    chance=st.randoms(),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], chance: object
) -> None:
    tensors, file = made(shapes, dtypes), tmp_path_factory.mktemp("shards") / "file"
    arriving = list(tensors.items())
    chance.shuffle(arriving)  # type: ignore[attr-defined]
    write_file(file, planned(tensors), arriving, {"format": "pt", "why": "ä"})
    found = load_file(file)
    assert found.keys() == tensors.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "why": "ä"}


def test_tensors_lie_on_multiples_of_their_width(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(3, dtype=torch.float64), "c": torch.ones(1)}
    write_file(tmp_path / "file", planned(tensors), tensors.items(), {})
    data = (tmp_path / "file").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert all(header[name]["data_offsets"][0] % tensor.element_size() == 0 for name, tensor in tensors.items())


def test_shards_and_their_index(tmp_path: Path) -> None:
    tensors = {name: torch.full((10,), float(number)) for number, name in enumerate("abcde")}
    write_shards(tmp_path, planned(tensors), reversed(tensors.items()), {"format": "pt"}, limit=80)
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"] == {"a": names[0], "b": names[0], "c": names[1], "d": names[1], "e": names[2]}
    assert index["metadata"]["total_size"] == 200
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(100)}
    write_shards(tmp_path, planned(tensors), tensors.items(), {}, limit=80)  # larger than a shard, and alone
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_broken_promises_are_ours(tmp_path: Path) -> None:
    plans = planned({"a": torch.ones(2), "b": torch.ones(2)})
    with pytest.raises(AssertionError, match="b was planned"):
        write_file(tmp_path / "1", plans, [("a", torch.ones(2))], {})
    with pytest.raises(AssertionError, match="not what was planned"):
        write_file(tmp_path / "2", plans, [("a", torch.ones(3))], {})
