from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from patchbay.architecture import Architecture, Kind, Task, TensorSpec, detect_task
from patchbay.backbone import Backbone
from patchbay.checkpoint import Checkpoint
from patchbay.errors import UnsupportedBackbone

ModelFolder = Callable[..., Path]
TASKS = {
    "llama": Task.CAUSAL_LM,
    "gpt2": Task.CAUSAL_LM,
    "bert_classifier": Task.TEXT_CLASSIFICATION,
    "bert_encoder": Task.EMBEDDING,
    "vit": Task.IMAGE_CLASSIFICATION,
    "t5": Task.SEQ2SEQ_LM,
    "clip_vision": Task.EMBEDDING,
    "resnet": Task.IMAGE_CLASSIFICATION,
    "neuript": Task.EEG_CLASSIFICATION,
}
# (kind, neuron axis) of a tensor by the end of its stored name; the first match counts.
EXPECTED: dict[str, list[tuple[str, Kind, int | None]]] = {
    "llama": [
        ("embed_tokens.weight", Kind.EMBEDDING, 0),
        ("proj.weight", Kind.LINEAR, 0),
        ("norm.weight", Kind.NORM, None),
    ],
    "gpt2": [
        ("wte.weight", Kind.EMBEDDING, 0),
        ("wpe.weight", Kind.EMBEDDING, 0),
        (".c_attn.weight", Kind.CONV1D, 1),
        (".c_proj.weight", Kind.CONV1D, 1),
        (".c_fc.weight", Kind.CONV1D, 1),
        ("_1.bias", Kind.NORM, None),
        ("_2.bias", Kind.NORM, None),
        ("_f.bias", Kind.NORM, None),
        (".bias", Kind.BIAS, None),
        (".weight", Kind.NORM, None),
    ],
    "bert_encoder": [
        ("embeddings.weight", Kind.EMBEDDING, 0),
        ("LayerNorm.weight", Kind.NORM, None),
        ("LayerNorm.bias", Kind.NORM, None),
        (".bias", Kind.BIAS, None),
        (".weight", Kind.LINEAR, 0),
    ],
    "vit": [
        ("cls_token", Kind.OTHER, None),
        ("position_embeddings", Kind.OTHER, None),
        ("projection.weight", Kind.CONV, 0),
        ("layernorm_before.weight", Kind.NORM, None),
        ("layernorm_after.weight", Kind.NORM, None),
        ("layernorm.weight", Kind.NORM, None),
        ("layernorm_before.bias", Kind.NORM, None),
        ("layernorm_after.bias", Kind.NORM, None),
        ("layernorm.bias", Kind.NORM, None),
        (".bias", Kind.BIAS, None),
        (".weight", Kind.LINEAR, 0),
    ],
    "t5": [
        ("shared.weight", Kind.EMBEDDING, 0),
        ("relative_attention_bias.weight", Kind.EMBEDDING, 0),
        ("norm.weight", Kind.NORM, None),
        (".weight", Kind.LINEAR, 0),
    ],
    "clip_vision": [
        ("class_embedding", Kind.OTHER, None),
        ("patch_embedding.weight", Kind.CONV, 0),
        ("position_embedding.weight", Kind.EMBEDDING, 0),
        ("norm1.weight", Kind.NORM, None),
        ("norm2.weight", Kind.NORM, None),
        ("norm1.bias", Kind.NORM, None),
        ("norm2.bias", Kind.NORM, None),
        ("norm.weight", Kind.NORM, None),
        ("norm.bias", Kind.NORM, None),
        (".bias", Kind.BIAS, None),
        (".weight", Kind.LINEAR, 0),
    ],
    "resnet": [
        ("convolution.weight", Kind.CONV, 0),
        ("normalization.weight", Kind.NORM, None),
        ("normalization.bias", Kind.NORM, None),
        ("classifier.1.bias", Kind.BIAS, None),
        ("classifier.1.weight", Kind.LINEAR, 0),
        ("", Kind.OTHER, None),
    ],
    "neuript": [
        ("norm.weight", Kind.NORM, None),
        ("norm.bias", Kind.NORM, None),
        (".bias", Kind.BIAS, None),
        (".weight", Kind.LINEAR, 0),
    ],
}
DTYPES = {torch.float32: "F32", torch.int64: "I64"}
EXPECTED["bert_classifier"] = EXPECTED["bert_encoder"]


