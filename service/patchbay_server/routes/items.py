"""Inputs of a request, from HTTP's words to the library's, shared by classification and embeddings."""

from __future__ import annotations

import base64
import binascii

from patchbay.errors import InputError
from patchbay.models.inputs import ArrayInput, ImageInput, Input
from patchbay_server.schemas import ArrayItem, ImageItem, Item


def to_inputs(items: Item | list[Item]) -> list[Input]:
    """Raises InputError for an image that is not base64."""
    listed = items if isinstance(items, list) else [items]
    return [_to_input(index, item) for index, item in enumerate(listed)]


def _to_input(index: int, item: Item) -> Input:
    if isinstance(item, ImageItem):
        try:
            return ImageInput(base64.b64decode(item.image, validate=True))
        except (binascii.Error, ValueError) as error:
            raise InputError(f"input {index}: the image is not base64: {error}", param="input") from error
    return ArrayInput(item.array) if isinstance(item, ArrayItem) else item
