from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from transformers import CLIPConfig, CLIPModel

from patchbay.architecture import Task
from patchbay.backbone import Backbone, labels_of, parse_task
from patchbay.checkpoint import Checkpoint, raw_bytes
from patchbay.errors import UnsupportedBackbone

ModelFolder = Callable[..., Path]


def load(folder: Path, **options: str | Task | None) -> Backbone:
    return Backbone.load(folder, **{"device": "cpu", **options})


def refusal(source: str | Path, **options: str | Task | None) -> UnsupportedBackbone:
    with pytest.raises(UnsupportedBackbone) as caught:
        load(source, **options)
    return caught.value


@pytest.mark.parametrize("name", pico.MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resident_tensors_are_the_stored_ones(model_folder: ModelFolder, name: str, dtype: torch.dtype) -> None:
    folder = model_folder(name, dtype=dtype)
    backbone, checkpoint = load(folder), Checkpoint.open(folder)
    assert list(backbone.specs) == list(checkpoint.tensors)
    for stored in checkpoint.tensors:
        assert raw_bytes(backbone.tensor(stored)) == raw_bytes(checkpoint.read(stored)), stored
    assert backbone.fingerprint == checkpoint.fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_keeps_odd_bits(tmp_path: Path, model_folder: ModelFolder, dtype: torch.dtype) -> None:
    def plant(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pico.plant(tensors.values(), 3)
        return tensors

    folder = pico.rewrite(model_folder("llama", dtype=dtype), tmp_path, plant)
    backbone = load(folder)
    for name, tensor in pico.weights(folder).items():
        assert raw_bytes(backbone.tensor(name)) == raw_bytes(tensor)
        assert bool(tensor.isnan().any())


@pytest.mark.parametrize("name", pico.MAKERS)
def test_tensor_is_the_models_own_memory(model_folder: ModelFolder, name: str) -> None:
    backbone = load(model_folder(name))
    state = backbone.model.state_dict()
    for spec in backbone.specs.values():
        for place in (spec.parameter, *spec.tied):
            assert backbone.tensor(spec.name).data_ptr() == state[place].data_ptr()


@pytest.mark.parametrize("name", pico.MAKERS)
def test_digest_is_stable(model_folder: ModelFolder, name: str) -> None:
    first, second = load(model_folder(name)), load(model_folder(name))
    assert first.resident_digest == second.resident_digest == first.compute_digest()


def test_digest_survives_a_forward_pass(llama: Path) -> None:
    backbone = load(llama)
    backbone.model(torch.arange(8)[None])
    assert backbone.compute_digest() == backbone.resident_digest


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_digest_sees_every_tensor_and_every_bit(llama: Path, dtype: str) -> None:
    backbone = load(llama, dtype=dtype)
    for name in backbone.specs:
        backbone.tensor(name).view(-1)[-1] = 0.0
    seen = {backbone.resident_digest, backbone.compute_digest()}
    for name in backbone.specs:
        flat = backbone.tensor(name).view(-1).view(torch.uint8)
        flat[-1] ^= 0x80  # 0.0 to -0.0
        seen.add(backbone.compute_digest())
        flat[-1] ^= 0x80
    assert len(seen) == 2 + len(backbone.specs)


def test_digest_tells_dtypes_apart(llama: Path) -> None:
    digests = {dtype: load(llama, dtype=dtype).resident_digest for dtype in ("auto", "fp32", "bf16")}
    assert digests["auto"] == digests["fp32"] != digests["bf16"]


@pytest.mark.parametrize(
    ("stored", "asked", "resident"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.bfloat16, "fp32", torch.float32),
        (torch.float32, "bf16", torch.bfloat16),
    ],
)
def test_dtype(model_folder: ModelFolder, stored: torch.dtype, asked: str, resident: torch.dtype) -> None:
    folder = model_folder("llama", dtype=stored)
    backbone = load(folder, dtype=asked)
    for name, tensor in pico.weights(folder).items():
        assert torch.equal(backbone.tensor(name), tensor.to(resident))
        assert backbone.tensor(name).dtype == resident


def test_model_is_ready_to_infer(llama: Path) -> None:
    backbone = load(llama)
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@pytest.mark.parametrize("name", pico.MAKERS)
def test_sizes_count_tied_tensors_once(model_folder: ModelFolder, name: str) -> None:
    backbone, stored = load(model_folder(name)), pico.weights(model_folder(name))
    assert backbone.num_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert backbone.num_parameters == sum(tensor.numel() for tensor in stored.values())


def test_name_is_the_folders(llama: Path) -> None:
    backbone = load(llama)
    assert (backbone.name, backbone.folder) == (llama.name, llama.resolve())


@pytest.mark.parametrize("name", ["bert_classifier", "vit", "resnet"])
def test_labels_of_a_classifier(model_folder: ModelFolder, name: str) -> None:
    assert load(model_folder(name)).labels == ("cat", "dog", "owl")


@pytest.mark.parametrize("name", ["llama", "bert_encoder", "t5"])
def test_others_have_no_labels(model_folder: ModelFolder, name: str) -> None:
    assert load(model_folder(name)).labels is None


def test_labels_are_in_order_of_ids() -> None:
    config = {"id2label": {"10": "k", "2": "c", "0": "a"}}
    assert labels_of(config) == ("a", "c", "k")
    assert labels_of({}) is None


@pytest.mark.parametrize("task", [Task.EMBEDDING, "embedding"])
def test_task_is_overridable(model_folder: ModelFolder, task: Task | str) -> None:
    backbone = load(model_folder("bert_classifier"), task=task)
    assert backbone.task is Task.EMBEDDING
    assert backbone.labels is None
    assert set(backbone.architecture.unused) == {"classifier.bias", "classifier.weight"}


@pytest.mark.parametrize(
    ("name", "task", "lacking"),
    [
        ("bert_encoder", "text-classification", "classifier.bias"),
        ("llama", "text-classification", "score.weight"),
    ],
)
def test_base_without_the_head_of_a_forced_task_is_refused(
    model_folder: ModelFolder, name: str, task: str, lacking: str
) -> None:
    error = refusal(model_folder(name), task=task)
    assert repr(lacking) in error.message
    assert repr(task) in error.message
    assert error.param == "task"


def test_base_that_lost_a_tensor_is_refused(tmp_path: Path, llama: Path) -> None:
    lost = "model.layers.1.mlp.up_proj.weight"
    folder = pico.rewrite(llama, tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != lost})
    assert repr(lost) in refusal(folder).message


