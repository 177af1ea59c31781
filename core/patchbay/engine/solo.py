"""Text from models whose tokens cannot share a forward pass: one sequence after another, each with a cache of its own.

Sequence-to-sequence models, and causal ones that keep something else than keys and values or attend in a way of their
own. Same contract as the runner of many; knows nothing of sampling and recipes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patchbay.architecture import Task
from patchbay.backbone import Backbone
from patchbay.engine.runner import Piece
from patchbay.models.generation import start_token


@dataclass(slots=True, eq=False)
class Private:
    """What one sequence keeps: tokens of the text that the model goes on with, how many of them are in its own cache
    `past`, and what its encoder gave.
    """

    size: int
    tokens: list[int]
    length: int = 0
    prompt_length: int = 0
    past: Any = None
    encoded: Any = None


class SoloRunner:
    """`max_tokens` bounds what all sequences together may hold."""

    def __init__(self, backbone: Backbone, max_tokens: int) -> None:
        self.backbone, self.max_tokens = backbone, max_tokens
        self.used_tokens = 0

    def reserve(self, num_tokens: int) -> Private | None:
        """Room for a sequence of at most that many tokens, or None where there is none now."""
        if self.used_tokens + num_tokens > self.max_tokens:
            return None
        self.used_tokens += num_tokens
        return Private(num_tokens, [])

    def free(self, place: Private, *, is_finite: bool) -> None:
        self.used_tokens -= place.size

    def reset(self) -> None:
        """Forgets all sequences."""
        self.used_tokens = 0

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """fp32 logits [wanted tokens, vocabulary], piece after piece."""
        advance = self._decode if self.backbone.task is Task.SEQ2SEQ_LM else self._continue
        found = [advance(piece.place, piece) for piece in pieces]
        return torch.cat([rows[len(rows) - piece.wanted :] for rows, piece in zip(found, pieces, strict=True)])

    def _continue(self, place: Private, piece: Piece) -> torch.Tensor:
        """A row for each of the piece's tokens."""
        place.tokens[piece.start :] = piece.tokens
        return self._forward(place, "input_ids", {}, len(piece.tokens), piece.start)

    def _decode(self, place: Private, piece: Piece) -> torch.Tensor:
        """The prompt goes to the encoder, whole; what comes after it to the decoder. Nothing follows from a prompt's
        own tokens here: there is one row, for the last.
        """
        if not piece.start:
            place.encoded = self._model.get_encoder()(input_ids=self._ids(piece.tokens))
            place.prompt_length = len(piece.tokens)
            place.tokens[:] = [start_token(self.backbone)]
        else:
            place.tokens[1 + piece.start - place.prompt_length :] = piece.tokens
        return self._forward(place, "decoder_input_ids", {"encoder_outputs": place.encoded}, 1, len(place.tokens) - 1)

    def _forward(self, place: Private, name: str, more: Mapping[str, Any], count: int, start: int) -> torch.Tensor:
        """fp32 logits of the last `count` tokens. All of them are read where the cache does not end before those: a
        pass failed and is tried again, or the model keeps something that cannot be handed back.
        """
        if place.past is None or place.length != start:
            place.past, start = None, 0
        ids = self._ids(place.tokens[start:])
        past, place.past = place.past, None  # until the pass has gone well: a cache is changed on the way
        output = self._model(**{name: ids}, past_key_values=past, use_cache=True, **more)
        place.past, place.length = output.get("past_key_values"), len(place.tokens)
        logits: torch.Tensor = output.logits[0, -count:]
        return logits.float()

    @property
    def _model(self) -> Any:
        return self.backbone.model

    def _ids(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(tokens)], device=self.backbone.device)
