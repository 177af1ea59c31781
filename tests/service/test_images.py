"""Images and arrays: what can be decoded, and what is refused before it costs anything."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from tests import pico
from tests.service.serving import Serve, Served, assert_error, probabilities
from transformers import AutoModelForImageClassification

from patchbay.backbone import Backbone

NOISE = np.random.default_rng(0).integers(0, 256, (pico.IMAGE, pico.IMAGE, 3), dtype=np.uint8)


def encoded(kind: str, pixels: np.ndarray = NOISE) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def item(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces its size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def served(serve: Serve, camera: Backbone) -> Served:
    return serve(camera)


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """The preprocessor's default: (x / 255 - 0.5) / 0.5."""
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def test_a_png_is_its_pixels(served: Served) -> None:
    model = AutoModelForImageClassification.from_pretrained(served.backbone.folder)
    expected = probabilities(model, pixel_values=normalised(NOISE))
    torch.testing.assert_close(served.probabilities("base", item(encoded("PNG"))), expected, atol=1e-6, rtol=0)
    array = {"array": normalised(NOISE)[0].tolist()}
    torch.testing.assert_close(served.probabilities("base", array), expected, atol=1e-6, rtol=0)


def test_a_jpeg_is_its_pixels(served: Served) -> None:
    data = encoded("JPEG")
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    model = AutoModelForImageClassification.from_pretrained(served.backbone.folder)
    expected = probabilities(model, pixel_values=normalised(pixels))
    torch.testing.assert_close(served.probabilities("base", item(data)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(40, 30, 3), (5, 7, 3), (1, 1, 3), (16, 16), (20, 20, 4)])
def test_images_of_other_sizes_and_colours_are_brought_to_the_models(served: Served, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    assert served.probabilities("base", item(encoded("PNG", pixels))).shape == (1, 3)


def test_images_and_arrays_in_one_request(served: Served) -> None:
    array = {"array": normalised(NOISE)[0].tolist()}
    both = served.probabilities("base", [item(encoded("PNG")), array])
    torch.testing.assert_close(both[0], both[1])


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("not base64!", "not base64"),
        ("aGVsbG8", "not base64"),
        ("ä", "not base64"),
        ("", "no PNG or JPEG"),
        (base64.b64encode(b"hello").decode(), "no PNG or JPEG"),
        (base64.b64encode(encoded("PNG")[:-40]).decode(), "no PNG or JPEG"),
        (base64.b64encode(encoded("JPEG")[:100]).decode(), "no PNG or JPEG"),
        (base64.b64encode(encoded("BMP")).decode(), "no PNG or JPEG"),
        (base64.b64encode(encoded("GIF")).decode(), "no PNG or JPEG"),
        (base64.b64encode(png_header(9000, 9000)).decode(), "more than 16777216 pixels"),
        (base64.b64encode(png_header(60000, 60000)).decode(), "no PNG or JPEG"),
        (base64.b64encode(png_header(0, 5)).decode(), "no PNG or JPEG"),
        (base64.b64encode(png_header(5, 5)).decode(), "no PNG or JPEG"),
    ],
    ids=range(13),
)
def test_images_that_are_none(served: Served, image: str, says: str) -> None:
    good = item(encoded("PNG"))
    response = served.post("/v1/classify", {"model": "base", "input": [good, {"image": image}]})
    message = assert_error(response, 422, "invalid_input", "input")
    assert says in message and message.startswith("input 1")


def flat(value: float) -> list[list[list[float]]]:
    return [[[value] * 16] * 16] * 3


@pytest.mark.parametrize(
    ("array", "says"),
    [
        ([], "shape [0]"),
        ([1, 2, 3], "shape [3]"),
        (flat(0)[:2], "shape [2, 16, 16], the model takes [3, 16, 16]"),
        ([[[0]]], "shape [1, 1, 1]"),
        ([flat(0)], "shape [1, 3, 16, 16]"),
        ([[[0] * 16, [0] * 15] * 8] * 3, "no rectangular array"),
        ([[["0"] * 16] * 16] * 3, "no rectangular array"),
        ([[[None] * 16] * 16] * 3, "no rectangular array"),
        ([{"a": 1}], "no rectangular array"),
        (flat(10**400), "no rectangular array"),
    ],
    ids=range(10),
)
def test_arrays_that_do_not_fit(served: Served, array: object, says: str) -> None:
    response = served.post("/v1/classify", {"model": "base", "input": {"array": array}})
    assert says in assert_error(response, 422, "invalid_input", "input")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_numbers_that_are_none(served: Served, number: str) -> None:
    """Python's JSON reads all of these."""
    content = f'{{"model": "base", "input": {{"array": [[[{number}]]]}}}}'.encode()
    response = served.client.post("/v1/classify", content=content, headers={"content-type": "application/json"})
    assert "NaN or infinity" in assert_error(response, 422, "invalid_input", "input")


def test_models_without_a_preprocessor_take_arrays(vit: Served) -> None:
    response = vit.post("/v1/classify", {"model": "base", "input": item(encoded("PNG"))})
    assert "send arrays" in assert_error(response, 422, "invalid_input", "input")


def test_models_of_any_image_size(serve: Serve, backbone: Callable[[str], Backbone]) -> None:
    """A convolutional network names no size; it still cannot take what has no pixels."""
    served = serve("resnet")
    for size in (16, 33):
        assert len(served.classify("base", {"array": [[[0.5] * size] * size] * 3})) == 1
    for array in ([1, 2], [[[]]] * 3, [[[0.5] * 16] * 16] * 4):
        response = served.post("/v1/classify", {"model": "base", "input": {"array": array}})
        assert "the model takes [3, any, any]" in assert_error(response, 422, "invalid_input", "input")
    mixed = [{"array": [[[0.5] * size] * size] * 3} for size in (16, 32)]
    response = served.post("/v1/classify", {"model": "base", "input": mixed})
    assert "input 1 has shape [3, 32, 32], input 0 [3, 16, 16]" in assert_error(response, 422, "invalid_input", "input")


def test_a_body_that_is_too_deep(served: Served) -> None:
    content = b'{"model": "base", "input": {"array": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    response = served.client.post("/v1/classify", content=content, headers={"content-type": "application/json"})
    assert_error(response, 400, "invalid_request")
