from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests import pico
from transformers import AutoTokenizer

from patchbay.backbone import Backbone
from patchbay.delta.manifest import Token
from patchbay.errors import InputError, InvalidRecipe
from patchbay.execute.patch import Patcher
from patchbay.models.inputs import ArrayInput, ImageInput, Inputs, parts, vocabulary_of

Load = Callable[..., Backbone]
PIXELS = np.zeros((3, pico.IMAGE, pico.IMAGE), np.float32).tolist()


def test_texts_are_padded_to_the_longest(backbone: Load) -> None:
    base = backbone("bert_classifier")
    batch = Inputs(base).batch(["the cat", "a dog runs and sees"])
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    expected = tokenizer(["the cat", "a dog runs and sees"], padding=True, return_tensors="pt")
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert batch["attention_mask"].sum(1).tolist() == [2, 5]


def test_texts_are_cut_at_what_the_model_can_read(backbone: Load) -> None:
    base = backbone("bert_classifier")
    batch = Inputs(base).batch(["the " * 1000, "cat"])
    assert batch["input_ids"].shape == (2, base.architecture.config.max_position_embeddings)


def test_a_tokenizer_without_padding_gets_one(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = pico.rewrite(model_folder("gpt2"), tmp_path / "gpt2", lambda tensors: tensors)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    batch = Inputs(Backbone.load(folder)).batch(["the cat", "a dog runs"])
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_added_tokens_keep_their_ids(backbone: Load) -> None:
    inputs = Inputs(backbone("bert_classifier"))
    assert inputs.tokenizer is not None
    next_id = len(inputs.tokenizer)
    tokens = [
        Token(id=next_id + 1, content="<two>", special=False),
        Token(id=next_id, content="<one>", special=True),
    ]
    batch = inputs.batch(["the <two> cat <one>"], tokens)
    assert next_id + 1 in batch["input_ids"][0] and next_id in batch["input_ids"][0]
    extended = inputs.tokenizer_with(tokens)
    assert extended.decode([next_id], skip_special_tokens=True) == ""
    assert extended.decode([next_id + 1], skip_special_tokens=True) == "<two>"
    # The base's own tokenizer has not learned them.
    assert len(inputs.tokenizer) == next_id
    assert next_id not in inputs.batch(["the <two> cat <one>"])["input_ids"][0]
    assert inputs.tokenizer_with([]) is inputs.tokenizer


def test_added_tokens_that_contradict_each_other(backbone: Load) -> None:
    inputs = Inputs(backbone("bert_classifier"))
    assert inputs.tokenizer is not None
    next_id = len(inputs.tokenizer)
    two = [Token(id=next_id, content=text, special=False) for text in ("<one>", "<uno>")]
    with pytest.raises(InvalidRecipe, match=f"cannot have its id {next_id}"):
        inputs.tokenizer_with(two)
    with pytest.raises(InvalidRecipe, match="cannot have its id 90"):
        inputs.tokenizer_with([Token(id=90, content="<far>", special=False)])


def test_a_tokenizer_that_knows_more_than_the_model(backbone: Load) -> None:
    """Deltas come from outside: tokens beyond the embedding would be read from beyond its memory."""
    base = backbone("bert_classifier")
    inputs = Inputs(base)
    assert inputs.tokenizer is not None and vocabulary_of(base) == pico.VOCAB
    tokens = [Token(id=number, content=f"<{number}>", special=False) for number in range(len(inputs.tokenizer), 97)]
    inputs.batch(["<95>"], tokens)
    with pytest.raises(InputError, match="outside the model's vocabulary of 96"):
        inputs.batch(["<96>"], tokens)


def test_tokens_of_a_larger_vocabulary(backbone: Load) -> None:
    base = backbone("bert_classifier")
    inputs = Inputs(base)
    assert inputs.tokenizer is not None
    tokens = [Token(id=number, content=f"<{number}>", special=False) for number in range(len(inputs.tokenizer), 99)]
    assert 97 in inputs.batch(["the <97>"], tokens, 2)["input_ids"][0]
    with pytest.raises(InputError, match="outside the model's vocabulary of 98"):
        inputs.batch(["<98>"], tokens, 2)


def test_what_another_request_appends_is_not_this_ones(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A batch is made while the model may be patched for somebody else."""
    folder = model_folder("bert_encoder")
    base = Backbone.load(folder)
    inputs = Inputs(base)
    assert inputs.tokenizer is not None
    tokens = [Token(id=number, content=f"<{number}>", special=False) for number in range(len(inputs.tokenizer), 98)]
    tuned = pico.grow(folder, tmp_path, pico.VOCAB + 2)
    delta = pico.delta(folder, tuned, tmp_path / "delta")
    with Patcher(base).patched(pico.plan([delta], [1.0]), [delta]):
        assert vocabulary_of(base) == pico.VOCAB + 2
        with pytest.raises(InputError, match="outside the model's vocabulary of 96"):
            inputs.batch(["<97>"], tokens)
        assert 97 in inputs.batch(["<97>"], tokens, 2)["input_ids"][0]
    assert vocabulary_of(base) == pico.VOCAB


def test_arrays_are_taken_as_they_are(backbone: Load) -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, pico.IMAGE, pico.IMAGE)).astype(np.float32)
    batch = Inputs(backbone("vit")).batch([ArrayInput(value.tolist()) for value in values])
    assert batch.keys() == {"pixel_values"}
    assert (batch["pixel_values"].numpy() == values).all()


def test_arrays_get_the_models_dtype(backbone: Load) -> None:
    batch = Inputs(backbone("vit", dtype=torch.bfloat16)).batch([ArrayInput(PIXELS)])
    assert batch["pixel_values"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "inputs", "says"),
    [
        ("vit", [], "is empty"),
        ("vit", ["text"], "takes images or arrays"),
        ("llama", [ArrayInput(PIXELS)], "takes texts"),
        ("clip_vision", ["text"], "takes images or arrays"),
        ("bert_encoder", [ImageInput(b"")], "takes texts"),
        ("vit", ["text", ArrayInput(PIXELS)], "cannot be mixed"),
        ("vit", [ImageInput(b"")], "no preprocessor_config.json"),
        ("vit", [ArrayInput(PIXELS), ArrayInput(PIXELS[:2])], r"input 1 has shape \[2, 16, 16\]"),
        ("vit", [ArrayInput([[float("nan")]])], "NaN or infinity"),
        ("vit", [ArrayInput("text")], "no rectangular array"),
        ("vit", [ArrayInput(None)], "no rectangular array"),
        ("bert_classifier", ["the", ""], "input 1 has no tokens"),
        ("bert_classifier", ["", "the"], "input 0 has no tokens"),
        ("bert_classifier", ["  "], "input 0 has no tokens"),
    ],
)
def test_inputs_that_cannot_be_read(backbone: Load, kind: str, inputs: list[object], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        Inputs(backbone(kind)).batch(inputs)  # type: ignore[arg-type]
    assert error.value.param == "input"


def test_a_base_without_tokenizer_reads_no_text(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = pico.rewrite(model_folder("bert_classifier"), tmp_path / "mute", lambda tensors: tensors)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        Inputs(Backbone.load(folder)).batch(["the cat"])


def noise(seed: int, kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@settings(deadline=None)
@given(st.data())
def test_broken_images_are_refused_and_nothing_else(camera: Inputs, data: st.DataObject) -> None:
    """Bytes changed, cut out or cut off: either it still decodes, or it is an InputError."""
    image = bytearray(noise(0, data.draw(st.sampled_from(["PNG", "JPEG"]))))
    for place in data.draw(st.lists(st.integers(0, len(image) - 1), max_size=6)):
        image[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(image)))
    try:
        batch = camera.batch([ImageInput(bytes(image[: len(image) - cut]))])
    except InputError as error:
        assert error.param == "input"
    else:
        assert batch["pixel_values"].shape == (1, 3, pico.IMAGE, pico.IMAGE)


@pytest.fixture(scope="session")
def camera(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = pico.rewrite(model_folder("vit"), tmp_path_factory.mktemp("models") / "camera", lambda tensors: tensors)
    text = '{"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}'
    (folder / "preprocessor_config.json").write_text(text)
    return Inputs(Backbone.load(folder))


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 70))
def test_parts_are_the_batch(total: int, size: int) -> None:
    batch = {"a": torch.arange(total), "b": torch.arange(2 * total).reshape(total, 2)}
    cut = list(parts(batch, size))
    assert all(1 <= len(part["a"]) <= size for part in cut)
    assert all(torch.equal(torch.cat([part[name] for part in cut]), batch[name]) for name in batch)
