from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import pico
from transformers import AutoTokenizer

from patchbay.architecture import Kind, TensorSpec
from patchbay.checkpoint import Checkpoint, raw_bytes
from patchbay.errors import FinetuneMismatch
from patchbay.task_vector import Identity, TaskVector

ModelFolder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
FINITE = st.floats(-1e6, 1e6, width=32)


def mismatch(base: Path, finetuned: Path) -> FinetuneMismatch:
    with pytest.raises(FinetuneMismatch) as caught:
        TaskVector.from_models(base, finetuned)
    return caught.value


def vector_of(values: Mapping[str, torch.Tensor], base: str = "sha256:a") -> TaskVector:
    """A vector over rows "a", "b", "c" of two numbers each, which changes those in `values`."""
    specs = {n: TensorSpec(n, n, (2,), "F32", Kind.OTHER, None, (), False) for n in ("a", "b", "c")}
    return TaskVector(specs, tuple(values), {}, {}, (), Identity("base", base, "tuned"), dict(values).__getitem__)


@pytest.mark.parametrize("name", pico.MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_difference_is_taken_in_fp32(
    model_folder: ModelFolder, finetune_folder: ModelFolder, name: str, dtype: torch.dtype
) -> None:
    base, tuned = model_folder(name, dtype=dtype), finetune_folder(name, dtype=dtype)
    vector, before, after = TaskVector.from_models(base, tuned), pico.weights(base), pico.weights(tuned)
    floats = [n for n, t in before.items() if t.is_floating_point()]
    assert sorted(vector) == sorted(n for n in floats if not torch.equal(before[n], after[n]))
    assert len(list(vector)) > len(floats) / 2
    assert (dict(vector.added), dict(vector.copied), vector.missing) == ({}, {}, ())
    for tensor in vector:
        assert vector[tensor].dtype == torch.float32
        assert torch.equal(vector[tensor], after[tensor].float() - before[tensor].float())
        pair = vector.pair(tensor)
        assert pair is not None
        assert [raw_bytes(t) for t in pair] == [raw_bytes(before[tensor]), raw_bytes(after[tensor])]


def test_equal_models_have_an_empty_vector(llama: Path, tmp_path: Path) -> None:
    vector = TaskVector.from_models(llama, pico.rewrite(llama, tmp_path, lambda tensors: tensors))
    assert list(vector) == []
    name = "model.norm.weight"
    assert torch.equal(vector[name], torch.zeros(vector.specs[name].shape))


def test_equal_tensors_are_skipped(llama: Path, tmp_path: Path) -> None:
    def train_one(tensors: Tensors) -> Tensors:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.5
        return tensors

    assert list(TaskVector.from_models(llama, pico.rewrite(llama, tmp_path, train_one))) == [
        "model.layers.1.mlp.up_proj.weight"
    ]


def test_sign_of_zero_is_a_change(llama: Path, tmp_path: Path) -> None:
    def zero(value: float) -> Callable[[Tensors], Tensors]:
        return lambda tensors: {**tensors, "model.norm.weight": torch.full_like(tensors["model.norm.weight"], value)}

    base, tuned = pico.rewrite(llama, tmp_path / "a", zero(0.0)), pico.rewrite(llama, tmp_path / "b", zero(-0.0))
    assert list(TaskVector.from_models(base, tuned)) == ["model.norm.weight"]


def test_checkpoints_may_be_open_already(llama: Path, llama_tuned: Path) -> None:
    vector = TaskVector.from_models(Checkpoint.open(llama), Checkpoint.open(llama_tuned))
    assert vector.changed == TaskVector.from_models(llama, llama_tuned).changed


def test_progress(llama: Path, llama_tuned: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    TaskVector.from_models(llama, llama_tuned, lambda *step: steps.append(step))
    names = list(pico.weights(llama))
    assert [step[0] for step in steps] == list(range(len(names)))
    assert {step[1] for step in steps} == {len(names)}
    assert {step[2] for step in steps} == set(names)


def test_plain_encoder_against_a_classifier(model_folder: ModelFolder) -> None:
    base, tuned = model_folder("bert_encoder"), model_folder("bert_classifier", seed=5)
    vector, before, after = TaskVector.from_models(base, tuned), pico.weights(base), pico.weights(tuned)
    assert vector.identity.prefix == "bert."
    assert vector.missing == ()
    assert set(vector.added) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(vector.added["classifier.weight"], after["classifier.weight"])
    assert set(vector) == set(before)
    for name in vector:
        assert torch.equal(vector[name], after[f"bert.{name}"] - before[name])
    assert vector.identity.labels == ("cat", "dog", "owl")


def test_classifier_against_a_plain_encoder(model_folder: ModelFolder) -> None:
    """A fine-tune may drop the base's head."""
    vector = TaskVector.from_models(model_folder("bert_classifier", seed=5), model_folder("bert_encoder"))
    assert set(vector.missing) == {"classifier.weight", "classifier.bias"}
    assert dict(vector.added) == {}
    assert vector.identity.labels is None
    assert len(list(vector)) == len(vector.specs) - 2


def test_fine_tune_may_drop_the_pooler(model_folder: ModelFolder) -> None:
    vector = TaskVector.from_models(model_folder("bert_encoder"), model_folder("bert_encoder", pooler=False, seed=5))
    assert set(vector.missing) == {"pooler.dense.weight", "pooler.dense.bias"}


def test_other_labels_make_an_own_head(model_folder: ModelFolder) -> None:
    base, tuned = model_folder("vit"), model_folder("vit", seed=5, labels=("a", "b"))
    vector = TaskVector.from_models(base, tuned)
    head = {"classifier.weight", "classifier.bias"}
    assert set(vector.added) == set(vector.missing) == head
    assert vector.added["classifier.weight"].shape == (2, pico.HIDDEN)
    assert not head & set(vector)
    assert vector.identity.labels == ("a", "b")


def test_renamed_keys_are_matched(model_folder: ModelFolder, tmp_path: Path) -> None:
    """A fine-tune saved under the names of memory matches a base saved under those of the first ViT."""
    base = model_folder("vit")
    places = {name: spec.parameter for name, spec in TaskVector.from_models(base, base).specs.items()}
    tuned = pico.perturb(base, tmp_path / "tuned")
    renamed = pico.rewrite(tuned, tmp_path / "renamed", lambda tensors: {places[n]: t for n, t in tensors.items()})
    assert not set(pico.weights(renamed)) >= set(pico.weights(base))
    expected, vector = TaskVector.from_models(base, tuned), TaskVector.from_models(base, renamed)
    assert vector.changed == expected.changed
    assert all(torch.equal(vector[name], expected[name]) for name in vector)
    assert vector.identity.prefix == ""


def test_first_gpt2_layout(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Base as on the hub: no prefix, and attention masks that no fine-tune stores any more."""

    def strip(tensors: Tensors) -> Tensors:
        plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return {**plain, "h.0.attn.bias": torch.ones(1, 1, 8, 8)}

    whole = model_folder("gpt2")
    base, tuned = pico.rewrite(whole, tmp_path / "base", strip), pico.perturb(whole, tmp_path / "tuned")
    vector = TaskVector.from_models(base, tuned)
    assert vector.identity.prefix == "transformer."
    assert vector.missing == ("h.0.attn.bias",)
    assert len(list(vector)) == len(pico.weights(whole))


@pytest.mark.parametrize("stored", [(True, False), (False, True), (True, True)])
def test_second_copies_of_tied_tensors_do_not_matter(llama: Path, tmp_path: Path, stored: tuple[bool, bool]) -> None:
    def copy(tensors: Tensors) -> Tensors:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    tuned = pico.perturb(llama, tmp_path / "tuned")
    expected = TaskVector.from_models(llama, tuned)
    base = pico.rewrite(llama, tmp_path / "b", copy) if stored[0] else llama
    tuned = pico.rewrite(tuned, tmp_path / "t", copy) if stored[1] else tuned
    vector = TaskVector.from_models(base, tuned)
    assert vector.changed == expected.changed
    assert vector.missing == (("lm_head.weight",) if stored == (True, False) else ())
    assert dict(vector.added) == {}


def test_tied_tensors_trained_apart_are_refused(llama: Path, tmp_path: Path) -> None:
    def untie(tensors: Tensors) -> Tensors:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}

    tuned = pico.rewrite(llama, tmp_path, untie)
    assert mismatch(llama, tuned).param == "lm_head.weight"
    assert mismatch(tuned, llama).param == "lm_head.weight"


def test_tensor_that_only_the_base_has_is_named(model_folder: ModelFolder) -> None:
    error = mismatch(model_folder("llama"), model_folder("llama", layers=1, seed=5))
    assert (error.param or "").startswith("model.layers.1.")
    assert "lacks" in error.message


def test_tensor_that_only_the_fine_tune_has_is_named(model_folder: ModelFolder) -> None:
    error = mismatch(model_folder("llama", layers=1, seed=5), model_folder("llama"))
    assert (error.param or "").startswith("model.layers.1.")
    assert (error.param or "!") in error.message


def test_other_architecture_is_refused(model_folder: ModelFolder) -> None:
    mismatch(model_folder("llama"), model_folder("gpt2"))


@pytest.mark.parametrize(
    ("maker", "options", "names"),
    [
        ("llama", {"tied": True}, {"model.embed_tokens.weight"}),
        ("llama", {"tied": False}, {"model.embed_tokens.weight", "lm_head.weight"}),
        ("llama", {"dtype": torch.bfloat16}, {"model.embed_tokens.weight"}),
        ("bert_encoder", {}, {"embeddings.word_embeddings.weight"}),
        ("bert_classifier", {}, {"bert.embeddings.word_embeddings.weight"}),
        ("gpt2", {}, {"transformer.wte.weight"}),
        ("t5", {}, {"shared.weight"}),
    ],
)
def test_larger_vocabulary(
    model_folder: ModelFolder, tmp_path: Path, maker: str, options: dict[str, Any], names: set[str]
) -> None:
    base = model_folder(maker, **options)
    tuned = pico.grow(base, tmp_path, pico.VOCAB + 7)
    vector, before, after = TaskVector.from_models(base, tuned), pico.weights(base), pico.weights(tuned)
    assert set(vector.appended) == names <= set(vector)
    assert dict(vector.identity.config) == {"vocab_size": pico.VOCAB + 7}
    assert (dict(vector.added), vector.missing) == ({}, ())
    for name in vector:
        common = after[name][: len(before[name])]
        assert torch.equal(vector[name], common.float() - before[name].float())
        pair = vector.pair(name)
        assert pair is not None
        assert [raw_bytes(t) for t in pair] == [raw_bytes(before[name]), raw_bytes(common)]
    for name in names:
        assert raw_bytes(vector.appended[name]) == raw_bytes(after[name][pico.VOCAB :])


def test_appended_rows_belong_to_the_fine_tune_alone(llama: Path, tmp_path: Path) -> None:
    """Rows in common that did not move are no change; the new rows do not keep the whole matrix in memory."""
    name = "model.embed_tokens.weight"

    def append(tensors: Tensors) -> Tensors:
        return {**tensors, name: torch.cat([tensors[name], torch.ones(2, pico.HIDDEN)])}

    grown = pico.reconfigure(pico.rewrite(llama, tmp_path / "a", append), tmp_path / "b", vocab_size=pico.VOCAB + 2)
    vector = TaskVector.from_models(llama, grown)
    assert vector.changed == ()
    assert torch.equal(vector.appended[name], torch.ones(2, pico.HIDDEN))
    assert vector.appended[name].untyped_storage().nbytes() == 2 * pico.HIDDEN * 4


def test_plain_encoder_against_a_classifier_with_more_tokens(model_folder: ModelFolder, tmp_path: Path) -> None:
    tuned = pico.grow(model_folder("bert_classifier", seed=5), tmp_path, pico.VOCAB + 3)
    vector = TaskVector.from_models(model_folder("bert_encoder"), tuned)
    rows = pico.weights(tuned)["bert.embeddings.word_embeddings.weight"][pico.VOCAB :]
    assert torch.equal(vector.appended["embeddings.word_embeddings.weight"], rows)
    assert set(vector.added) == {"classifier.weight", "classifier.bias"}


def test_smaller_vocabulary_is_named(llama: Path, tmp_path: Path) -> None:
    error = mismatch(llama, pico.grow(llama, tmp_path, pico.VOCAB - 1))
    assert error.param == "model.embed_tokens.weight"
    assert all(text in error.message for text in (error.param, "[95, 64]", "[96, 64]", "only grow"))


@pytest.mark.parametrize(
    ("maker", "name", "key"),
    [
        ("gpt2", "transformer.wpe.weight", "n_positions"),
        ("bert_encoder", "embeddings.token_type_embeddings.weight", "type_vocab_size"),
        ("llama", "model.layers.0.mlp.up_proj.weight", None),
    ],
)
def test_only_a_vocabulary_can_be_resized(
    model_folder: ModelFolder, tmp_path: Path, maker: str, name: str, key: str | None
) -> None:
    base = model_folder(maker)
    shape = pico.weights(base)[name].shape
    if key is None:
        other = pico.MAKERS[maker](tmp_path / "wide")
        grown = pico.rewrite(other, tmp_path / "t", lambda t: {n: _wider(n, x) for n, x in t.items()})
        grown = pico.reconfigure(grown, tmp_path / "c", intermediate_size=pico.INNER + 1)
    else:
        grown = pico.rewrite(base, tmp_path / "t", lambda t: {**t, name: torch.ones(shape[0] + 1, *shape[1:])})
        grown = pico.reconfigure(grown, tmp_path / "c", **{key: shape[0] + 1})
    error = mismatch(base, grown)
    assert "only a vocabulary" in error.message
    assert (error.param or "").rpartition(".")[2] == "weight"
    assert key is None or error.param == name


def _wider(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """One more neuron inside every MLP."""
    if "up_proj" in name or "gate_proj" in name:
        return torch.cat([tensor, tensor[:1]])
    return torch.cat([tensor, tensor[:, :1]], dim=1) if "down_proj" in name else tensor


def test_integer_buffers_are_copied(model_folder: ModelFolder, tmp_path: Path) -> None:
    counter = "resnet.embedder.embedder.normalization.num_batches_tracked"

    def count(tensors: Tensors) -> Tensors:
        assert tensors[counter].dtype == torch.int64
        return {**tensors, counter: tensors[counter] + 7}

    base = model_folder("resnet")
    vector = TaskVector.from_models(base, pico.rewrite(base, tmp_path, count))
    assert {name: tensor.tolist() for name, tensor in vector.copied.items()} == {counter: 7}
    assert list(vector) == []


def test_fp16_fine_tune_of_a_bf16_base(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("llama", dtype=torch.bfloat16)
    tuned = pico.rewrite(base, tmp_path, lambda tensors: {n: (t.float() + 1e-3).half() for n, t in tensors.items()})
    before, after = pico.weights(base), pico.weights(tuned)
    vector = TaskVector.from_models(base, tuned)
    assert set(vector) == set(before)
    for name in vector:
        assert torch.equal(vector[name], after[name].float() - before[name].float())


def test_another_dtype_alone_is_a_change(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("llama", dtype=torch.bfloat16)
    wide = pico.rewrite(base, tmp_path, lambda tensors: {n: t.float() for n, t in tensors.items()})
    vector = TaskVector.from_models(base, wide)
    assert set(vector) == set(pico.weights(base))
    assert not any(bool(vector[name].any()) for name in vector)


def test_identity(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    changes = {"rope_theta": 5e5, "use_cache": False, "transformers_version": "9", "_name_or_path": "x"}
    tuned = pico.reconfigure(llama_tuned, tmp_path / "my-tune", **changes)
    config = json.loads((tuned / "config.json").read_text())
    del config["attention_dropout"]
    (tuned / "config.json").write_text(json.dumps(config))
    identity = TaskVector.from_models(llama, tuned).identity
    assert (identity.base, identity.finetuned) == (llama.name, "my-tune")
    assert identity.base_fingerprint == Checkpoint.open(llama).fingerprint
    assert identity.config == {"rope_theta": 5e5, "use_cache": False}
    assert identity.config_removed == ("attention_dropout",)
    assert (identity.labels, identity.tokens, identity.prefix) == (None, (), "")


def test_added_tokens_travel(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    tuned = pico.reconfigure(llama_tuned, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    tokenizer.add_tokens(["<tool>"], special_tokens=True)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tuned)
    first = len(pico.SPECIAL) + len(pico.WORDS)
    assert TaskVector.from_models(llama, tuned).identity.tokens == (
        {"id": first, "content": "<tool>", "special": True},
        {"id": first + 1, "content": "zebra", "special": False},
    )


@given(
    st.dictionaries(st.sampled_from("abc"), st.tuples(FINITE, FINITE)),
    st.dictionaries(st.sampled_from("abc"), st.tuples(FINITE, FINITE)),
    FINITE,
)
def test_algebra(left: dict[str, tuple[float, float]], right: dict[str, tuple[float, float]], scale: float) -> None:
    a = vector_of({name: torch.tensor(row) for name, row in left.items()})
    b = vector_of({name: torch.tensor(row) for name, row in right.items()})
    assert set((a + b).changed) == set((a - b).changed) == set(left) | set(right)
    assert set((a * scale).changed) == set(left)
    for name in "abc":
        assert torch.equal((a + b)[name], (b + a)[name])
        assert torch.equal((a + b)[name], a[name] + b[name])
        assert torch.equal((a - b)[name], (a + -b)[name])
        assert torch.equal((a - a)[name], torch.zeros(2))
        assert torch.equal((scale * a)[name], (a * scale)[name])
        assert torch.equal((a * scale)[name], a[name] * scale)
        assert torch.equal((2 * (a + b) - a - b)[name], (a + b)[name] * 2 - a[name] - b[name])
    assert (a + b).pair("a") is None


def test_vectors_of_different_bases_cannot_be_added() -> None:
    with pytest.raises(FinetuneMismatch, match="different bases"):
        vector_of({}) + vector_of({}, base="sha256:b")
    with pytest.raises(FinetuneMismatch, match="different bases"):
        vector_of({}) - vector_of({}, base="sha256:b")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apply_reaches_the_fine_tune(
    model_folder: ModelFolder, finetune_folder: ModelFolder, dtype: torch.dtype
) -> None:
    base, tuned = model_folder("llama", dtype=dtype), finetune_folder("llama", dtype=dtype)
    vector, before, after = TaskVector.from_models(base, tuned), pico.weights(base), pico.weights(tuned)
    for name in vector:
        reached = vector.apply(name, before[name])
        assert reached.dtype == dtype
        torch.testing.assert_close(reached, after[name], rtol=torch.finfo(dtype).eps, atol=1e-8)
        assert torch.equal(vector.apply(name, before[name], scale=0.0), before[name])


def test_apply_rounds_once() -> None:
    """1 + 2^-8 + 2^-20 rounds up in bf16; with the difference rounded first it is a tie, which goes down."""
    difference = torch.tensor([2**-8 + 2**-20, 0.0])
    reached = vector_of({"a": difference}).apply("a", torch.ones(2, dtype=torch.bfloat16))
    assert reached.tolist() == [1 + 2**-7, 1.0]
