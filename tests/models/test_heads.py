from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import pico
from transformers import AutoModelForSequenceClassification

from patchbay.backbone import Backbone
from patchbay.compress.reconstruct import reconstruct
from patchbay.delta import Delta, read_delta
from patchbay.errors import AmbiguousHead, MalformedDelta
from patchbay.execute.patch import Patcher
from patchbay.merge import build_plan, parse
from patchbay.models.heads import base_head, check_head, choose_head, delta_head
from patchbay.models.inputs import Inputs

Load = Callable[..., Backbone]
LABELS = ("x", "y")


@pytest.fixture(scope="session")
def head_file(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier made from the plain encoder."""
    folder = tmp_path_factory.mktemp("head")
    tuned = pico.perturb(model_folder("bert_classifier", labels=LABELS), folder / "tuned", 5, 0.05)
    return pico.delta_file(model_folder("bert_encoder"), tuned, folder / "head.safetensors", density=0.5)


@pytest.fixture(scope="session")
def bare(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Delta:
    """A fine-tune of the plain encoder that is one itself."""
    folder = tmp_path_factory.mktemp("bare")
    base = model_folder("bert_encoder")
    return pico.delta(base, pico.perturb(base, folder / "tuned"), folder / "bare.safetensors")


@pytest.fixture
def encoder(backbone: Load) -> Backbone:
    return backbone("bert_encoder")


@pytest.fixture
def headed(encoder: Backbone, head_file: Path) -> Delta:
    return read_delta(head_file, encoder.specs, encoder.fingerprint)


def test_the_only_owner_answers(encoder: Backbone, headed: Delta, bare: Delta) -> None:
    assert choose_head(encoder, {"math": headed}, None) == "math"
    assert choose_head(encoder, {"bare": bare, "math": headed}, None) == "math"
    assert choose_head(encoder, {"a": headed, "b": headed}, "b") == "b"


def test_the_base_answers_where_nobody_brings_a_head(backbone: Load, headed: Delta, bare: Delta) -> None:
    base = backbone("bert_classifier")
    assert choose_head(base, {}, None) is None
    assert choose_head(base, {"bare": bare}, None) is None
    assert choose_head(base, {"bare": bare}, "bare") is None
    assert choose_head(base, {"bare": bare, "math": headed}, None) == "math"
    assert choose_head(base, {"bare": bare, "math": headed}, "bare") is None
    assert base_head(base).labels == pico.LABELS


@pytest.mark.parametrize(
    ("names", "asked", "says"),
    [
        ({"b": True, "a": True}, None, "say which with 'head': a, b"),
        ({}, None, "neither the base"),
        ({"bare": False}, None, "neither the base"),
        ({"bare": False}, "bare", "'bare' has no head"),
        ({"a": True}, "b", "'b' is not among the terms: a"),
        ({}, "a", "not among the terms: none"),
    ],
)
def test_ambiguous_heads(
    encoder: Backbone, headed: Delta, bare: Delta, names: dict[str, bool], asked: str | None, says: str
) -> None:
    deltas = {name: headed if owns else bare for name, owns in names.items()}
    with pytest.raises(AmbiguousHead, match=says) as error:
        choose_head(encoder, deltas, asked)
    assert error.value.param == "head"


@torch.inference_mode()
def test_a_head_sits_on_the_resident_encoder(encoder: Backbone, headed: Delta, head_file: Path, tmp_path: Path) -> None:
    """No second encoder, and a patch of the base is a patch of the head's model."""
    head = delta_head(encoder, headed)
    assert head.labels == LABELS
    resident = {tensor.data_ptr() for tensor in encoder.model.parameters()}
    own = [name for name, tensor in head.model.named_parameters() if tensor.data_ptr() not in resident]
    assert own == ["classifier.weight", "classifier.bias"]
    assert head.num_bytes == 4 * (2 * pico.HIDDEN + 2)
    assert not head.model.training and not any(p.requires_grad for p in head.model.parameters())

    reconstruct(head_file, encoder.folder, tmp_path / "model")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    batch = Inputs(encoder).batch(["the cat", "a dog runs"])
    plan = build_plan(parse("math").canonical({"math": "sha256:0"}, True, {}), [headed])
    with Patcher(encoder).patched(plan, [headed]):
        torch.testing.assert_close(head.model(**batch).logits, whole(**batch).logits, atol=1e-6, rtol=0)
    assert (head.model(**batch).logits - whole(**batch).logits).abs().max() > 1e-4


def test_a_head_takes_the_bases_dtype(headed: Delta, model_folder: Callable[..., Path]) -> None:
    base = Backbone.load(model_folder("bert_encoder"), dtype="bf16")
    before = torch.get_default_dtype()
    head = delta_head(base, headed)
    assert {p.dtype for p in head.model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == before


def changed(delta: Delta, **config: object) -> Delta:
    return replace(delta, manifest=delta.manifest.model_copy(update={"config": {**delta.manifest.config, **config}}))


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["BertModel"]},
        {"architectures": None},
        {"architectures": [None]},
        {"id2label": {"0": "a"}},
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        {"id2label": {"zero": "a", "one": "b"}},
        {"id2label": []},
    ],
)
def test_configs_that_describe_no_head(encoder: Backbone, headed: Delta, config: dict[str, object]) -> None:
    with pytest.raises(MalformedDelta):
        delta_head(encoder, changed(headed, **config))
    with pytest.raises(MalformedDelta):
        check_head(encoder, changed(headed, **config))


def test_tensors_that_make_no_head(encoder: Backbone, headed: Delta) -> None:
    weight, bias = headed.added["classifier.weight"], headed.added["classifier.bias"]
    for added, param in (
        ({"classifier.weight": weight}, "classifier.bias"),
        ({"classifier.weight": weight[:, :3], "classifier.bias": bias}, "classifier.weight"),
        ({"classifier.weight": weight.T.contiguous(), "classifier.bias": bias}, "classifier.weight"),
        ({"classifier.weight": weight, "bert.pooler.dense.bias": bias}, "bert.pooler.dense.bias"),
    ):
        with pytest.raises(MalformedDelta) as error:
            delta_head(encoder, replace(headed, added=added))
        assert error.value.param == param


def test_only_the_head_is_taken_from_a_deltas_config(encoder: Backbone, headed: Delta) -> None:
    hostile = changed(headed, num_hidden_layers=10**9, hidden_size="x", _attn_implementation="somebody/kernel")
    head = delta_head(encoder, hostile)
    assert head.model.config.num_hidden_layers == encoder.architecture.config.num_hidden_layers


def test_there_is_nothing_to_check_without_a_head(backbone: Load, bare: Delta, headed: Delta) -> None:
    check_head(backbone("bert_encoder"), bare)
    check_head(backbone("bert_encoder"), headed)
    check_head(backbone("llama"), changed(headed, architectures=["BertModel"]))  # no route would ask for it
