from __future__ import annotations

import json
import math
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests import pico
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from patchbay.adapters import AdaptedCheckpoint, open_finetuned
from patchbay.checkpoint import Checkpoint
from patchbay.compress.reconstruct import reconstruct
from patchbay.errors import FinetuneMismatch, PatchbayError, UnsupportedBackbone
from patchbay.task_vector import TaskVector

ModelFolder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
AUTO = {
    "llama": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
    "bert_classifier": AutoModelForSequenceClassification,
    "bert_encoder": AutoModel,
    "t5": AutoModelForSeq2SeqLM,
    "vit": AutoModelForImageClassification,
    "resnet": AutoModelForImageClassification,
}
LLAMA: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
BERT: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "intermediate.dense"]}
GPT2: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}

# name -> (base, its options, the adapter's config)
CASES: dict[str, tuple[str, dict[str, Any], PeftConfig]] = {
    "plain": ("llama", {}, LoraConfig(**LLAMA)),
    "untied": ("llama", {"tied": False}, LoraConfig(r=3, target_modules=["q_proj", "lm_head"])),
    "all-linear": ("llama", {}, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")),
    "rslora": ("llama", {}, LoraConfig(**LLAMA, use_rslora=True)),
    "patterns": (
        "llama",
        {},
        LoraConfig(
            **LLAMA,
            rank_pattern={"layers.1.self_attn.q_proj": 7, r"layers\.\d+\.mlp\.down_proj": 2},
            alpha_pattern={"^model.layers.0.self_attn.q_proj": 3, "down_proj": 11},
        ),
    ),
    "rslora-patterns": ("llama", {}, LoraConfig(**LLAMA, use_rslora=True, rank_pattern={"q_proj": 9})),
    "embedding": ("llama", {"tied": False}, LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"])),
    "embedding-bert": ("bert_classifier", {}, LoraConfig(r=4, target_modules=["word_embeddings"])),
    "saved": ("llama", {"tied": False}, LoraConfig(**LLAMA, modules_to_save=["lm_head", "norm"])),
    "dora": ("llama", {}, LoraConfig(**LLAMA, use_dora=True)),
    "dora-embedding": ("llama", {"tied": False}, LoraConfig(r=4, target_modules=["embed_tokens"], use_dora=True)),
    "gpt2": ("gpt2", {}, LoraConfig(**GPT2)),
    "gpt2-dora": ("gpt2", {}, LoraConfig(**GPT2, use_dora=True)),
    "gpt2-bias": ("gpt2", {}, LoraConfig(**GPT2, bias="lora_only")),
    "gpt2-layout-unsaid": ("gpt2", {}, LoraConfig(**{**GPT2, "fan_in_fan_out": False})),
    "bert": ("bert_classifier", {}, LoraConfig(**BERT)),
    "bert-head": ("bert_classifier", {}, LoraConfig(**BERT, task_type="SEQ_CLS")),
    "bert-bias-all": ("bert_classifier", {}, LoraConfig(**BERT, bias="all", task_type="SEQ_CLS")),
    "bert-bias-lora": ("bert_classifier", {}, LoraConfig(**BERT, bias="lora_only")),
    "bert-bias-of-b": ("bert_classifier", {}, LoraConfig(**BERT, lora_bias=True)),
    "t5": ("t5", {}, LoraConfig(r=4, target_modules=["q", "v", "wo"], task_type="SEQ_2_SEQ_LM")),
    "t5-dora": ("t5", {}, LoraConfig(r=4, target_modules=["q", "v", "wo"], use_dora=True)),
    "vit-conv": ("vit", {}, LoraConfig(r=4, target_modules=["projection", "q_proj"], modules_to_save=["classifier"])),
    "vit-conv-dora": ("vit", {}, LoraConfig(r=4, target_modules=["projection"], use_dora=True)),
    "resnet": ("resnet", {}, LoraConfig(r=4, target_modules=["convolution"], modules_to_save=["normalization"])),
    "ia3-llama": ("llama", {}, IA3Config(task_type="CAUSAL_LM")),
    "ia3-gpt2": ("gpt2", {}, IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=True)),
    "ia3-t5": ("t5", {}, IA3Config(task_type="SEQ_2_SEQ_LM")),
    "ia3-bert": (
        "bert_classifier",
        {},
        IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"], task_type="SEQ_CLS"),
    ),
}


def randomise(model: PreTrainedModel) -> None:
    """PEFT starts adapters where they do nothing."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            scales = "magnitude" in name or "ia3_l" in name
            parameter.data = parameter.data * (1 + noise) if scales else parameter.data + noise.to(parameter.dtype)


def train(base: Path, out: Path, auto: Any, config: PeftConfig, **options: Any) -> Tensors:
    """Saves a random adapter of `base` to `out`; gives the weights into which PEFT merges it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of ties and layouts, and uses what transformers deprecates
        model = get_peft_model(auto.from_pretrained(base, **options), config)
        randomise(model)
        model.save_pretrained(out)
        merged = model.merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in merged.state_dict().items()}


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    worst = float((found.double() - expected.double()).abs().max())
    assert worst <= 1e-6 * float(expected.abs().max()), worst


