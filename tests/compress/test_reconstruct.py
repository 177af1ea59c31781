"""Base + delta is the fine-tuned folder again: bit for bit where that is promised, within the encoding elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from transformers import AutoTokenizer

from patchbay.backbone import Backbone
from patchbay.checkpoint import INDEX, Checkpoint, raw_bytes
from patchbay.compress import reconstruct as module
from patchbay.compress.options import VALUES
from patchbay.compress.reconstruct import reconstruct
from patchbay.delta import Exceptions, write_delta
from patchbay.delta.delta import apply_difference
from patchbay.delta.encode import Streams
from patchbay.delta.manifest import Base, Compression, Provenance, Statistics
from patchbay.errors import InputError, MalformedDelta, WrongBase
from patchbay.task_vector import TaskVector

ModelFolder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]


def planted(folder: Path, out: Path, start: int) -> Path:
    def plant(tensors: Tensors) -> Tensors:
        pico.plant(tensors.values(), start)
        return tensors

    return pico.rewrite(folder, out, plant)


def rebuilt(base: Path, tuned: Path, tmp_path: Path, **options: object) -> Path:
    out = tmp_path / "rebuilt"
    reconstruct(pico.delta_file(base, tuned, tmp_path / "delta", **options), base, out)
    return out


def lossless_file(base: Path, tuned: Path, out: Path) -> Path:
    """Whole differences, exceptions and appended rows."""
    vector, streams = TaskVector.from_models(base, tuned), Streams()
    for name in vector:
        pair = vector.pair(name)
        assert pair is not None
        before, after = pair
        stored = streams.add_whole(name, vector[name], "fp32", after.dtype)
        wrong = (apply_difference(before, stored, after.dtype) != after).flatten().nonzero().flatten()
        streams.add_exceptions(name, Exceptions(wrong, after.flatten()[wrong]))
        if name in vector.appended:
            streams.add_appended(name, vector.appended[name])
    entries, data = streams.finish()
    manifest = {
        "base": Base(name=vector.identity.base, fingerprint=vector.identity.base_fingerprint),
        "compression": Compression(method="magnitude", density=1.0),
        "statistics": Statistics(relative_error=0.0, sigma=0.0),
        "provenance": Provenance(finetuned=vector.identity.finetuned, tool="test", original_bytes=1),
        "tensors": entries,
        "config": dict(vector.identity.config),
    }
    write_delta(out, manifest, data)
    return out


def check_same_bits(folder: Path, expected: Path) -> None:
    left, right = Checkpoint.open(folder), Checkpoint.open(expected)
    assert list(left.tensors) == list(right.tensors)
    for name in left.tensors:
        assert raw_bytes(left.read(name)) == raw_bytes(right.read(name)), name
    assert left.fingerprint == right.fingerprint


@pytest.mark.parametrize("name", pico.MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_is_bit_for_bit(model_folder: ModelFolder, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    base = planted(model_folder(name, dtype=dtype), tmp_path / "base", 2)
    tuned = pico.perturb(base, tmp_path / "noisy", seed=3)
    tuned = planted(planted(tuned, tmp_path / "odd", 4), tmp_path / "tuned", 8)  # over the base's, and beside them
    out = rebuilt(base, tuned, tmp_path, density=1.0, values="fp32", exact=True)
    check_same_bits(out, tuned)
    assert json.loads((out / "config.json").read_text()) == json.loads((tuned / "config.json").read_text())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"tied": True}),
        ("llama", {"tied": False}),
        ("llama", {"dtype": torch.bfloat16}),
        ("t5", {}),
        ("bert_classifier", {}),
    ],
)
def test_larger_vocabulary_is_bit_for_bit(
    model_folder: ModelFolder, tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    base = model_folder(name, **options)
    tuned = pico.grow(base, tmp_path, pico.VOCAB + 3)
    out = tmp_path / "rebuilt"
    reconstruct(lossless_file(base, tuned, tmp_path / "delta"), base, out)
    check_same_bits(out, tuned)
    assert Backbone.load(out, device="cpu").architecture.config.vocab_size == pico.VOCAB + 3


def test_larger_vocabulary_in_both_stored_copies_of_a_tied_tensor(llama: Path, tmp_path: Path) -> None:
    def copy(tensors: Tensors) -> Tensors:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    base = pico.rewrite(llama, tmp_path / "base", copy)
    tuned = pico.rewrite(pico.grow(llama, tmp_path, pico.VOCAB + 3), tmp_path / "copied", copy)
    reconstruct(lossless_file(base, tuned, tmp_path / "delta"), base, tmp_path / "rebuilt")
    check_same_bits(tmp_path / "rebuilt", tuned)


@pytest.mark.parametrize("options", [{"density": 0.1}, {"density": 0.3, "method": "random", "values": "sign"}])
def test_exact_is_bit_for_bit_at_any_density(
    llama: Path, llama_tuned: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    """Exceptions carry what the kept entries do not reach."""
    check_same_bits(rebuilt(llama, llama_tuned, tmp_path, exact=True, **options), llama_tuned)


def test_fine_tune_of_another_dtype(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("llama", dtype=torch.bfloat16)
    tuned = pico.perturb(base, tmp_path / "noisy", seed=3)
    tuned = pico.rewrite(tuned, tmp_path / "tuned", lambda tensors: {n: t.half() for n, t in tensors.items()})
    check_same_bits(rebuilt(base, tuned, tmp_path, density=1.0, values="fp32", exact=True), tuned)


def test_plain_encoder_becomes_a_classifier(model_folder: ModelFolder, tmp_path: Path) -> None:
    base, tuned = model_folder("bert_encoder"), model_folder("bert_classifier", seed=5)
    out = rebuilt(base, tuned, tmp_path, density=1.0, values="fp32", exact=True)
    check_same_bits(out, tuned)
    left, right = Backbone.load(out, device="cpu"), Backbone.load(tuned, device="cpu")
    ids = torch.arange(8)[None]
    assert left.labels == right.labels == pico.LABELS
    assert torch.equal(left.model(ids).logits, right.model(ids).logits)


def test_classifier_becomes_a_plain_encoder(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Prefixes go too: names inside a file are the base's, and the model they make is the fine-tune."""
    base, tuned = model_folder("bert_classifier"), model_folder("bert_encoder", seed=5)
    out = rebuilt(base, tuned, tmp_path, density=1.0, values="fp32", exact=True)
    assert "classifier.weight" not in pico.weights(out)
    assert Backbone.load(out, device="cpu").resident_digest == Backbone.load(tuned, device="cpu").resident_digest


