"""Appended rows are there inside the context and gone after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import pico

from patchbay.architecture import Task
from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.delta.manifest import Token
from patchbay.errors import InvalidRecipe, WrongShape
from patchbay.execute.patch import Patcher
from patchbay.execute.vocabulary import appended_rows

ModelFolder = Callable[..., Path]
MORE = 5
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "tied": ("llama", {"tied": True}),
    "untied": ("llama", {"tied": False}),
    "bf16": ("llama", {"dtype": torch.bfloat16}),
    "gpt2": ("gpt2", {}),
    "t5": ("t5", {}),
    "encoder": ("bert_encoder", {}),
    "classifier": ("bert_classifier", {}),
}


def grown(base: Path, out: Path, more: int = MORE) -> tuple[Path, Delta]:
    """A fine-tune with more tokens and its lossless delta."""
    tuned = pico.grow(base, out, pico.VOCAB + more)
    return tuned, pico.delta(base, tuned, out / "delta", density=1.0, exact=True)


def answer(backbone: Backbone) -> torch.Tensor:
    """To a text with old and new tokens."""
    inputs = {"input_ids": torch.tensor([[5, pico.VOCAB, 7, pico.VOCAB + MORE - 1]])}
    if backbone.task is Task.SEQ2SEQ_LM:
        inputs["decoder_input_ids"] = torch.tensor([[0, pico.VOCAB + 1]])
    with torch.inference_mode():
        output = backbone.model(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize("name", MODELS)
def test_patched_is_the_fine_tune(model_folder: ModelFolder, tmp_path: Path, name: str) -> None:
    maker, options = MODELS[name]
    tuned, delta = grown(model_folder(maker, **options), tmp_path)
    backbone = Backbone.load(model_folder(maker, **options), device="cpu")
    places = {place: p.shape for place, p in backbone.model.named_parameters(remove_duplicate=False)}
    with Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        assert torch.equal(answer(backbone), answer(Backbone.load(tuned, device="cpu")))
    assert {place: p.shape for place, p in backbone.model.named_parameters(remove_duplicate=False)} == places
    assert backbone.compute_digest() == backbone.resident_digest
    for spec in backbone.specs.values():
        for place in (spec.parameter, *spec.tied):
            assert backbone.model.get_parameter(place).data_ptr() == backbone.tensor(spec.name).data_ptr()
    with pytest.raises(IndexError):
        answer(backbone)


@pytest.mark.parametrize("inside", [True, False])
def test_works_in_inference_mode(model_folder: ModelFolder, tmp_path: Path, inside: bool) -> None:
    _, delta = grown(model_folder("llama"), tmp_path)
    backbone = Backbone.load(model_folder("llama"), device="cpu")
    with torch.inference_mode(inside), Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        assert answer(backbone).shape[-1] == pico.VOCAB + MORE
    with Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        assert answer(backbone).shape[-1] == pico.VOCAB + MORE
    assert backbone.compute_digest() == backbone.resident_digest


def test_restored_when_the_body_raises(model_folder: ModelFolder, tmp_path: Path) -> None:
    _, delta = grown(model_folder("llama"), tmp_path)
    backbone = Backbone.load(model_folder("llama"), device="cpu")
    with pytest.raises(ZeroDivisionError), Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        1 / 0  # noqa: B018
    assert len(backbone.model.get_input_embeddings().weight) == pico.VOCAB
    assert backbone.compute_digest() == backbone.resident_digest


def test_restored_when_a_later_matrix_cannot_be_extended(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = model_folder("llama", tied=False)
    _, delta = grown(folder, tmp_path)
    backbone = Backbone.load(folder, device="cpu")
    names = sorted(delta.appended)
    narrow = replace(delta, appended={**delta.appended, names[-1]: torch.ones(MORE, 3)})
    with pytest.raises(RuntimeError), Patcher(backbone).patched(pico.plan([delta], [1.0]), [narrow]):
        pytest.fail("a narrow row cannot be appended")
    assert {len(backbone.model.get_parameter(name)) for name in names} == {pico.VOCAB}
    assert backbone.compute_digest() == backbone.resident_digest


def test_merged_with_deltas_that_append_nothing(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    """The common rows are merged, the appended ones are the fine-tune's whatever its weight."""
    folder = model_folder("llama")
    _, delta = grown(folder, tmp_path)
    other = pico.delta(folder, finetune_folder("llama"), tmp_path / "other", density=0.3)
    backbone, name = Backbone.load(folder, device="cpu"), "model.embed_tokens.weight"
    plan = pico.plan([other, delta], [0.5, 0.25])
    with Patcher(backbone).patched(plan, [other, replace(delta, appended={})]):
        common = backbone.tensor(name).clone()
    with Patcher(backbone).patched(plan, [other, delta]):
        weight = backbone.model.get_input_embeddings().weight
        assert torch.equal(weight[: pico.VOCAB], common)
        assert torch.equal(weight[pico.VOCAB :], delta.appended[name])


def test_two_larger_vocabularies_cannot_be_merged(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = model_folder("llama")
    (_, first), (_, second) = grown(folder, tmp_path / "a"), grown(folder, tmp_path / "b", MORE + 1)
    backbone = Backbone.load(folder, device="cpu")
    patcher = Patcher(backbone)
    with (
        pytest.raises(InvalidRecipe, match="vocabulary") as caught,
        patcher.patched(pico.plan([first, second], [0.5, 0.5]), [first, second]),
    ):
        pytest.fail("both have a token with the same id")
    assert caught.value.param == "terms"
    assert "rows without tokens" in caught.value.message
    with patcher.patched(pico.plan([first], [1.0]), [first]):
        assert len(backbone.model.get_input_embeddings().weight) == pico.VOCAB + MORE


def test_both_vocabularies_are_listed(model_folder: ModelFolder, tmp_path: Path) -> None:
    (_, delta) = grown(model_folder("llama"), tmp_path / "a")
    named = []
    for words in (("<one>",), tuple(f"<{number}>" for number in range(10))):
        tokens = tuple(Token(id=number, content=word, special=False) for number, word in enumerate(words))
        named.append(replace(delta, manifest=delta.manifest.model_copy(update={"tokens": tokens})))
    with pytest.raises(InvalidRecipe, match="('<one>').*'<0>', '<1>'.*'<7>' and 2 more"):
        appended_rows(named)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: {name: rows[name] for name in sorted(rows)[1:]},
        lambda rows: {**rows, sorted(rows)[0]: rows[sorted(rows)[0]][1:]},
        lambda rows: {**rows, "model.norm.weight": torch.ones(MORE)},
    ],
)
def test_vocabulary_that_grows_in_places(
    model_folder: ModelFolder, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """The model could then write tokens that it cannot read."""
    folder = model_folder("llama", tied=False)
    _, delta = grown(folder, tmp_path)
    odd = replace(delta, appended=change(dict(delta.appended)))
    backbone = Backbone.load(folder, device="cpu")
    with pytest.raises(WrongShape), Patcher(backbone).patched(pico.plan([delta], [1.0]), [odd]):
        pytest.fail("some embedding has other rows")
    assert backbone.compute_digest() == backbone.resident_digest