@pytest.fixture
def llama_adapter(tmp_path: Path, llama: Path) -> Path:
    train(llama, tmp_path / "adapter", AutoModelForCausalLM, LoraConfig(**LLAMA, task_type="CAUSAL_LM"))
    return tmp_path / "adapter"


def edit_config(adapter: Path, **changes: object) -> Path:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, **changes}))
    return adapter


def edit_weights(adapter: Path, change: Callable[[Tensors], Tensors]) -> Path:
    save_file(change(load_file(adapter / WEIGHTS)), adapter / WEIGHTS)
    return adapter


def refusal(base: Path, adapter: Path) -> PatchbayError:
    with pytest.raises((FinetuneMismatch, UnsupportedBackbone)) as caught:
        TaskVector.from_models(base, adapter)
    return caught.value


@pytest.mark.parametrize("case", CASES)
def test_merges_as_peft_does(model_folder: ModelFolder, tmp_path: Path, case: str) -> None:
    maker, options, config = CASES[case]
    base = model_folder(maker, **options)
    merged = train(base, tmp_path, AUTO[maker], config)
    vector, before = TaskVector.from_models(base, tmp_path), pico.weights(base)
    assert (dict(vector.added), vector.missing) == ({}, ())
    moved = 0
    for name, spec in vector.specs.items():
        assert_close(vector.apply(name, before[name]), merged[spec.parameter])
        moved += not torch.equal(before[name], merged[spec.parameter])
    assert len(vector.changed) + len(vector.copied) == moved > 0
    for name in vector:
        pair = vector.pair(name)
        assert pair is not None
        assert torch.equal(pair[0], before[name])
        assert torch.equal(pair[1], vector.apply(name, before[name]))


def test_difference_is_not_rounded_to_the_base(model_folder: ModelFolder, tmp_path: Path) -> None:
    """tau = s B A to the last bit of fp32; only the pair is in bf16."""
    base = model_folder("llama", dtype=torch.bfloat16)
    train(base, tmp_path, AutoModelForCausalLM, LoraConfig(**LLAMA), dtype=torch.bfloat16)
    adapter, vector = load_file(tmp_path / WEIGHTS), TaskVector.from_models(base, tmp_path)
    assert len(vector.changed) == 4
    for name in vector:
        key = f"base_model.model.{name.removesuffix('.weight')}.lora"
        tau = 1.5 * adapter[f"{key}_B.weight"].double() @ adapter[f"{key}_A.weight"].double()
        assert torch.equal(vector[name], tau.float())
        pair = vector.pair(name)
        assert pair is not None
        assert torch.equal(pair[1], (pair[0].float() + tau.float()).bfloat16())


def test_adapter_that_does_nothing_has_an_empty_vector(tmp_path: Path, llama: Path, llama_adapter: Path) -> None:
    edit_weights(llama_adapter, lambda tensors: {n: torch.zeros_like(t) for n, t in tensors.items()})
    assert TaskVector.from_models(llama, llama_adapter).changed == ()


