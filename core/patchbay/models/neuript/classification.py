"""A classifier on NeurIPT: the levels' means over lobes, and one linear layer (IILP).

Knows nothing of names of channels and of recordings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from patchbay.models.neuript.blocks import Usages
from patchbay.models.neuript.config import NUM_LOBES, NeurIPTConfig
from patchbay.models.neuript.model import NeurIPTModel, NeurIPTPreTrainedModel
from patchbay.models.neuript.pooling import pooled


@dataclass
class EEGClassifierOutput(ModelOutput):
    """`logits` [B, labels]. Of two labels the model has one number z, and the logits are 0 and z."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    auxiliary_loss: torch.Tensor | None = None


class NeurIPTForEEGClassification(NeurIPTPreTrainedModel):  # type: ignore[no-untyped-call]
    """One head for every montage: it reads five lobes, of which those without a channel are zero."""

    def __init__(self, config: NeurIPTConfig) -> None:
        super().__init__(config)
        self.neuript = NeurIPTModel(config)
        width = config.num_pooled_levels * NUM_LOBES * config.hidden_size
        labels = int(config.num_labels or 0)
        if labels < 2:
            raise ValueError(f"a classifier has two labels or more, not {labels}")
        outputs = 1 if labels == 2 else labels
        hidden: int = config.head_size
        self.classifier = (
            nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
            if hidden
            else nn.Linear(width, outputs)
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        signal: torch.Tensor,
        positions: torch.Tensor,
        lobes: torch.Tensor,
        channel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        elsewhere: Usages | None = None,
    ) -> EEGClassifierOutput:
        """`signal` [B, D, T], `positions` [B, D, 3], `lobes` [B, D, 5] (bool); `labels` [B] are numbers of classes.

        With labels, `loss` is the balanced one, and in training the experts' on top, which `elsewhere` makes that of a
        larger batch (NeurIPTModel).
        """
        encoded = self.neuript(signal, positions, channel_mask, elsewhere=elsewhere)
        found = self.classifier(self.features(encoded.hidden_states, lobes, channel_mask))
        loss = None
        if labels is not None:
            loss = self.balanced_loss(found.float(), labels)
            if encoded.auxiliary_loss is not None:
                loss = loss + self.config.auxiliary_weight * encoded.auxiliary_loss
        return EEGClassifierOutput(loss, _logits(found), encoded.hidden_states, encoded.auxiliary_loss)

    def features(
        self, levels: tuple[torch.Tensor, ...], lobes: torch.Tensor, channel_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the head reads [B, levels * 5 * width] of an encoder's `hidden_states`."""
        if channel_mask is not None:
            lobes = lobes & channel_mask[:, :, None]
        return pooled(self._levels(levels), lobes)

    def _levels(self, levels: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """The embedding, then blocks from the last to the first, as in the authors' code."""
        blocks = list(reversed(levels[1:]))
        return blocks if self.config.pooled_levels == "blocks" else [levels[0], *blocks]

    def balanced_loss(self, found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Bal-BCE (paper, eq. 25) of the head's outputs [B, 1 or classes]: sigmoid cross-entropy of z_c + K
        logit(pi_c), summed over classes. K is 0 where no priors are known; for two classes pi is that of the second.
        """
        classes = found.shape[1]
        wanted = labels[:, None] if classes == 1 else functional.one_hot(labels, classes)
        if self.config.label_priors is not None:
            priors = torch.tensor(self.config.label_priors, device=found.device)[-classes:]
            found = found + self.config.prior_strength * torch.logit(priors, eps=1e-6)
        return classes * functional.binary_cross_entropy_with_logits(found, wanted.to(found.dtype))


def _logits(found: torch.Tensor) -> torch.Tensor:
    return torch.cat((torch.zeros_like(found), found), 1) if found.shape[1] == 1 else found
