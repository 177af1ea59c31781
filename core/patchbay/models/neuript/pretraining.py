"""Pre-training: hidden samples are guessed from the visible ones, by a decoder that reads all levels of the encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from patchbay.models.neuript.attention import Attention
from patchbay.models.neuript.blocks import Block, Usages, run
from patchbay.models.neuript.config import NeurIPTConfig
from patchbay.models.neuript.embedding import electrode_encoding, time_encoding
from patchbay.models.neuript.masking import SHARES, Shown, amplitude_mask, shown
from patchbay.models.neuript.model import NeurIPTModel, NeurIPTOutput, NeurIPTPreTrainedModel
from patchbay.models.neuript.moe import FeedForward

MASK_STD = 0.02


@dataclass
class PreTrainingOutput(ModelOutput):
    """`reconstruction` [B, D, T] is of the companded signal; `hidden` ([B, D, T], bool) are the samples that count."""

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    auxiliary_loss: torch.Tensor | None = None


class DecoderLayer(nn.Module):
    """A two-stage block of its own, then attention to one level of the encoder, channel by channel.

    q = LN(x); q += MSA(q, LN(m), LN(m)); y = LN(q); y += SwiGLU(y). The residual starts from the normed x.
    """

    def __init__(self, config: NeurIPTConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.block = Block(config)
        self.query_norm, self.memory_norm = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attention = Attention(config)
        self.feed_norm = nn.LayerNorm(width, eps=eps)
        self.feed = FeedForward(width, config.intermediate_size)
        self.prediction = nn.Linear(width, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor, channel_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, D, T, width] and a level [B, D, T_l, width] -> the next layer's input, a part of the guess [B, D, T]."""
        seen = None if channel_mask is None else channel_mask[:, :, None].expand(x.shape[:3])
        query = self.query_norm(self.block(x, None, seen, channel_mask)[0])
        query = query + self.dropout(self.attention(query, self.memory_norm(memory)))
        y = self.feed_norm(query)
        y = y + self.feed(y)
        return y, self.prediction(y)[..., 0]


class NeurIPTForPreTraining(NeurIPTPreTrainedModel):  # type: ignore[no-untyped-call]
    """Encoder, the mask's token, and a decoder layer for the embedding and for every block."""

    def __init__(self, config: NeurIPTConfig) -> None:
        super().__init__(config)
        self.neuript = NeurIPTModel(config)
        self.mask_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_blocks + 1))
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.mask_token, std=MASK_STD)

    def forward(
        self,
        signal: torch.Tensor,
        positions: torch.Tensor,
        channel_mask: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        shares: tuple[float, float] = SHARES,
        given: Shown | None = None,
        elsewhere: Usages | None = None,
    ) -> PreTrainingOutput:
        """`signal` [B, D, T], companded; `hidden`, `generator` and `shares` as in `draw`, or what it drew, `given`.

        The loss is over hidden samples of real channels; in training it has the experts' on top, which `elsewhere`
        makes that of a larger batch (NeurIPTModel).
        """
        signal = signal.to(self.dtype)
        given = given or self.draw(signal, hidden, generator, shares)
        encoded = self.encode(given, positions, channel_mask, elsewhere)
        assert encoded.hidden_states is not None
        visible = signal.masked_fill(given.hidden, 0.0)
        found = self._decode(visible, positions, channel_mask, encoded.hidden_states)
        counted = given.hidden if channel_mask is None else given.hidden & channel_mask[:, :, None]
        loss = _distance(found[counted], signal[counted], self.config.loss_power)
        if encoded.auxiliary_loss is not None:
            loss = loss + self.config.auxiliary_weight * encoded.auxiliary_loss
        return PreTrainingOutput(loss, found, given.hidden, encoded.auxiliary_loss)

    def draw(
        self,
        signal: torch.Tensor,
        hidden: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        shares: tuple[float, float] = SHARES,
    ) -> Shown:
        """For a batch [B, D, T]. `hidden` ([B, D, T], bool): what to hide, drawn as AAMP does by default, with one of
        `mask_ratios` for the batch; `shares` of it are replaced by the mask's token and by other samples.
        """
        generator = generator or torch.default_generator
        if hidden is None:
            hidden = amplitude_mask(signal, self._ratio(generator), generator)
        return shown(signal, hidden, generator, shares)

    def encode(
        self,
        given: Shown,
        positions: torch.Tensor,
        channel_mask: torch.Tensor | None = None,
        elsewhere: Usages | None = None,
    ) -> NeurIPTOutput:
        """Of what is shown, where no token looks at a hidden one."""
        signal = given.signal.to(self.dtype)
        tokens = self.neuript.embedding(signal)
        tokens = torch.where(given.masked[..., None], self.mask_token.to(tokens.dtype), tokens)
        found: NeurIPTOutput = self.neuript(signal, positions, channel_mask, given.hidden, tokens, elsewhere=elsewhere)
        return found

    def _ratio(self, generator: torch.Generator) -> float:
        ratios = self.config.mask_ratios
        return float(ratios[int(torch.randint(len(ratios), (1,), generator=generator))])

    def _decode(
        self,
        signal: torch.Tensor,
        positions: torch.Tensor,
        channel_mask: torch.Tensor | None,
        levels: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        """[B, D, T]: the sum of what the layers guess, each of which reads one level."""
        width = self.config.hidden_size
        electrodes = electrode_encoding(positions, width, self.config.coordinates, channel_mask)
        places = electrodes[:, :, None] + time_encoding(signal.shape[2], width, signal.device)
        places = places.to(signal.dtype)
        x = places if self.config.decoder_input == "positions" else self.neuript.embedding(signal) + places
        found = torch.zeros_like(signal)
        for layer, level in zip(self.decoder, levels, strict=True):
            x, part = run(layer, x, level, channel_mask, recomputes=self.neuript.recomputes)
            found = found + part
        return found


def _distance(found: torch.Tensor, wanted: torch.Tensor, power: float) -> torch.Tensor:
    """(mean |x - y|^p)^(1/p), in fp32."""
    return (found.float() - wanted.float()).abs().pow(power).mean().pow(1 / power)