def test_open_finetuned(llama: Path, llama_tuned: Path, llama_adapter: Path) -> None:
    """What `compress` counts: the adapter's bytes, the base's parameters."""
    adapted, base = open_finetuned(llama_adapter, llama), Checkpoint.open(llama)
    assert isinstance(adapted, AdaptedCheckpoint)
    assert adapted.num_bytes == (llama_adapter / WEIGHTS).stat().st_size
    assert {n: (t.shape, t.dtype) for n, t in adapted.tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in base.tensors.items()
    }
    assert adapted.config == base.config
    untouched = "model.norm.weight"
    assert torch.equal(adapted.read(untouched), base.read(untouched))
    assert not adapted.difference(untouched).any()
    assert TaskVector.from_models(base, adapted).changed == TaskVector.from_models(llama, llama_adapter).changed
    assert open_finetuned(llama_tuned, llama).tensors == Checkpoint.open(llama_tuned).tensors


def test_compressed_adapter_is_the_merged_model(llama: Path, llama_adapter: Path, tmp_path: Path) -> None:
    file = pico.delta_file(llama, llama_adapter, tmp_path / "delta", density=1.0, values="fp32")
    reconstruct(file, llama, tmp_path / "whole")
    merged, adapted = pico.weights(tmp_path / "whole"), open_finetuned(llama_adapter, llama)
    assert merged.keys() == adapted.tensors.keys()
    assert all(torch.equal(merged[name], adapted.read(name)) for name in merged)


def test_only_adapted_tensors_are_read(llama: Path, llama_adapter: Path) -> None:
    seen: list[str] = []
    vector = TaskVector.from_models(llama, llama_adapter, lambda done, total, name: seen.append(name))
    assert sorted(seen) == sorted(vector.changed)
    assert len(seen) == 4


def test_identity(llama: Path, llama_adapter: Path) -> None:
    identity = TaskVector.from_models(llama, llama_adapter).identity
    assert (identity.base, identity.finetuned) == (llama.name, "adapter")
    assert identity.base_fingerprint == Checkpoint.open(llama).fingerprint
    assert (dict(identity.config), identity.config_removed, identity.prefix) == ({}, (), "")
    assert (identity.labels, identity.tokens) == (None, ())


def test_base_that_the_config_names_is_not_asked(llama: Path, llama_adapter: Path) -> None:
    expected = TaskVector.from_models(llama, llama_adapter).changed
    edit_config(llama_adapter, base_model_name_or_path="/no/such/model", revision="gone")
    assert TaskVector.from_models(llama, llama_adapter).changed == expected