def of(folder: Path, task: Task | None = None) -> Architecture:
    return Architecture.of(Checkpoint.open(folder), task)


def refusal(folder: Path, task: Task | None = None) -> UnsupportedBackbone:
    with pytest.raises(UnsupportedBackbone) as caught:
        of(folder, task)
    return caught.value


@pytest.mark.parametrize("name", pico.MAKERS)
def test_task_is_detected(model_folder: ModelFolder, name: str) -> None:
    assert of(model_folder(name)).task is TASKS[name]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("Qwen2ForCausalLM", Task.CAUSAL_LM),
        ("BartForConditionalGeneration", Task.SEQ2SEQ_LM),
        ("RobertaForSequenceClassification", Task.TEXT_CLASSIFICATION),
        ("SwinForImageClassification", Task.IMAGE_CLASSIFICATION),
        ("BertForMaskedLM", Task.EMBEDDING),
        ("ViTModel", Task.EMBEDDING),
    ],
)
def test_detect_task(architecture: str, task: Task) -> None:
    assert detect_task({"architectures": [architecture, "OtherForCausalLM"]}) is task


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": []}])
def test_task_of_a_config_without_architectures_must_be_said(config: dict[str, object]) -> None:
    with pytest.raises(UnsupportedBackbone, match="--task"):
        detect_task(config)


def test_task_can_be_said_where_the_config_names_none(tmp_path: Path, llama: Path) -> None:
    folder = pico.reconfigure(llama, tmp_path, architectures=[])
    assert of(folder, Task.CAUSAL_LM).specs == of(llama).specs


def test_task_override_drops_what_the_task_does_not_use(model_folder: ModelFolder) -> None:
    classifier = of(model_folder("bert_classifier"), Task.EMBEDDING)
    assert classifier.task is Task.EMBEDDING
    assert classifier.unused == ("classifier.bias", "classifier.weight")
    assert classifier.is_base_model
    assert not any(spec.is_head for spec in classifier.specs.values())


@pytest.mark.parametrize(
    ("name", "task"), [("vit", Task.CAUSAL_LM), ("llama", Task.IMAGE_CLASSIFICATION), ("resnet", Task.SEQ2SEQ_LM)]
)
def test_task_that_the_architecture_cannot_do(model_folder: ModelFolder, name: str, task: Task) -> None:
    error = refusal(model_folder(name), task)
    assert (error.param, task.value in error.message) == ("task", True)


@pytest.mark.parametrize("name", pico.MAKERS)
def test_kinds_and_neuron_axes(model_folder: ModelFolder, name: str) -> None:
    specs = of(model_folder(name)).specs
    used = set()
    for spec in specs.values():
        end, kind, axis = next(row for row in EXPECTED[name] if spec.name.endswith(row[0]))
        used.add(end)
        assert (spec.name, spec.kind, spec.neuron_axis) == (spec.name, kind, axis)
        assert spec.is_matrix == (axis is not None)
    assert used == {row[0] for row in EXPECTED[name]}


@pytest.mark.parametrize("name", pico.MAKERS)
def test_neuron_axis_indexes_outputs(model_folder: ModelFolder, name: str) -> None:
    """Moving neuron r of a matrix moves output r of its module and no other."""
    backbone = Backbone.load(model_folder(name), device="cpu")
    matrices = [spec for spec in backbone.specs.values() if spec.is_matrix]
    assert matrices
    for spec in matrices:
        module = backbone.model.get_submodule(spec.parameter.rpartition(".")[0])
        neurons = spec.shape[spec.neuron_axis or 0]
        before = outputs(module, spec)
        backbone.tensor(spec.name).select(spec.neuron_axis or 0, neurons - 2).add_(1.0)
        moved = (outputs(module, spec) != before).flatten(1).any(1)
        assert before.shape[0] == neurons
        assert torch.nonzero(moved).flatten().tolist() == [neurons - 2], spec.name


