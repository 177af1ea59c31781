from __future__ import annotations

import hashlib
import json
import math
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import pico
from transformers import AutoModelForCausalLM

from patchbay.checkpoint import INDEX, Checkpoint, all_finite, raw_bytes, tensor_sha256
from patchbay.errors import BackboneError, UnsupportedBackbone

ModelFolder = Callable[..., Path]
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int32: "I32"}


def write_by_hand(file: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """A safetensors file whose tensors lie in the given order; the library would sort them."""
    header: dict[str, object] = {}
    data = b""
    for name, tensor in tensors:
        end = len(data) + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(data), end]}
        data += bytes(raw_bytes(tensor))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def folder_of(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_by_hand(folder / pico.WEIGHTS, tensors.items())
    return folder


def fingerprint(folder: str | Path) -> str:
    return Checkpoint.open(folder).fingerprint


def refusal(folder: str | Path) -> str:
    with pytest.raises(UnsupportedBackbone) as caught:
        Checkpoint.open(folder)
    assert caught.value.param == "base"
    return caught.value.message


def test_fingerprint_is_the_stated_hash(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1.5], dtype=torch.bfloat16)}
    lines = (
        f"a 1 BF16 {hashlib.sha256(struct.pack('<H', 0x3FC0)).hexdigest()}\n"
        f"b 2x3 F32 {hashlib.sha256(struct.pack('<6f', *range(6))).hexdigest()}\n"
    )
    expected = "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
    assert fingerprint(folder_of(tmp_path / "m", tensors)) == expected


def test_resharded_copy_has_the_same_fingerprint(tmp_path: Path, llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    sharded = Checkpoint.open(tmp_path)
    assert len(shards) > 3
    assert sharded.fingerprint == fingerprint(llama)
    assert {t.file.name for t in sharded.tensors.values()} == {shard.name for shard in shards}
    assert sharded.num_bytes == sum(shard.stat().st_size for shard in shards)


@given(st.randoms())
def test_order_in_the_file_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, llama: Path, shuffler: random.Random
) -> None:
    tensors = list(pico.weights(llama).items())
    shuffler.shuffle(tensors)
    assert fingerprint(folder_of(tmp_path_factory.mktemp("order") / "m", dict(tensors))) == fingerprint(llama)


def test_order_of_shards_does_not_matter(tmp_path: Path) -> None:
    tensors = {name: torch.full((2,), float(number)) for number, name in enumerate("abcd")}
    single = folder_of(tmp_path / "single", tensors)
    sharded = folder_of(tmp_path / "sharded", {})
    (sharded / pico.WEIGHTS).unlink()
    shards = {"1.safetensors": "db", "2.safetensors": "ca"}
    for file, names in shards.items():
        write_by_hand(sharded / file, [(name, tensors[name]) for name in names])
    (sharded / INDEX).write_text(json.dumps({"weight_map": {n: f for f, names in shards.items() for n in names}}))
    assert fingerprint(sharded) == fingerprint(single)
    assert list(Checkpoint.open(sharded).tensors) == list("abcd")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bit_changes_the_fingerprint(tmp_path: Path, model_folder: ModelFolder, dtype: torch.dtype) -> None:
    folder = model_folder("llama", dtype=dtype)
    seen = {fingerprint(folder)}
    for bit in (0, 7, dtype.itemsize * 8 - 1):

        def flip(tensors: dict[str, torch.Tensor], bit: int = bit) -> dict[str, torch.Tensor]:
            flat = tensors["model.norm.weight"].view(torch.uint8)
            flat[bit // 8] ^= 1 << bit % 8
            return tensors

        seen.add(fingerprint(pico.rewrite(folder, tmp_path / f"{bit}", flip)))
    assert len(seen) == 4


def test_name_shape_and_dtype_belong_to_the_fingerprint(tmp_path: Path) -> None:
    tensor = torch.arange(6.0)
    variants = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.reshape(2, 3)},
        {"a": tensor.reshape(3, 2)},
        {"a": tensor.view(torch.int32)},
        {"a": tensor, "b": tensor[:0]},
    ]
    assert len({fingerprint(folder_of(tmp_path / f"{i}", v)) for i, v in enumerate(variants)}) == len(variants)


