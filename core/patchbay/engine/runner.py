"""One step of a causal language model: tokens of many sequences, each under its own plan, in one forward pass.

Knows nothing of sampling, of who asked, and of patches: where weights are patched, that is somebody else's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from patchbay.backbone import Backbone
from patchbay.engine.attention import Step
from patchbay.engine.cache import Geometry, KVCache, Place
from patchbay.execute.active import ActivePlan
from patchbay.execute.context import Batch, delta_context, entered
from patchbay.models.replay import Head


@dataclass(frozen=True, slots=True)
class Piece:
    """The next tokens of one sequence, which has kept `start` before them; `wanted` of the last of them get logits."""

    place: Any
    tokens: Sequence[int]
    start: int
    plan: ActivePlan | None
    wanted: int = 1


class Runner:
    """Batches that have the same plans row by row are made once: tokens of a text follow each other so."""

    def __init__(self, backbone: Backbone, cache: KVCache) -> None:
        self.backbone, self.cache = backbone, cache
        self._encoder: PreTrainedModel = getattr(backbone.model, backbone.model.base_model_prefix)
        self._head = Head(backbone.model)
        self._batches: dict[tuple[int, ...], Batch] = {}

    def reserve(self, num_tokens: int) -> Place | None:
        """Room for a sequence of at most that many tokens, or None where there is none now."""
        return self.cache.reserve(num_tokens)

    def free(self, place: Place, *, is_finite: bool) -> None:
        """`is_finite`: that every token's logits were."""
        self.cache.free(place, is_finite=is_finite)

    def reset(self) -> None:
        """Forgets all sequences."""
        self.cache.shelves.clear()

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """fp32 logits [wanted tokens, vocabulary], piece after piece. Keys and values of all tokens are kept."""
        step = Step([p.place for p in pieces], [p.start for p in pieces], [len(p.tokens) for p in pieces])
        device = self.backbone.device
        ids = [token for piece in pieces for token in piece.tokens]
        positions = [piece.start + index for piece in pieces for index in range(len(piece.tokens))]
        batch = self._batch([piece.plan for piece in pieces for _ in piece.tokens])
        with step.attended(self.backbone.model), delta_context(batch):
            hidden = self._encoder(
                input_ids=torch.tensor(ids, device=device)[:, None],
                position_ids=torch.tensor(positions, device=device)[:, None],
                past_key_values=step,
                use_cache=True,
            ).last_hidden_state
            kept = _wanted(pieces)
            if not kept:
                return torch.empty(0, 0)
            if len(kept) == len(ids):
                return self._head.logits(hidden)[:, 0]
            rows = self._batch([piece.plan for piece in pieces for _ in range(piece.wanted)])
            with entered(rows):
                return self._head.logits(hidden[kept])[:, 0]

    def forget(self) -> None:
        """Batches keep what they were made for in memory: nobody needs that now."""
        self._batches = {}

    def _batch(self, plans: Sequence[ActivePlan | None]) -> Batch:
        key = tuple(map(id, plans))
        batch = self._batches.get(key)
        if batch is None:
            batch = Batch.of(plans, self.backbone.device)
            # The last two: one for all tokens, one for those with logits.
            self._batches = {**dict(list(self._batches.items())[-1:]), key: batch}
        return batch


def geometry_of(backbone: Backbone) -> Geometry:
    """What the model keeps of a token, found by giving it one.

    Raises ValueError where that is anything else than a key and a value in every layer.
    """
    with torch.inference_mode():
        encoder = getattr(backbone.model, backbone.model.base_model_prefix)
        ids = torch.zeros(1, 1, dtype=torch.long, device=backbone.device)
        kept = encoder(input_ids=ids, use_cache=True).past_key_values
    layers: list[Any] = list(getattr(kept, "layers", []))
    pairs = [(layer.keys, layer.values) for layer in layers if getattr(layer, "keys", None) is not None]
    if not layers or len(pairs) < len(layers) or any(key.dim() != 4 or value.dim() != 4 for key, value in pairs):
        raise ValueError("the model does not keep a key and a value a layer")
    shapes = tuple(((key.shape[1], key.shape[3]), (value.shape[1], value.shape[3])) for key, value in pairs)
    return Geometry(shapes, pairs[0][0].dtype, backbone.device)


def _wanted(pieces: Sequence[Piece]) -> list[int]:
    """Which tokens of the batch get logits."""
    found: list[int] = []
    end = 0
    for piece in pieces:
        end += len(piece.tokens)
        found.extend(range(end - piece.wanted, end))
    return found
