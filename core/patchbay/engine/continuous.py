"""Whether tokens of many sequences may share a model's forward pass: tried on the model itself, once, at the start.

Knows nothing of recipes: that plans may share it is proved elsewhere.
"""

from __future__ import annotations

import torch

from patchbay.architecture import Task
from patchbay.backbone import Backbone
from patchbay.engine.cache import SHORTEST, KVCache
from patchbay.engine.runner import Piece, Runner, geometry_of
from patchbay.engine.solo import SoloRunner
from patchbay.models.inputs import MAX_TOKENS

# Texts that are read in pieces, beside each other: lengths, and tokens of one piece.
LENGTHS, PIECES = (3, 11, 7), (1, 4, 2)
# Of the logits' own spread, by dtype.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}

BATCH_ROPE = frozenset({"dynamic", "longrope"})  # transformers chooses their frequencies for a whole batch


def open_runner(backbone: Backbone, kv_bytes: int) -> tuple[Runner | SoloRunner, str | None]:
    """The runner of many where it gives the model's own answers; else the one of one after another, and why.

    What the second one keeps it keeps as the model does, so `kv_bytes` bounds only the first one's.
    """
    if backbone.task is Task.SEQ2SEQ_LM:
        return SoloRunner(backbone, 8 * MAX_TOKENS), "it has an encoder and a decoder"
    if _is_turned_by_neighbours(backbone):
        return SoloRunner(backbone, 8 * MAX_TOKENS), "its rotary frequencies follow the longest text of a batch"
    try:
        geometry = geometry_of(backbone)
        # What is tried needs room, however little there will be for others.
        room = len(LENGTHS) * SHORTEST * geometry.token_bytes
        error = _error(backbone, Runner(backbone, KVCache(geometry, room)))
    except Exception as failure:  # whatever a model does with tokens that come one by one
        return SoloRunner(backbone, 8 * MAX_TOKENS), f"{type(failure).__name__}: {failure}"
    if not error <= TOLERANCE[backbone.model.dtype]:
        return SoloRunner(backbone, 8 * MAX_TOKENS), f"its logits differ by {error:.3g} of their spread"
    return Runner(backbone, KVCache(geometry, kv_bytes)), None


def _is_turned_by_neighbours(backbone: Backbone) -> bool:
    """Whether a long text changes how others' positions are read: those that are tried here are too short to tell."""
    types = [getattr(module, "rope_type", None) for module in backbone.model.modules()]
    found = [name for kind in types for name in (kind.values() if isinstance(kind, dict) else [kind])]
    return not BATCH_ROPE.isdisjoint(found)


@torch.inference_mode()
def _error(backbone: Backbone, runner: Runner) -> float:
    """Largest difference of any logit, over the logits' standard deviation."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = next(spec.shape[0] for spec in backbone.specs.values() if spec.is_vocabulary)
    texts = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]
    found = _read(runner, texts)
    whole = [_logits(backbone, text) for text in texts]
    spread = float(torch.cat(whole).std())
    return max(float((a - b).abs().max()) for a, b in zip(found, whole, strict=True)) / spread


def _logits(backbone: Backbone, text: list[int]) -> torch.Tensor:
    output = backbone.model(input_ids=torch.tensor([text], device=backbone.device))
    logits: torch.Tensor = output.logits[0]
    return logits.float()


def _read(runner: Runner, texts: list[list[int]]) -> list[torch.Tensor]:
    """All logits of every text, read a few tokens at a time beside the others."""
    places = [runner.reserve(len(text)) for text in texts]
    logits: list[list[torch.Tensor]] = [[] for _ in texts]
    done = [0] * len(texts)
    while unread := [number for number, text in enumerate(texts) if done[number] < len(text)]:
        pieces = []
        for number in unread:
            tokens = texts[number][done[number] : done[number] + PIECES[number]]
            place = places[number]
            assert place is not None, "a few tokens fit"
            pieces.append(Piece(place, tokens, done[number], None, len(tokens)))
            done[number] += len(tokens)
        rows = torch.split(runner.run(pieces), [len(piece.tokens) for piece in pieces])
        for number, found in zip(unread, rows, strict=True):
            logits[number].append(found)
    for place in places:
        assert place is not None
        runner.free(place, is_finite=True)
    return [torch.cat(found) for found in logits]
