"""One forward pass of an encoder for several requests, each under its own plan and with its own head.

Whether a model's answers survive that is tried on the model itself. Knows nothing of queues and threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from patchbay.backbone import Backbone
from patchbay.execute.active import ActivePlan
from patchbay.execute.context import Batch, delta_context, entered
from patchbay.execute.trial import trial_inputs
from patchbay.models.replay import Readout

KEPT = 4  # batches
LENGTHS = (5, 9, 2)  # of texts that the trial reads beside each other
# Of the answers' own size, by dtype.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one request: `inputs` [rows, ...] padded to their own longest, `plan` None for the base."""

    inputs: Mapping[str, torch.Tensor]
    plan: ActivePlan | None
    readout: Readout

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def length(self) -> int | None:
        """In tokens; None where it is no text."""
        return self.inputs["input_ids"].shape[1] if "input_ids" in self.inputs else None


class Joint:
    """Batches that have the same plans row by row are made once, as long as they are among the last."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._batches: dict[tuple[int, ...], Batch] = {}

    def together(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        """Every part's answers [rows, width]: one pass of the encoder for all, then each part's readout by itself."""
        encoder = parts[0].readout.encoder
        assert encoder is not None, "whole models run alone"
        found: list[torch.Tensor] = []
        batch = self._batch(parts)
        with delta_context(batch):
            output = encoder(**_padded(parts))
            start = 0
            for part in parts:
                own = _rows_of(output, slice(start, start + part.num_rows), part.length)
                # A head has few matrices: its batch is quickly made.
                with entered(batch if len(parts) == 1 else self._make_batch([part])):
                    found.append(part.readout.after(own, part.inputs))
                start += part.num_rows
        return found

    def alone(self, part: Part) -> torch.Tensor:
        """The part's answers [rows, width], by the whole model."""
        with delta_context(self._batch([part])):
            return part.readout.whole(part.inputs)

    @torch.inference_mode()
    def why_not(self, readout: Readout) -> str | None:
        """Why requests for this readout cannot share a forward pass; None where they can. Runs the base's weights."""
        if readout.encoder is None:
            return f"{type(readout.model).__name__} has no part called {readout.model.base_model_prefix!r}"
        try:
            parts = [Part(inputs, None, readout) for inputs in _trial(self.backbone)]
            whole, found = torch.cat(list(map(self.alone, parts))), torch.cat(self.together(parts))
            error = float((found - whole).norm() / whole.norm())
        except Exception as failure:  # whatever a model does with what it did not make itself
            return f"{type(failure).__name__}: {failure}"
        if not error <= TOLERANCE[self.backbone.model.dtype]:
            return f"its answers differ by {error:.3g} of their size"
        return None

    def forget(self) -> None:
        """Batches keep what they were made for in memory: nobody needs that now."""
        self._batches = {}

    def _batch(self, parts: Sequence[Part]) -> Batch:
        key = tuple(id(part.plan) for part in parts for _ in range(part.num_rows))
        # A batch keeps its plans, so that no other one gets their ids.
        batch = self._batches.pop(key, None) or self._make_batch(parts)
        self._batches = {**dict(list(self._batches.items())[1 - KEPT :]), key: batch}
        return batch

    def _make_batch(self, parts: Sequence[Part]) -> Batch:
        return Batch.of([part.plan for part in parts for _ in range(part.num_rows)], self.backbone.device)


def _trial(backbone: Backbone) -> list[dict[str, torch.Tensor]]:
    """Inputs of one row each: some models take more only with tokens that a config may lack."""
    is_text = backbone.model.main_input_name == "input_ids"
    rows = [trial_inputs(backbone, 1, length if is_text else LENGTHS[0], seed) for seed, length in enumerate(LENGTHS)]
    return [{**row, "attention_mask": torch.ones_like(row["input_ids"])} if is_text else row for row in rows]


def _padded(parts: Sequence[Part]) -> dict[str, torch.Tensor]:
    """All rows, padded on the right to the longest: positions count from a row's first token."""
    if len(parts) == 1:
        return dict(parts[0].inputs)
    longest = max((part.length or 0 for part in parts), default=0)
    fill = getattr(parts[0].readout.model.config, "pad_token_id", None) or 0
    return {
        name: torch.cat([_widened(part.inputs[name], longest, fill if name == "input_ids" else 0) for part in parts])
        for name in parts[0].inputs
    }


def _widened(tensor: torch.Tensor, longest: int, fill: int) -> torch.Tensor:
    if tensor.dim() != 2 or tensor.shape[1] == longest:
        return tensor
    return functional.pad(tensor, (0, longest - tensor.shape[1]), value=fill)


def _rows_of(output: ModelOutput, rows: slice, length: int | None) -> ModelOutput:
    """An encoder's output for some of its rows, without the padding of others."""
    tokens = output["last_hidden_state"].shape[1]
    found: dict[str, torch.Tensor | tuple[torch.Tensor, ...]] = {}
    for name, value in output.items():
        if isinstance(value, torch.Tensor):
            own = value[rows]
            is_sequence = length is not None and own.dim() > 2 and own.shape[1] == tokens
            found[name] = own[:, :length] if is_sequence else own
        elif isinstance(value, tuple) and length is None:
            found[name] = tuple(level[rows] for level in value)
    return type(output)(**found)