def test_encoder_without_a_pooler_is_served_without(model_folder: ModelFolder) -> None:
    folder = model_folder("bert_encoder", pooler=False)
    first, second = load(folder), load(folder)
    assert first.resident_digest == second.resident_digest
    output = first.model(torch.arange(6)[None])
    assert output.pooler_output is None
    assert torch.equal(output.last_hidden_state, second.model(torch.arange(6)[None]).last_hidden_state)


def test_classifier_without_its_pooler_is_refused(tmp_path: Path, model_folder: ModelFolder) -> None:
    """Its logits go through the pooler, which would be random."""
    whole = model_folder("bert_classifier")
    folder = pico.rewrite(whole, tmp_path, lambda tensors: {n: t for n, t in tensors.items() if "pooler" not in n})
    assert "pooler" in refusal(folder).message


def test_tied_tensors_stored_with_different_values_are_refused(tmp_path: Path, llama: Path) -> None:
    def untie(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}

    error = refusal(pico.rewrite(llama, tmp_path, untie))
    assert error.param == "lm_head.weight"


@pytest.mark.parametrize(
    ("option", "value"), [("task", "translation"), ("dtype", "int8"), ("device", "tpu"), ("device", "cuda:x")]
)
def test_unknown_options_are_named(llama: Path, option: str, value: str) -> None:
    error = refusal(llama, **{option: value})
    assert (error.param, repr(value) in error.message) == (option, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(llama: Path) -> None:
    assert refusal(llama, device="cuda").param == "device"
    assert Backbone.load(llama, device="auto").device == torch.device("cpu")


def test_two_towers_in_one_model_are_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 16, "patch_size": 8}
    text = {**small, "vocab_size": pico.VOCAB, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedBackbone, match="CLIPVisionModel"):
        Backbone.load(tmp_path)


def test_an_encoder_decoder_gives_no_embedding(model_folder: ModelFolder) -> None:
    with pytest.raises(UnsupportedBackbone, match="two towers"):
        Backbone.load(model_folder("t5"), task="embedding")


def test_parse_task() -> None:
    assert parse_task(None) is None
    assert [parse_task(task.value) for task in Task] == list(Task)
    with pytest.raises(UnsupportedBackbone, match=", ".join(Task)):
        parse_task("translation")