def outputs(module: nn.Module, spec: TensorSpec) -> torch.Tensor:
    """[neurons, ...]: what the module gives for some input."""
    if spec.kind is Kind.EMBEDDING:
        return module(torch.arange(spec.shape[0]))
    if spec.kind is Kind.CONV:
        return module(torch.ones(1, spec.shape[1], *spec.shape[2:])).transpose(0, 1)
    width = spec.shape[1 - (spec.neuron_axis or 0)]
    return module(torch.linspace(0.1, 1, 2 * width).reshape(2, width)).T


@pytest.mark.parametrize("name", pico.MAKERS)
def test_every_stored_tensor_has_one_place(model_folder: ModelFolder, name: str) -> None:
    folder = model_folder(name)
    architecture, stored = of(folder), pico.weights(folder)
    assert set(architecture.specs) == set(stored)
    assert (architecture.unused, dict(architecture.copies)) == ((), {})
    assert max(Counter(spec.parameter for spec in architecture.specs.values()).values()) == 1
    for spec in architecture.specs.values():
        tensor = stored[spec.name]
        assert (spec.shape, spec.dtype, spec.numel) == (tensor.shape, DTYPES[tensor.dtype], tensor.numel())


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("llama", {"model.embed_tokens.weight": ("lm_head.weight",)}),
        ("gpt2", {"transformer.wte.weight": ("lm_head.weight",)}),
        ("t5", {"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")}),
        ("bert_classifier", {}),
        ("bert_encoder", {}),
        ("vit", {}),
        ("clip_vision", {}),
        ("resnet", {}),
    ],
)
def test_tied_groups(model_folder: ModelFolder, name: str, tied: dict[str, tuple[str, ...]]) -> None:
    assert {spec.name: spec.tied for spec in of(model_folder(name)).specs.values() if spec.tied} == tied


@pytest.mark.parametrize(
    ("name", "options", "vocabulary"),
    [
        ("llama", {}, {"model.embed_tokens.weight"}),
        ("llama", {"tied": False}, {"model.embed_tokens.weight", "lm_head.weight"}),
        ("gpt2", {}, {"transformer.wte.weight"}),
        ("t5", {}, {"shared.weight"}),
        ("bert_classifier", {}, {"bert.embeddings.word_embeddings.weight"}),
        ("bert_encoder", {}, {"embeddings.word_embeddings.weight"}),
        ("vit", {}, set()),
        ("clip_vision", {}, set()),
        ("resnet", {}, set()),
    ],
)
def test_vocabulary(model_folder: ModelFolder, name: str, options: dict[str, object], vocabulary: set[str]) -> None:
    specs = of(model_folder(name, **options)).specs.values()
    assert {spec.name for spec in specs if spec.is_vocabulary} == vocabulary


def test_second_stored_copy_of_a_tied_tensor_counts_once(tmp_path: Path, llama: Path) -> None:
    embedding = "model.embed_tokens.weight"
    folder = pico.rewrite(llama, tmp_path, lambda tensors: {**tensors, "lm_head.weight": tensors[embedding].clone()})
    architecture = of(folder)
    assert architecture.specs == of(llama).specs
    assert dict(architecture.copies) == {"lm_head.weight": embedding}
    assert architecture.unused == ()


def test_tied_tensor_stored_under_its_second_name(tmp_path: Path, llama: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"lm_head.weight": tensors.pop("model.embed_tokens.weight"), **tensors}

    spec = of(pico.rewrite(llama, tmp_path, rename)).specs["lm_head.weight"]
    assert (spec.parameter, spec.tied) == ("model.embed_tokens.weight", ("lm_head.weight",))


