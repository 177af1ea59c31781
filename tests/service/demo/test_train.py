from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from patchbay_server.demo.tasks import BASE_TASK, LABELS, SHIFTED_TASKS, SIZE, TASKS, Digits, Task, encode_png, pixels
from patchbay_server.demo.train import (
    BASE_TRAINING,
    FINETUNE_TRAINING,
    Training,
    evaluate,
    finetune,
    new_model,
    train_base,
)

TWO_STEPS = Training(epochs=1, learning_rate=1e-3, epsilon=1e-8, weight_decay=0.0, batch_size=600)


def silent(done: int, total: int, note: str) -> None:
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_base(folder, silent, training=TWO_STEPS)
    return folder


@pytest.fixture
def progress_bars() -> Iterator[None]:
    logging.enable_progress_bar()
    yield
    logging.disable_progress_bar()


def test_a_saved_base_loads_as_an_image_classifier(base: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(base)
    assert type(model).__name__ == "ViTForImageClassification"
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: index for index, label in enumerate(LABELS)}
    assert 500_000 <= model.num_parameters() <= 2_000_000
    assert model(pixel_values=torch.zeros(3, 1, SIZE, SIZE)).logits.shape == (3, 10)
    assert all(tensor.dtype == torch.float32 for tensor in weights(base).values())


def test_a_saved_folder_holds_safetensors_and_configs_only(base: Path) -> None:
    assert {path.name for path in base.iterdir()} == {"config.json", "preprocessor_config.json", "model.safetensors"}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_saved_preprocessor_makes_a_png_what_training_saw(base: Path, task: Task) -> None:
    images = Digits.load().held_out(task)[:4]
    processor = AutoImageProcessor.from_pretrained(base, backend="pil")
    for image, expected in zip(images, pixels(images), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(encode_png(image)))) as png:
            sent = np.asarray(png)[None]
        read = processor(images=[sent], input_data_format="channels_first", return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(read[0], expected, rtol=0.0, atol=1e-6)


def test_training_is_deterministic_by_seed(base: Path, tmp_path: Path) -> None:
    torch.rand(7)  # the global generator must not matter
    train_base(tmp_path / "same", silent, training=TWO_STEPS)
    assert equal(weights(tmp_path / "same"), weights(base))
    train_base(tmp_path / "other", silent, training=replace(TWO_STEPS, seed=1))
    assert not equal(weights(tmp_path / "other"), weights(base))


def test_the_order_of_the_data_depends_on_the_seed(base: Path, tmp_path: Path) -> None:
    for seed in (0, 0, 1):
        training = replace(TWO_STEPS, seed=seed)
        finetune(base, SHIFTED_TASKS[1], tmp_path / str(seed), silent, training=training)
    finetune(base, SHIFTED_TASKS[1], tmp_path / "again", silent, training=TWO_STEPS)
    assert equal(weights(tmp_path / "0"), weights(tmp_path / "again"))
    assert not equal(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train_base(tmp_path, silent, training=TWO_STEPS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("task", SHIFTED_TASKS, ids=lambda task: task.name)
def test_a_finetune_moves_every_tensor_and_keeps_shapes_and_labels(base: Path, tmp_path: Path, task: Task) -> None:
    finetune(base, task, tmp_path, silent, training=TWO_STEPS)
    before, after = weights(base), weights(tmp_path)
    assert before.keys() == after.keys()
    for name in before:
        assert after[name].shape == before[name].shape
        assert torch.isfinite(after[name]).all()
        if not name.endswith("key.bias"):  # softmax ignores it: its gradient is only rounding
            assert not torch.equal(after[name], before[name]), name
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / name).read_text() == (base / name).read_text()


def test_a_finetune_starts_from_the_base(base: Path, tmp_path: Path) -> None:
    finetune(base, BASE_TASK, tmp_path, silent, training=replace(TWO_STEPS, learning_rate=0.0))
    assert equal(weights(tmp_path), weights(base))


def test_a_finetune_leaves_the_base_folder_alone(base: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    finetune(base, SHIFTED_TASKS[0], tmp_path, silent, training=TWO_STEPS)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_progress_counts_every_step_up_to_the_total(base: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    training = replace(TWO_STEPS, epochs=2)
    finetune(base, SHIFTED_TASKS[0], tmp_path, lambda *call: seen.append(call), training=training)
    assert [(done, total) for done, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all("rotated" in note for _, _, note in seen)


def test_training_prints_nothing_and_keeps_the_progress_bar_setting(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], progress_bars: None
) -> None:
    train_base(tmp_path / "base", silent, training=TWO_STEPS)
    finetune(tmp_path / "base", BASE_TASK, tmp_path / "tuned", silent, training=TWO_STEPS)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()


def test_a_short_training_learns_and_a_short_finetune_adapts(tmp_path: Path) -> None:
    digits = Digits.load()
    labels = torch.from_numpy(digits.held_out_labels)
    task = next(task for task in SHIFTED_TASKS if task.name == "inverted")
    train_base(tmp_path / "base", silent, training=replace(BASE_TRAINING, epochs=5))
    finetune(tmp_path / "base", task, tmp_path / "tuned", silent, training=replace(FINETUNE_TRAINING, epochs=4))
    assert evaluate(tmp_path / "base", pixels(digits.held_out(BASE_TASK)), labels) > 0.7
    assert evaluate(tmp_path / "base", pixels(digits.held_out(task)), labels) < 0.3
    assert evaluate(tmp_path / "tuned", pixels(digits.held_out(task)), labels) > 0.5


def test_evaluate_counts_right_answers_of_a_model_or_a_folder(tmp_path: Path) -> None:
    model = new_model(0)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias[3] = 1.0
    model.save_pretrained(tmp_path)
    images, labels = torch.zeros(4, 1, SIZE, SIZE), torch.tensor([3, 1, 3, 3])
    assert evaluate(model, images, labels) == 0.75
    assert evaluate(tmp_path, images, labels) == 0.75