def test_other_labels(model_folder: ModelFolder, tmp_path: Path) -> None:
    base, tuned = model_folder("vit"), model_folder("vit", seed=5, labels=("a", "b"))
    out = rebuilt(base, tuned, tmp_path, density=1.0, values="fp32", exact=True)
    check_same_bits(out, tuned)
    assert Backbone.load(out, device="cpu").labels == ("a", "b")


def test_integer_buffers(model_folder: ModelFolder, tmp_path: Path) -> None:
    counter = "resnet.embedder.embedder.normalization.num_batches_tracked"
    base = model_folder("resnet")
    tuned = pico.rewrite(base, tmp_path / "tuned", lambda tensors: {**tensors, counter: tensors[counter] + 7})
    check_same_bits(rebuilt(base, tuned, tmp_path), tuned)


def test_first_gpt2_layout(model_folder: ModelFolder, tmp_path: Path) -> None:
    """The base stores masks and no prefix, the fine-tune no masks and a prefix."""

    def strip(tensors: Tensors) -> Tensors:
        plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return {**plain, "h.0.attn.bias": torch.ones(1, 1, 8, 8)}

    base = pico.rewrite(model_folder("gpt2"), tmp_path / "base", strip)
    tuned = pico.perturb(model_folder("gpt2"), tmp_path / "tuned")
    check_same_bits(rebuilt(base, tuned, tmp_path, density=1.0, values="fp32", exact=True), tuned)


@pytest.mark.parametrize("stored", [(True, False), (True, True)])
def test_second_copies_of_tied_tensors(llama: Path, tmp_path: Path, stored: tuple[bool, bool]) -> None:
    def copy(tensors: Tensors) -> Tensors:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    tuned = pico.perturb(llama, tmp_path / "noisy")
    base = pico.rewrite(llama, tmp_path / "base", copy) if stored[0] else llama
    tuned = pico.rewrite(tuned, tmp_path / "tuned", copy) if stored[1] else tuned
    check_same_bits(rebuilt(base, tuned, tmp_path, density=1.0, values="fp32", exact=True), tuned)


@pytest.mark.parametrize("values", sorted({*VALUES} - {"auto"}))
def test_encodings_stay_within_their_rounding(llama: Path, llama_tuned: Path, tmp_path: Path, values: str) -> None:
    before, after = pico.weights(llama), pico.weights(llama_tuned)
    reached = pico.weights(rebuilt(llama, llama_tuned, tmp_path, density=1.0, values=values))
    for name, base in before.items():
        tau = after[name].double() - base.double()
        error = (reached[name].double() - after[name].double()).abs()
        fp32 = 2**-23 * (base.double().abs() + tau.abs())
        assert bool((error <= bound(tau, values) + fp32).all()), name