@pytest.mark.parametrize("name", pico.MAKERS)
def test_heads(model_folder: ModelFolder, name: str) -> None:
    heads = {
        "bert_classifier": {"classifier.weight", "classifier.bias"},
        "vit": {"classifier.weight", "classifier.bias"},
        "resnet": {"classifier.1.weight", "classifier.1.bias"},
        "neuript": {"classifier.weight", "classifier.bias"},
    }
    specs = of(model_folder(name)).specs.values()
    assert {spec.name for spec in specs if spec.is_head} == heads.get(name, set())


@pytest.mark.parametrize("name", ["bert_encoder", "clip_vision"])
def test_plain_encoders_are_base_models(model_folder: ModelFolder, name: str) -> None:
    assert of(model_folder(name)).is_base_model


@pytest.mark.parametrize(
    ("name", "prefix"), [("bert_classifier", "bert"), ("vit", "vit"), ("llama", "model"), ("gpt2", "transformer")]
)
def test_prefix_of_models_with_a_head(model_folder: ModelFolder, name: str, prefix: str) -> None:
    architecture = of(model_folder(name))
    assert (architecture.prefix, architecture.is_base_model) == (prefix, False)


def test_renamed_keys(model_folder: ModelFolder) -> None:
    specs = of(model_folder("vit")).specs
    stored = "vit.encoder.layer.1.attention.attention.query.weight"
    assert specs[stored].parameter == "vit.layers.1.attention.q_proj.weight"


def test_first_gpt2_layout(tmp_path: Path, model_folder: ModelFolder) -> None:
    """The hub's gpt2 has no `transformer.` prefix and still stores its attention masks."""

    def strip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return {**plain, "h.0.attn.bias": torch.ones(1, 1, 8, 8)}

    architecture = of(pico.rewrite(model_folder("gpt2"), tmp_path, strip))
    assert architecture.unused == ("h.0.attn.bias",)
    assert all(spec.parameter == f"transformer.{spec.name}" for spec in architecture.specs.values())


@pytest.mark.parametrize(
    ("quantization", "said"), [({"quant_method": "gptq", "bits": 4}, "gptq"), ({"bits": 4}, "unknown"), ("awq", "awq")]
)
def test_quantised_base_is_refused_by_name(tmp_path: Path, llama: Path, quantization: object, said: str) -> None:
    error = refusal(pico.reconfigure(llama, tmp_path / "small-gptq", quantization_config=quantization))
    assert "small-gptq" in error.message
    assert "quantised" in error.message
    assert said in error.message


def test_remote_code_is_refused(tmp_path: Path, llama: Path) -> None:
    code = {"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling.M"}
    folder = pico.reconfigure(llama, tmp_path, model_type="homemade", auto_map=code)
    ran = tmp_path / "ran"
    for file in ("configuration.py", "modeling.py"):
        (folder / file).write_text(f"open({str(ran)!r}, 'w')")
    error = refusal(folder)
    assert "homemade" in error.message
    assert "code" in error.message
    assert not ran.exists()


@pytest.mark.parametrize("model_type", ["homemade", None])
def test_unknown_architecture(tmp_path: Path, llama: Path, model_type: str | None) -> None:
    assert repr(model_type) in refusal(pico.reconfigure(llama, tmp_path, model_type=model_type)).message


@pytest.mark.parametrize("changes", [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"num_hidden_layers": None}])
def test_config_that_describes_no_model(tmp_path: Path, llama: Path, changes: dict[str, object]) -> None:
    refusal(pico.reconfigure(llama, tmp_path, **changes))


def test_config_that_describes_other_shapes_names_the_tensor(tmp_path: Path, llama: Path) -> None:
    error = refusal(pico.reconfigure(llama, tmp_path, vocab_size=80))
    assert error.param == "model.embed_tokens.weight"
    assert "[96, 64]" in error.message
    assert "[80, 64]" in error.message


def test_packed_experts_are_refused(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    assert "experts" in (refusal(tmp_path).param or "")
