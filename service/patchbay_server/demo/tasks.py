"""The demo's data: scikit-learn's real handwritten digits, and four shifted versions of reading them.

Images are uint8 from the split to the last transform, so a PNG carries exactly what a model was trained on.
This module knows nothing of models or training.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

Images = npt.NDArray[np.uint8]  # [N, SIZE, SIZE]
Labels = npt.NDArray[np.int64]  # [N]
Transform = Callable[[Images, np.random.Generator], Images]

SIZE = 16
MEAN = 0.5
STD = 0.5
LABELS = tuple(str(digit) for digit in range(10))

HELD_OUT_FRACTION = 0.3
NOISE_SEED = 20  # of the held-out noise: every run is scored on the same noisy images
MAX_SHIFT = 1  # pixels
ROTATION = 30.0  # degrees
NOISE = 200.0  # brightest grain, in grey levels of 255


@dataclass(frozen=True, slots=True)
class Task:
    """One way of showing digits; `transform` makes it from upright images and draws only from the given generator."""

    name: str
    title: str
    transform: Transform


def _upright(images: Images, rng: np.random.Generator) -> Images:
    return images


def _rotated(images: Images, rng: np.random.Generator) -> Images:
    turned = [Image.fromarray(image).rotate(ROTATION, Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in turned])


def _inverted(images: Images, rng: np.random.Generator) -> Images:
    return 255 - images


def _mirrored(images: Images, rng: np.random.Generator) -> Images:
    return images[:, :, ::-1]


def _noisy(images: Images, rng: np.random.Generator) -> Images:
    return _quantised(images + rng.uniform(0.0, NOISE, images.shape))


# A quarter turn would be learned as well, but no merge with upright digits could read both.
BASE_TASK = Task("upright", "digits as they are", _upright)
SHIFTED_TASKS = (
    Task("rotated", f"turned by {ROTATION:.0f} degrees", _rotated),
    Task("inverted", "dark on light", _inverted),
    Task("mirrored", "left and right exchanged", _mirrored),
    Task("noisy", "under bright grain", _noisy),
)
TASKS = (BASE_TASK, *SHIFTED_TASKS)


@dataclass(frozen=True, slots=True)
class Digits:
    """1,797 upright digits in two disjoint, stratified parts; `load` always gives the same split."""

    train_images: Images
    train_labels: Labels
    held_out_images: Images
    held_out_labels: Labels

    @classmethod
    def load(cls) -> Digits:
        """The bundled 8 x 8 digits, enlarged to SIZE x SIZE (so that noise can be finer than strokes), in 8 bits."""
        bundled = load_digits()
        small = torch.from_numpy(bundled.images * (255.0 / 16.0))[:, None]
        large = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0].numpy()
        train_images, held_out_images, train_labels, held_out_labels = train_test_split(
            _quantised(large),
            bundled.target.astype(np.int64),
            test_size=HELD_OUT_FRACTION,
            random_state=0,
            stratify=bundled.target,
        )
        return cls(train_images, train_labels, held_out_images, held_out_labels)

    def train(self, task: Task, rng: np.random.Generator) -> Images:
        """All training images as `task` shows them, each moved by up to MAX_SHIFT pixels first; fresh on every call."""
        return task.transform(_shifted(self.train_images, rng), rng)

    def held_out(self, task: Task) -> Images:
        """All held-out images as `task` shows them; the same on every call."""
        return task.transform(self.held_out_images, np.random.default_rng(NOISE_SEED))


def pixels(images: Images) -> torch.Tensor:
    """Model input float32 [N, 1, SIZE, SIZE]: (grey / 255 - MEAN) / STD, as the saved preprocessor config says."""
    scaled = torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32)[:, None] / 255.0
    return (scaled - MEAN) / STD


def encode_png(image: Images) -> str:
    """One greyscale image [SIZE, SIZE] as the base64 PNG that a client sends. Lossless."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_png(text: str) -> Images:
    """The inverse of `encode_png`."""
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
        return np.asarray(image.convert("L"))


def _shifted(images: Images, rng: np.random.Generator) -> Images:
    """Every image moved by its own whole number of pixels, filled with black: no resampling, so still 8 bits exact."""
    count = len(images)
    padded = np.pad(images, ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT)))
    top, left = rng.integers(0, 2 * MAX_SHIFT + 1, size=(2, count, 1))
    rows, columns = top + np.arange(SIZE), left + np.arange(SIZE)
    moved: Images = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


def _quantised(values: npt.NDArray[np.float64]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