def test_config_and_tokenizer_do_not_belong_to_it(tmp_path: Path, llama: Path) -> None:
    copy = pico.rewrite(llama, tmp_path, lambda tensors: tensors)
    (copy / "tokenizer.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    assert fingerprint(copy) == fingerprint(llama)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_wrong_number_is_found_wherever_it_is(dtype: torch.dtype, wrong: float, place: int) -> None:
    tensor = torch.linspace(-3, 3, 1000).to(dtype)
    assert all_finite(tensor) and all_finite(tensor[:0])
    tensor[place] = wrong
    assert not all_finite(tensor)


def test_read_gives_what_is_stored(model_folder: ModelFolder) -> None:
    folder = model_folder("gpt2", dtype=torch.bfloat16)
    checkpoint, stored = Checkpoint.open(folder), pico.weights(folder)
    assert list(checkpoint.tensors) == sorted(stored)
    for name, place in checkpoint.tensors.items():
        assert raw_bytes(checkpoint.read(name)) == raw_bytes(stored[name])
        assert (place.shape, place.dtype, place.numel) == (stored[name].shape, "BF16", stored[name].numel())


def test_num_bytes_is_what_lies_on_disk(llama: Path) -> None:
    assert Checkpoint.open(llama).num_bytes == (llama / pico.WEIGHTS).stat().st_size


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("unpickled", "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.ckpt"])
def test_pickles_are_refused_unread(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(llama / "config.json", tmp_path / "config.json")
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    message = refusal(tmp_path)
    assert name in message
    assert "safetensors" in message
    assert not (tmp_path / "unpickled").exists()


def test_a_pickle_beside_safetensors_is_ignored(tmp_path: Path, llama: Path) -> None:
    copy = pico.rewrite(llama, tmp_path, lambda tensors: tensors)
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert fingerprint(copy) == fingerprint(llama)


def test_no_config(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path)


@pytest.mark.parametrize("text", [b"{", b"[]", b"null", b"\xff"])
def test_config_that_is_no_json_object(tmp_path: Path, llama: Path, text: bytes) -> None:
    copy = pico.rewrite(llama, tmp_path, lambda tensors: tensors)
    (copy / "config.json").write_bytes(text)
    assert "config.json" in refusal(copy)


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "model.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_damaged_weights_are_named(tmp_path: Path, llama: Path, keep: int) -> None:
    copy = pico.rewrite(llama, tmp_path, lambda tensors: tensors)
    whole = (copy / pico.WEIGHTS).read_bytes()
    (copy / pico.WEIGHTS).write_bytes(whole[:keep])
    assert "damaged" in refusal(copy)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_damaged_index(tmp_path: Path, llama: Path, index: str) -> None:
    copy = pico.rewrite(llama, tmp_path, lambda tensors: tensors)
    (copy / INDEX).write_text(index)
    assert INDEX in refusal(copy)


def test_index_naming_an_absent_shard(tmp_path: Path, llama: Path) -> None:
    copy = pico.rewrite(llama, tmp_path, lambda tensors: tensors)
    (copy / INDEX).write_text(json.dumps({"weight_map": {"a": pico.WEIGHTS, "b": "model-2.safetensors"}}))
    assert "model-2.safetensors" in refusal(copy)


def test_index_cannot_point_outside_the_folder(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": str(llama / pico.WEIGHTS)}}))
    assert "lacks" in refusal(tmp_path)


@pytest.mark.parametrize("source", ["/no/such/folder", "./here", "word", "a/b/c"])
def test_no_such_folder(source: str) -> None:
    assert repr(source) in refusal(source)


def test_hub_id_from_the_local_cache(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "'org/absent'" in refusal("org/absent")
    repository = tmp_path / "models--org--pico"
    shutil.copytree(llama, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert fingerprint("org/pico") == fingerprint(llama)


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor(2.5), torch.empty(0, 3), torch.arange(6.0).reshape(2, 3).T, torch.tensor([True, False])],
    ids=["scalar", "empty", "transposed", "bool"],
)
def test_raw_bytes_are_row_major(tensor: torch.Tensor) -> None:
    assert bytes(raw_bytes(tensor)) == tensor.numpy().tobytes()
    assert tensor_sha256(tensor) == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_a_file_that_was_replaced_is_not_read(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Names and shapes may be the same: bits of another model under this one's fingerprint would be wrong weights."""
    folder = shutil.copytree(model_folder("bert_classifier"), tmp_path / "model")
    checkpoint = Checkpoint.open(folder)
    name = next(iter(checkpoint.tensors))
    checkpoint.read(name)
    file = checkpoint.tensors[name].file
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes())
    copy.replace(file)
    with pytest.raises(BackboneError, match="has changed"):
        checkpoint.read(name)
    file.unlink()
    with pytest.raises(BackboneError, match="no longer"):
        checkpoint.read(name)
