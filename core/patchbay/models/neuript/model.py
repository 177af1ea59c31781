"""NeurIPT's encoder: every sample of every channel is a token. Knows nothing of what is done with its levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from patchbay.models.neuript.blocks import Block, Usages, run
from patchbay.models.neuript.config import NeurIPTConfig
from patchbay.models.neuript.embedding import SignalEmbedding, electrode_encoding, time_encoding
from patchbay.models.neuript.moe import imbalance


@dataclass
class NeurIPTOutput(ModelOutput):
    """`hidden_states`: the embedding with its time encoding [B, D, T, width], then every block's output [B, D, T_l,
    width]; `last_hidden_state` is the last of them, `pooler_output` [B, width] its mean over channels and time.
    In training alone: `usages`, what experts get [2, E], of one layer each, and `auxiliary_loss`, which keeps them
    evenly used.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    auxiliary_loss: torch.Tensor | None = None
    usages: Usages | None = None


class NeurIPTPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    config_class = NeurIPTConfig
    base_model_prefix = "neuript"
    main_input_name = "signal"
    _no_split_modules = ["Block"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Kaiming-normal matrices, biases of 0."""
        if isinstance(module, nn.Linear):
            init.kaiming_normal_(module.weight, nonlinearity="linear")
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class NeurIPTModel(NeurIPTPreTrainedModel):  # type: ignore[no-untyped-call]
    """Signals with the same weights whatever their channels and lengths are.

    `recomputes`: training takes less memory and a third more time.
    """

    recomputes = False

    def __init__(self, config: NeurIPTConfig) -> None:
        super().__init__(config)
        self.embedding = SignalEmbedding(config)
        self.blocks = nn.ModuleList(
            Block(config, merge, experts) for merge, experts in zip(config.merges, config.experts, strict=True)
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        signal: torch.Tensor,
        positions: torch.Tensor,
        channel_mask: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
        tokens: torch.Tensor | None = None,
        lobes: torch.Tensor | None = None,
        elsewhere: Usages | None = None,
    ) -> NeurIPTOutput:
        """Of companded signals [B, D, T] at 64 Hz, whose channels are at `positions` [B, D, 3] (millimetres).

        `channel_mask` ([B, D], bool) is False for padding, which nothing reads. `hidden` ([B, D, T], bool): samples
        that no other token may look at; `tokens` [B, D, T, width] then stand in place of the signal's. `lobes` are
        not looked at: what a classifier is given may be handed on as it is. `elsewhere`: what the experts get of other
        rows of the batch that these are a part of: the loss is the batch's.
        """
        z = self.embedding(signal.to(self.dtype)) if tokens is None else tokens
        z = z + time_encoding(z.shape[2], z.shape[3], z.device).to(z.dtype)
        electrodes = electrode_encoding(positions, z.shape[3], self.config.coordinates, channel_mask)
        levels, usages, visible = [z], list[torch.Tensor](), None if hidden is None else ~hidden
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if visible is not None and block.merge is not None:
                visible = block.merge.of_mask(visible)
            seen = _seen(visible, channel_mask, z.shape[2], self.config.merges[number])
            given = (z, electrodes if number == 0 else None, seen, channel_mask)
            z, found = run(block, *given, recomputes=self.recomputes)
            levels.append(z)
            usages += found
        loss = self._auxiliary_loss(usages, elsewhere)
        return NeurIPTOutput(z, _mean(z, channel_mask), tuple(levels), loss, tuple(usages) or None)

    def _auxiliary_loss(self, usages: Sequence[torch.Tensor], elsewhere: Usages | None) -> torch.Tensor | None:
        """The sum over all layers with experts; None where there is none, or nothing is trained."""
        if not usages:
            return None
        whole = usages if elsewhere is None else [own + other for own, other in zip(usages, elsewhere, strict=True)]
        return self.config.importance_weight * torch.stack([imbalance(usage) for usage in whole]).sum()  # type: ignore[no-any-return]


def _mean(z: torch.Tensor, channel_mask: torch.Tensor | None) -> torch.Tensor:
    channels = z.float().mean(2)
    if channel_mask is None:
        return channels.mean(1)
    real = channel_mask[:, :, None].float()
    return (channels * real).sum(1) / real.sum(1).clamp_min(1.0)


def _seen(
    visible: torch.Tensor | None, channel_mask: torch.Tensor | None, length: int, merge: int
) -> torch.Tensor | None:
    """bool [B, D, T_l] of what is neither hidden nor padding; None where all is seen. `length`: before merging."""
    if channel_mask is None:
        return visible
    real = channel_mask[:, :, None]
    return real.expand(-1, -1, -(-length // merge)) if visible is None else visible & real