def classifier_adapter(encoder: Path, out: Path, labels: int, **options: Any) -> Tensors:
    config = LoraConfig(**BERT, task_type="SEQ_CLS", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(encoder, out, AutoModelForSequenceClassification, config, num_labels=labels)


def test_head_on_a_plain_encoder(model_folder: ModelFolder, tmp_path: Path) -> None:
    encoder = model_folder("bert_encoder")
    merged = classifier_adapter(encoder, tmp_path, 5)
    vector, before = TaskVector.from_models(encoder, tmp_path), pico.weights(encoder)
    assert set(vector.added) == {"classifier.weight", "classifier.bias"}
    for name, tensor in vector.added.items():
        assert torch.equal(tensor, merged[name])
    for name in vector:
        assert_close(vector.apply(name, before[name]), merged[f"bert.{name}"])
    assert len(vector.changed) == 4
    assert (vector.identity.prefix, vector.missing) == ("bert.", ())
    assert vector.identity.labels == tuple(f"LABEL_{index}" for index in range(5))
    assert vector.identity.config["architectures"] == ["BertForSequenceClassification"]


def test_head_with_the_classes_of_the_base_is_an_ordinary_matrix(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("bert_classifier")
    classifier_adapter(base, tmp_path, 3)
    vector = TaskVector.from_models(base, tmp_path)
    assert {"classifier.weight", "classifier.bias"} < set(vector)
    assert vector.identity.labels == pico.LABELS


def test_head_with_other_classes_than_the_base(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("bert_classifier")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = train(
            base,
            tmp_path,
            AutoModelForSequenceClassification,
            LoraConfig(**BERT, task_type="SEQ_CLS"),
            num_labels=2,
            ignore_mismatched_sizes=True,
            id2label={0: "no", 1: "yes"},
        )
    vector = TaskVector.from_models(base, tmp_path)
    assert set(vector.missing) == set(vector.added) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(vector.added["classifier.weight"], merged["classifier.weight"])
    assert vector.identity.labels == ("LABEL_0", "LABEL_1")


def test_image_head_is_known_by_the_trained_class(tmp_path: Path, model_folder: ModelFolder) -> None:
    whole = model_folder("vit")
    encoder = tmp_path / "encoder"
    AutoModel.from_pretrained(whole, add_pooling_layer=False).save_pretrained(encoder)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["classifier"])
    merged = train(encoder, tmp_path / "adapter", AutoModelForImageClassification, config, num_labels=4)
    vector = TaskVector.from_models(encoder, tmp_path / "adapter")
    assert set(vector.added) == {"classifier.weight", "classifier.bias"}
    before = pico.weights(encoder)
    assert len(vector.changed) == 2
    for name in vector:
        assert_close(vector.apply(name, before[name]), merged[f"vit.{vector.specs[name].parameter}"])


def test_head_that_was_not_saved_is_lost(model_folder: ModelFolder, tmp_path: Path) -> None:
    encoder = model_folder("bert_encoder")
    classifier_adapter(encoder, tmp_path, 2)
    edit_weights(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if "classifier" not in n})
    error = refusal(encoder, tmp_path)
    assert error.param == "classifier.weight"
    assert "modules_to_save" in error.message


@pytest.mark.parametrize("extra", ["trained", "untied"])
def test_larger_vocabulary(model_folder: ModelFolder, tmp_path: Path, extra: str) -> None:
    """PEFT saves the embeddings beside the adapter where they were resized before."""
    base = model_folder("llama", tied=extra == "trained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(pico.VOCAB + 5)
        peft = get_peft_model(model, LoraConfig(**LLAMA))
        randomise(peft)
        peft.save_pretrained(tmp_path, save_embedding_layers=True)
        merged = peft.merge_and_unload().state_dict()
    vector, before = TaskVector.from_models(base, tmp_path), pico.weights(base)
    names = {"model.embed_tokens.weight"} | ({"lm_head.weight"} if extra == "untied" else set())
    assert set(vector.appended) == names
    for name, rows in vector.appended.items():
        assert torch.equal(rows, merged[name][pico.VOCAB :])
        assert_close(vector.apply(name, before[name]), merged[name][: pico.VOCAB])
    assert vector.identity.config == {"vocab_size": pico.VOCAB + 5}


def test_embedding_adapter_of_a_larger_vocabulary(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("llama", tied=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(pico.VOCAB + 2)
        peft = get_peft_model(model, LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"], use_dora=True))
        randomise(peft)
        peft.save_pretrained(tmp_path)
        merged = peft.merge_and_unload().state_dict()
    vector, before = TaskVector.from_models(base, tmp_path), pico.weights(base)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert_close(vector.apply(name, before[name]), merged[name][: pico.VOCAB])
        assert_close(vector.appended[name], merged[name][pico.VOCAB :])


@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"]])
def test_one_use_of_a_tied_tensor_cannot_change_alone(tmp_path: Path, llama: Path, modules: list[str]) -> None:
    for number, config in enumerate(
        [LoraConfig(r=2, target_modules=modules), LoraConfig(**LLAMA, modules_to_save=modules)]
    ):
        train(llama, tmp_path / str(number), AutoModelForCausalLM, config)
        error = refusal(llama, tmp_path / str(number))
        assert "tie_word_embeddings" in error.message
        assert modules[0] in (error.param or "")


def test_tied_tensor_that_is_replaced_everywhere(tmp_path: Path, llama: Path) -> None:
    config = LoraConfig(**LLAMA, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    merged = train(llama, tmp_path, AutoModelForCausalLM, config)
    assert {"base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"} < set(
        load_file(tmp_path / WEIGHTS)
    )
    vector, name = TaskVector.from_models(llama, tmp_path), "model.embed_tokens.weight"
    assert_close(vector.apply(name, pico.weights(llama)[name]), merged[name])
    assert name in vector


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("peft_type", "LOHA", "LoRA"),
        ("peft_type", None, "LoRA"),
        ("layer_replication", [[0, 2], [1, 2]], "repeats layers"),
        ("megatron_config", {"a": 1}, "parallel"),
        ("target_parameters", ["experts.down_proj"], "packed"),
        ("trainable_token_indices", [1, 2], "rows"),
        ("alora_invocation_tokens", [1], "some tokens"),
        ("use_qalora", True, "quantised"),
        ("loftq_config", {"loftq_bits": 4}, "base weights"),
        ("eva_config", {"rho": 2.0}, "base weights"),
        ("corda_config", {"cache_file": None}, "base weights"),
        ("lora_ga_config", {"scale": "unit"}, "base weights"),
        ("arrow_config", {"top_k": 3}, "chooses"),
        ("kasa_config", {"beta": 1.0}, "not known"),
        ("invented_by_a_later_release", 1, "not known"),
        *[("init_lora_weights", init, "base weights") for init in ("pissa", "pissa_niter_4", "olora", "loftq", "eva")],
        ("task_type", "TOKEN_CLS", "heads"),
        ("bias", "some", "none"),
        ("r", 0, "greater"),
        ("r", "4", "integer"),
        ("r", True, "integer"),
        ("lora_alpha", math.nan, "finite"),
        ("use_rslora", "yes", "boolean"),
        ("rank_pattern", [4], "dict"),
        ("rank_pattern", {"(a+)+": 4}, "repetitions"),
        ("alpha_pattern", {"a*b*c*d*": 4}, "repetitions"),
        ("alpha_pattern", {"(a|a)(a|a)(a|a)(a|a)": 4}, "repetitions"),
        ("alpha_pattern", {"(": 4}, "unterminated"),
    ],
)
def test_config_that_is_not_understood_is_refused_by_name(
    llama: Path, llama_adapter: Path, key: str, value: object, reason: str
) -> None:
    error = refusal(llama, edit_config(llama_adapter, **{key: value}))
    assert isinstance(error, FinetuneMismatch)
    assert error.param == key
    assert key in error.message
    assert reason in error.message


def test_unknown_options_that_are_off_are_accepted(llama: Path, llama_adapter: Path) -> None:
    edit_config(llama_adapter, later=None, other=False, more={}, most=[], init_lora_weights="gaussian")
    assert TaskVector.from_models(llama, llama_adapter).changed


def test_rank_that_the_config_does_not_say(llama: Path, llama_adapter: Path) -> None:
    error = refusal(llama, edit_config(llama_adapter, r=8))
    assert "rank 4" in error.message
    assert error.param == "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize("base", ["gpt2", "bert_classifier", "t5"])
def test_adapter_of_another_base_names_the_first_tensor(
    model_folder: ModelFolder, llama_adapter: Path, base: str
) -> None:
    error = refusal(model_folder(base), llama_adapter)
    assert error.param == "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    assert (error.param or "!") in error.message


def test_adapter_of_a_deeper_base(model_folder: ModelFolder, llama_adapter: Path) -> None:
    error = refusal(model_folder("llama", layers=1), llama_adapter)
    assert error.param == "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora"


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {n: x for n, x in t.items() if n != f"{FIRST}_A.weight"},
        lambda t: {n: x for n, x in t.items() if n != f"{FIRST}_B.weight"},
        lambda t: {**t, f"{FIRST}_A.weight": t[f"{FIRST}_A.weight"][:, 1:].contiguous()},
        lambda t: {**t, f"{FIRST}_B.weight": t[f"{FIRST}_B.weight"][1:].contiguous()},
        lambda t: {**t, f"{FIRST}_B.weight": t[f"{FIRST}_B.weight"][:, 1:].contiguous()},
        lambda t: {**t, f"{FIRST}_A.weight": t[f"{FIRST}_A.weight"][:0], f"{FIRST}_B.weight": torch.zeros(64, 0)},
        lambda t: {**t, f"{FIRST}_A.weight": t[f"{FIRST}_A.weight"].int()},
        lambda t: {**t, f"{FIRST}_A.weight": torch.tensor(1.0)},
        lambda t: {**t, f"{FIRST}_magnitude_vector": torch.ones(3)},
        lambda t: {**t, f"{FIRST}_B.bias": torch.ones(64)},
        lambda t: {**t, "base_model.model.model.norm.weight": torch.ones(3)},
        lambda t: {**t, "base_model.model.model.layers.0.mlp.up_proj.weight": torch.ones(2, 64)},
        lambda t: {**t, "base_model.model.model.norm.lora_A.weight": torch.ones(4, 64)},
        lambda t: {**t, "base_model.model.model.norm.ia3_l": torch.ones(3, 1)},
        lambda t: {**t, "model.layers.0.mlp.down_proj.lora_A.weight": t[f"{FIRST}_A.weight"].clone()},
        lambda t: {**t, "lora_A.weight": torch.ones(4, 4)},
        lambda t: {**t, "": torch.ones(4, 4)},
        lambda t: {**t, f"{FIRST}_A.default.weight": torch.ones(4, 4)},
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    llama: Path, llama_adapter: Path, change: Callable[[Tensors], Tensors]
) -> None:
    error = refusal(llama, edit_weights(llama_adapter, change))
    assert isinstance(error, FinetuneMismatch)
    assert error.param is not None


def test_two_names_of_one_tensor(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Of a plain encoder, with and without the prefix that it has in a larger model."""
    base = model_folder("bert_encoder")
    train(base, tmp_path, AutoModel, LoraConfig(**BERT))
    assert TaskVector.from_models(base, tmp_path).changed
    first = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"

    def again(tensors: Tensors) -> Tensors:
        more = {n.replace(".encoder.", ".bert.encoder."): t.clone() for n, t in tensors.items()}
        return {**tensors, **{n: t for n, t in more.items() if "layer.0.attention" in n}}

    error = refusal(base, edit_weights(tmp_path, again))
    assert error.param in (first, first.replace(".encoder.", ".bert.encoder."))


def test_bias_of_an_adapter_that_is_not_there(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("bert_classifier")
    train(base, tmp_path, AUTO["bert_classifier"], LoraConfig(**BERT, lora_bias=True))
    module = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B"
    edit_weights(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if ".weight" not in n or "query" not in n})
    error = refusal(base, tmp_path)
    assert error.param == f"{module}.bias"
    assert "incomplete" in error.message


def test_bias_that_is_replaced_and_scaled(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("bert_classifier")
    train(base, tmp_path, AUTO["bert_classifier"], IA3Config(target_modules=["key"], feedforward_modules=[]))
    name = "bert.encoder.layer.1.attention.self.key"
    bias = torch.linspace(-1, 1, pico.HIDDEN)
    edit_weights(tmp_path, lambda tensors: {**tensors, f"base_model.model.{name}.base_layer.bias": bias})
    scale = load_file(tmp_path / WEIGHTS)[f"base_model.model.{name}.ia3_l"].flatten()
    vector = TaskVector.from_models(base, tmp_path)
    assert_close(vector.apply(f"{name}.bias", pico.weights(base)[f"{name}.bias"]), bias * scale)


def test_scaled_convolution_is_refused(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("vit")
    train(base, tmp_path, AUTO["vit"], IA3Config(target_modules=["projection"], feedforward_modules=[]))
    error = refusal(base, tmp_path)
    assert "ia3_l [1, 64, 1, 1]" in error.message


def test_pickled_adapter_is_refused_unread(llama: Path, llama_adapter: Path) -> None:
    (llama_adapter / WEIGHTS).unlink()
    assert refusal(llama, llama_adapter).param == WEIGHTS
    (llama_adapter / "adapter_model.bin").write_bytes(pickle.dumps({}))
    assert "adapter_model.bin" in refusal(llama, llama_adapter).message


def test_folder_that_is_both_a_model_and_an_adapter(llama: Path, llama_adapter: Path) -> None:
    shutil.copytree(llama, llama_adapter, dirs_exist_ok=True)
    assert "both" in refusal(llama, llama_adapter).message


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_damaged_config(llama: Path, llama_adapter: Path, text: str) -> None:
    (llama_adapter / CONFIG).write_text(text)
    assert CONFIG in refusal(llama, llama_adapter).message


def test_damaged_weights(llama: Path, llama_adapter: Path) -> None:
    whole = (llama_adapter / WEIGHTS).read_bytes()
    (llama_adapter / WEIGHTS).write_bytes(whole[:100])
    assert "damaged" in refusal(llama, llama_adapter).message
