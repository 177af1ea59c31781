"""What users send, made into what a backbone takes: text, images, arrays -> padded tensors.

Knows nothing of deltas but the tokens they add, and nothing of HTTP.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase

from patchbay.backbone import Backbone
from patchbay.delta.manifest import MAX_RANK, Token
from patchbay.errors import InputError, InvalidRecipe
from patchbay.models.chat import Message, render
from patchbay.models.signals import SignalInput, signal_batch

MAX_PIXELS = 1 << 24
# Where positions have no end (T5): attention's memory grows with the square.
MAX_TOKENS = 4096
MAX_BATCH = 64  # inputs of one forward pass: bounds its activations
MAX_SAMPLES = 1 << 16  # of the recordings in one forward pass
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An encoded PNG or JPEG."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ArrayInput:
    """One input exactly as the model takes it, without its batch dimension: pixel values [channels, height, width]."""

    array: Any  # nested lists of numbers


Input = str | ImageInput | ArrayInput | SignalInput
Batch = dict[str, torch.Tensor]


def parts(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch cut into batches of at most `size` inputs."""
    total = len(next(iter(batch.values())))
    for start in range(0, total, size):
        yield {name: tensor[start : start + size] for name, tensor in batch.items()}


class Inputs:
    """Reads inputs for one backbone: its tokenizer and image processor, where its folder has them."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.tokenizer = _tokenizer(backbone)
        # A fast tokenizer keeps padding and truncation as state of its own and fails when two threads set it.
        self._tokenizing = Lock()
        self._takes_text = backbone.model.main_input_name == "input_ids"
        self._takes_signals = backbone.model.main_input_name == "signal"
        self._images = _image_processor(backbone)
        # Taken now: while a request is answered, the resident vocabulary may be another one's, which is larger.
        self.vocabulary = vocabulary_of(backbone) if self._takes_text else 0

    def batch(self, inputs: Sequence[Input], tokens: Iterable[Token] = (), num_appended: int = 0) -> Batch:
        """One padded batch on the backbone's device. `tokens` are those that the request's deltas add, `num_appended`
        the rows that they append to the vocabulary.

        Raises InputError that names the offending input's index; texts and images cannot be mixed in one batch.
        """
        if not inputs:
            raise InputError("input is empty: send at least one", param="input")
        if self._takes_signals or any(isinstance(item, SignalInput) for item in inputs):
            return self._signals(inputs)
        is_text = [isinstance(item, str) for item in inputs]
        if any(is_text) and not all(is_text):
            raise InputError("texts and images cannot be mixed in one request", param="input")
        if is_text[0] != self._takes_text:
            wanted = "texts" if self._takes_text else "images or arrays"
            raise InputError(f"{self.backbone.name} takes {wanted}", param="input")
        if self._takes_text:
            texts = [item for item in inputs if isinstance(item, str)]
            batch = self._text(texts, tokens, self.vocabulary + num_appended)
        else:
            batch = {"pixel_values": self._pixels([i for i in inputs if isinstance(i, ImageInput | ArrayInput)])}
        return {name: tensor.to(self.backbone.device) for name, tensor in batch.items()}

    def tokenizer_with(self, tokens: Iterable[Token]) -> PreTrainedTokenizerBase:
        """The base's tokenizer, extended by tokens that keep the ids they were trained with.

        Raises InputError without a tokenizer, InvalidRecipe where two deltas want different tokens for one id.
        """
        if self.tokenizer is None:
            raise InputError(f"{self.backbone.name} has no tokenizer: text cannot be read", param="input")
        wanted = sorted({(token.id, token.content, token.special) for token in tokens})
        if not wanted:
            return self.tokenizer
        extended = copy.deepcopy(self.tokenizer)
        for number, content, special in wanted:
            extended.add_tokens([content], special_tokens=special)
            if extended.convert_tokens_to_ids(content) != number:
                raise InvalidRecipe(f"added token {content!r} cannot have its id {number} here", param="terms")
        return extended

    def encode(self, text: str, tokens: Iterable[Token] = ()) -> tuple[int, ...]:
        """A text's tokens, whole."""
        return self._encode(self.tokenizer_with(tokens), text, special=True)

    def chat(self, messages: Sequence[Message], tokens: Iterable[Token] = ()) -> tuple[int, ...]:
        """The tokens of messages up to where the answer begins. Raises InputError without a chat template, and where it
        refuses the messages.
        """
        tokenizer = self.tokenizer_with(tokens)
        return self._encode(tokenizer, render(tokenizer, messages), special=False)  # the template has written them

    def _encode(self, tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[int, ...]:
        with self._tokenizing:
            ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
        return tuple(ids)

    def _text(self, texts: list[str], tokens: Iterable[Token], vocabulary: int) -> Batch:
        tokenizer = self.tokenizer_with(tokens)
        limit = _max_length(self.backbone, tokenizer)
        with self._tokenizing:
            encoded = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        for index, mask in enumerate(encoded.get("attention_mask", encoded["input_ids"] >= 0)):
            if not bool(mask.any()):
                raise InputError(f"input {index} has no tokens", param="input")
        if int(encoded["input_ids"].max()) >= vocabulary:
            raise InputError(f"input has a token outside the model's vocabulary of {vocabulary}", param="input")
        return dict(encoded)

    def _signals(self, inputs: Sequence[Input]) -> Batch:
        signals = [item for item in inputs if isinstance(item, SignalInput)]
        if not self._takes_signals:
            raise InputError(f"{self.backbone.name} takes no recordings", param="input")
        if len(signals) < len(inputs):
            raise InputError(f"{self.backbone.name} takes recordings: send them to /v1/eeg", param="input")
        return {name: tensor.to(self.backbone.device) for name, tensor in signal_batch(signals).items()}

    def _pixels(self, items: list[ImageInput | ArrayInput]) -> torch.Tensor:
        tensors = [self._one(index, item) for index, item in enumerate(items)]
        first = tensors[0].shape
        for index, tensor in enumerate(tensors):
            if tensor.shape != first:
                raise InputError(f"input {index} has shape {list(tensor.shape)}, input 0 {list(first)}", param="input")
        dtype = next(self.backbone.model.parameters()).dtype
        return torch.stack(tensors).to(dtype)

    def _one(self, index: int, item: ImageInput | ArrayInput) -> torch.Tensor:
        wanted = _image_shape(self.backbone)
        tensor = self._image(index, item.data) if isinstance(item, ImageInput) else _array(index, item.array)
        have = tuple(tensor.shape)
        if (
            len(have) != 3
            or 0 in have
            or any(want not in (None, size) for want, size in zip(wanted, have, strict=True))
        ):
            sizes = ", ".join("any" if want is None else str(want) for want in wanted)
            raise InputError(f"input {index} has shape {list(have)}, the model takes [{sizes}]", param="input")
        return tensor

    def _image(self, index: int, data: bytes) -> torch.Tensor:
        if self._images is None:
            raise InputError(f"{self.backbone.name} has no preprocessor_config.json: send arrays", param="input")
        pixels = _decode_image(index, data, self.backbone.architecture.config.num_channels)
        processed = self._images(images=[pixels], input_data_format="channels_first", return_tensors="pt")
        values: torch.Tensor = processed["pixel_values"][0]
        return values


def num_tokens(batch: Batch) -> int:
    """That texts have, without padding; 0 of what is no text."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else 0


def most_rows(batch: Batch) -> int:
    """Inputs of one forward pass: those of recordings may have many thousand samples each, all of them tokens."""
    samples = batch["signal"][0].numel() if "signal" in batch else 1
    return max(1, min(MAX_BATCH, MAX_SAMPLES // max(1, samples)))


def vocabulary_of(backbone: Backbone) -> int:
    """How many tokens the model embeds now; a tokenizer may know more, and a patch may append some."""
    weight = backbone.model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor), "a language model embeds tokens"
    return len(weight)


def _tokenizer(backbone: Backbone) -> PreTrainedTokenizerBase | None:
    if not any((backbone.folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        backbone.folder, trust_remote_code=False, local_files_only=True
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked; any token serves
    return tokenizer


def _image_processor(backbone: Backbone) -> Any | None:
    if not (backbone.folder / "preprocessor_config.json").is_file():
        return None
    # Pillow resizes the same everywhere; the torchvision backend would be another dependency and other pixels.
    return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
        backbone.folder, trust_remote_code=False, local_files_only=True, backend="pil"
    )


def _max_length(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> int:
    limits = [backbone.max_positions, tokenizer.model_max_length]
    return min((limit for limit in limits if limit and limit < 10**9), default=MAX_TOKENS)


def _image_shape(backbone: Backbone) -> tuple[int | None, int | None, int | None]:
    """[channels, height, width]; None where any size will do."""
    config: Mapping[str, Any] = backbone.architecture.config.to_dict()
    size = config.get("image_size")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return config.get("num_channels"), height, width


def _decode_image(index: int, data: bytes, channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [channels, height, width]."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"input {index} has more than {MAX_PIXELS} pixels", param="input")
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"input {index} is no PNG or JPEG that can be decoded: {error}", param="input") from error
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _array(index: int, nested: Any) -> torch.Tensor:
    try:
        tensor = torch.tensor(nested, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(f"input {index} is no rectangular array of numbers: {error}", param="input") from error
    if tensor.dim() > MAX_RANK:
        raise InputError(f"input {index} has {tensor.dim()} dimensions", param="input")
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"input {index} contains NaN or infinity", param="input")
    return tensor