def bound(tau: torch.Tensor, values: str) -> torch.Tensor:
    """|decoded - tau| at most, entry by entry, as the codecs state it; beside int4 and sign, norms are int4."""
    magnitude = tau.abs()
    if values == "fp32":
        return torch.zeros_like(tau)
    if values == "bf16":
        return 2**-8 * magnitude
    if values == "sign" and tau.dim() > 1 and tau.numel() >= 4096:
        mean = magnitude.mean(1, keepdim=True)
        return (magnitude - mean).abs() + 2**-10 * mean
    levels = 7 if values in ("int4", "sign") else 127
    flat = magnitude.flatten()
    groups = torch.nn.functional.pad(flat, (0, -len(flat) % 128), value=float(flat[-1])).reshape(-1, 128)
    low, high = groups.min(1, keepdim=True).values, groups.max(1, keepdim=True).values
    each = (high - low) / levels / 2 * 1.01 + 2**-8 * high
    return each.expand(-1, 128).flatten()[: len(flat)].reshape(tau.shape)


def test_shards(llama: Path, llama_tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 60_000)
    out = rebuilt(llama, llama_tuned, tmp_path, density=1.0, values="fp32", exact=True)
    shards = sorted(file.name for file in out.glob("*.safetensors"))
    index = json.loads((out / INDEX).read_text())
    assert len(shards) > 3
    assert not (out / pico.WEIGHTS).exists()
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in pico.weights(llama).values())
    check_same_bits(out, llama_tuned)
    assert Backbone.load(out, device="cpu").resident_digest == Backbone.load(llama_tuned, device="cpu").resident_digest


def test_config_and_companions(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    tuned = pico.reconfigure(llama_tuned, tmp_path / "tuned", rope_theta=5e5)
    config = json.loads((tuned / "config.json").read_text())
    del config["attention_dropout"]
    (tuned / "config.json").write_text(json.dumps(config))
    base = pico.reconfigure(llama, tmp_path / "base")
    (base / "pytorch_model.bin").write_bytes(b"no")
    (base / "model-00009.safetensors").write_bytes(b"no")
    (base / "README.md").write_text("about")
    out = rebuilt(base, tuned, tmp_path)
    assert json.loads((out / "config.json").read_text()) == config
    names = {file.name for file in out.iterdir()}
    assert names == {file.name for file in llama.iterdir()}  # the base's model card would be false here
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_added_tokens(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    tuned = pico.reconfigure(llama_tuned, tmp_path / "tuned")
    expected = AutoTokenizer.from_pretrained(tuned)
    expected.add_tokens(["<tool>"], special_tokens=True)
    expected.add_tokens(["zebra"])
    expected.save_pretrained(tuned)
    tokenizer = AutoTokenizer.from_pretrained(rebuilt(llama, tuned, tmp_path))
    text = "the zebra <tool> sees"
    ids = expected(text)["input_ids"]
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == expected.decode(ids, skip_special_tokens=True)
    assert AutoTokenizer.from_pretrained(llama)(text)["input_ids"] != ids


def test_base_is_untouched(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in llama.iterdir()}
    rebuilt(llama, llama_tuned, tmp_path)
    assert {file.name: file.read_bytes() for file in llama.iterdir()} == before


def test_progress(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    file = pico.delta_file(llama, llama_tuned, tmp_path / "delta")
    reconstruct(file, llama, tmp_path / "out", lambda *step: steps.append(step))
    names = list(pico.weights(llama))
    assert steps == [(number, len(names), name) for number, name in enumerate(names)]


def test_folder_in_use_is_refused(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    file = pico.delta_file(llama, llama_tuned, tmp_path / "delta")
    folder, other = tmp_path / "out", tmp_path / "file"
    folder.mkdir()
    (folder / "mine").write_text("keep")
    other.write_text("keep")
    for out in (folder, other):
        with pytest.raises(InputError) as caught:
            reconstruct(file, llama, out)
        assert (caught.value.param, str(out) in caught.value.message) == ("out", True)
    assert [f.name for f in folder.iterdir()] == ["mine"]
    assert other.read_text() == "keep"


def test_empty_folder_is_used(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "rebuilt").mkdir()
    check_same_bits(rebuilt(llama, llama_tuned, tmp_path, density=1.0, values="fp32", exact=True), llama_tuned)


def test_wrong_base_and_damage_leave_nothing(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    file, out = pico.delta_file(llama, llama_tuned, tmp_path / "delta"), tmp_path / "out"
    with pytest.raises(WrongBase):
        reconstruct(file, llama_tuned, out)
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(MalformedDelta):
        reconstruct(file, llama, out)
    assert not out.exists()


def test_who_reads_one_file_reads_all(model_folder: ModelFolder, tmp_path: Path) -> None:
    """The weights are no secret of their owner beside a config that is none."""
    base, tuned = model_folder("llama", layers=1), pico.rewrite(model_folder("llama", layers=1), tmp_path / "t", dict)
    pico.delta(base, tuned, tmp_path / "d", density=0.1)
    reconstruct(tmp_path / "d", base, tmp_path / "model")
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert modes["model.safetensors"] == 0o644
