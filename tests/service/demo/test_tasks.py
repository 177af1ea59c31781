from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from patchbay_server.demo.tasks import (
    BASE_TASK,
    MAX_SHIFT,
    SHIFTED_TASKS,
    SIZE,
    TASKS,
    Digits,
    Images,
    Task,
    decode_png,
    encode_png,
    pixels,
)

every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
some_images = arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(SIZE), st.just(SIZE)))


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits.load()


def transformed(name: str, images: Images, seed: int = 0) -> Images:
    task = next(task for task in TASKS if task.name == name)
    return task.transform(images, np.random.default_rng(seed))


def test_the_split_is_disjoint_and_complete(digits: Digits) -> None:
    train = {image.tobytes() for image in digits.train_images}
    held_out = {image.tobytes() for image in digits.held_out_images}
    assert len(train) == len(digits.train_labels)
    assert len(held_out) == len(digits.held_out_labels)
    assert not train & held_out
    assert len(train) + len(held_out) == 1797
    assert 0.25 <= len(held_out) / 1797 <= 0.30 + 1e-3


def test_the_split_is_stratified(digits: Digits) -> None:
    train = np.bincount(digits.train_labels, minlength=10)
    held_out = np.bincount(digits.held_out_labels, minlength=10)
    assert np.allclose(held_out / (train + held_out), len(digits.held_out_labels) / 1797, atol=0.01)


def test_load_always_gives_the_same_split(digits: Digits) -> None:
    again = Digits.load()
    assert np.array_equal(again.train_images, digits.train_images)
    assert np.array_equal(again.train_labels, digits.train_labels)
    assert np.array_equal(again.held_out_images, digits.held_out_images)
    assert np.array_equal(again.held_out_labels, digits.held_out_labels)


def test_the_digits_use_the_whole_grey_scale(digits: Digits) -> None:
    assert digits.train_images.min() == 0
    assert digits.train_images.max() >= 250


def test_one_base_task_and_four_shifted_ones_with_names_of_their_own() -> None:
    assert TASKS[0] is BASE_TASK
    assert len(SHIFTED_TASKS) == 4
    assert len({task.name for task in TASKS}) == 5
    assert len({task.title for task in TASKS}) == 5


@every_task
def test_images_stay_eight_bit_and_keep_their_shape(digits: Digits, task: Task) -> None:
    for images, labels in (
        (digits.train(task, np.random.default_rng(0)), digits.train_labels),
        (digits.held_out(task), digits.held_out_labels),
    ):
        assert images.dtype == np.uint8
        assert images.shape == (len(labels), SIZE, SIZE)


@every_task
def test_held_out_images_are_the_same_on_every_call(digits: Digits, task: Task) -> None:
    assert np.array_equal(digits.held_out(task), digits.held_out(task))


@every_task
def test_training_images_are_fresh_on_every_call_but_fixed_by_the_seed(digits: Digits, task: Task) -> None:
    rng = np.random.default_rng(3)
    first, second = digits.train(task, rng), digits.train(task, rng)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, digits.train(task, np.random.default_rng(3)))


@pytest.mark.parametrize("task", SHIFTED_TASKS, ids=lambda task: task.name)
def test_a_shifted_task_changes_every_image(digits: Digits, task: Task) -> None:
    changed = (digits.held_out(task) != digits.held_out_images).any(axis=(1, 2))
    assert changed.all()


def test_training_images_are_moved_by_whole_pixels_and_filled_with_black(digits: Digits) -> None:
    moved = digits.train(BASE_TASK, np.random.default_rng(0))[:40]
    used = set()
    for original, image in zip(digits.train_images, moved, strict=False):
        matches = [
            (down, right)
            for down in range(-MAX_SHIFT, MAX_SHIFT + 1)
            for right in range(-MAX_SHIFT, MAX_SHIFT + 1)
            if np.array_equal(moved_by(original, down, right), image)
        ]
        assert matches
        used.update(matches)
    assert len(used) == (2 * MAX_SHIFT + 1) ** 2


def moved_by(image: Images, down: int, right: int) -> Images:
    result = np.zeros_like(image)
    for row in range(SIZE):
        for column in range(SIZE):
            if 0 <= row - down < SIZE and 0 <= column - right < SIZE:
                result[row, column] = image[row - down, column - right]
    return result


@given(some_images)
@settings(max_examples=20)
def test_inverting_and_mirroring_twice_give_the_image_back(images: Images) -> None:
    for name in ("inverted", "mirrored"):
        assert np.array_equal(transformed(name, transformed(name, images)), images)


def test_mirroring_exchanges_left_and_right() -> None:
    images = np.zeros((1, SIZE, SIZE), dtype=np.uint8)
    images[0, 2, 0] = 7
    assert transformed("mirrored", images)[0, 2, SIZE - 1] == 7


def test_rotation_turns_counter_clockwise_about_the_centre() -> None:
    images = np.zeros((1, SIZE, SIZE), dtype=np.uint8)
    images[0, 6:10, 12:] = 255  # right of the centre: a turn to the left lifts it
    rows, columns = np.nonzero(transformed("rotated", images)[0])
    assert rows.mean() < 6
    assert columns.mean() > 9


def test_noise_only_brightens_and_is_clipped_not_wrapped() -> None:
    images = np.stack([np.full((SIZE, SIZE), level, dtype=np.uint8) for level in (0, 128, 255)])
    noisy = transformed("noisy", images)
    assert (noisy >= images).all()
    assert noisy[0].std() > 40
    assert noisy[1].max() == 255


def test_pixels_are_normalised_floats_with_one_channel() -> None:
    images = np.zeros((2, SIZE, SIZE), dtype=np.uint8)
    images[1] = 255
    tensor = pixels(images)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (2, 1, SIZE, SIZE)
    assert torch.equal(tensor.unique(), torch.tensor([-1.0, 1.0]))


@given(some_images)
@settings(max_examples=20)
def test_png_round_trip_is_exact(images: Images) -> None:
    for image in images:
        assert np.array_equal(decode_png(encode_png(image)), image)


@every_task
def test_png_round_trip_gives_the_tensor_of_the_task(digits: Digits, task: Task) -> None:
    images = digits.held_out(task)[:5]
    assert torch.equal(pixels(np.stack([decode_png(encode_png(image)) for image in images])), pixels(images))


def test_a_png_is_one_greyscale_image(digits: Digits) -> None:
    with Image.open(io.BytesIO(base64.b64decode(encode_png(digits.held_out_images[0])))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (SIZE, SIZE))
