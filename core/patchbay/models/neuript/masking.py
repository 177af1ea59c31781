"""What a model that is pre-trained must guess: amplitude-aware masks (AAMP), and what stands in place of the hidden.

Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SHARES = (0.8, 0.1)  # of hidden samples: the mask's token in their place, other samples; the rest stays (BERT)


@dataclass(frozen=True, slots=True)
class Shown:
    """What an encoder is shown, [B, D, T] each: `signal`, in which others stand in place of some of the samples that
    are `hidden`, and where the mask's token does, `masked`.
    """

    hidden: torch.Tensor
    signal: torch.Tensor
    masked: torch.Tensor

    def rows(self, part: slice) -> Shown:
        return Shown(self.hidden[part], self.signal[part], self.masked[part])


def amplitude_mask(
    signal: torch.Tensor, ratio: float, generator: torch.Generator, xi: torch.Tensor | None = None
) -> torch.Tensor:
    """[B, D, T] -> bool [B, D, T], True where hidden: in every channel the round(T ratio) samples whose amplitudes lie
    next to each other in rank (paper, eq. 4).

    `xi` ([B, D] in [0, 1), drawn by default) says which: their middle is the xi T-th smallest; at the ends the window
    is shifted, so that the count stays. Ranks of equal samples are in order of time. The mask of a x + b (a > 0), or
    after companding, is the same.
    """
    length = signal.shape[-1]
    count = round(length * ratio)
    if xi is None:
        xi = torch.rand(signal.shape[:-1], generator=generator)
    first = ((xi.double() * length).round().long() - count // 2).clamp(0, length - count)
    order = signal.argsort(stable=True, dim=-1)
    ranks = torch.empty_like(order).scatter_(-1, order, torch.arange(length, device=signal.device).expand_as(order))
    begin = first[..., None].to(signal.device)
    return (ranks >= begin) & (ranks < begin + count)


def random_mask(signal: torch.Tensor, ratio: float, generator: torch.Generator) -> torch.Tensor:
    """As many samples a channel, whichever: what AAMP is compared with."""
    count = round(signal.shape[-1] * ratio)
    chosen = torch.rand(signal.shape, generator=generator).argsort(-1)[..., :count]
    return torch.zeros(signal.shape, dtype=torch.bool).scatter_(-1, chosen, value=True).to(signal.device)


def shown(
    signal: torch.Tensor, hidden: torch.Tensor, generator: torch.Generator, shares: tuple[float, float] = SHARES
) -> Shown:
    """Of the samples of `hidden` ([B, D, T], bool) the first share is masked, the second replaced by other samples of
    the batch, and the rest left as it is, by count.
    """
    places = hidden.flatten().nonzero()[:, 0]
    places = places[torch.randperm(len(places), generator=generator).to(places.device)]
    masked, swapped = (round(share * len(places)) for share in shares)
    flat = signal.flatten()
    others = torch.randint(len(flat), (swapped,), generator=generator).to(places.device)
    found = flat.index_put((places[masked : masked + swapped],), flat[others])
    is_masked = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, places[:masked], True)
    return Shown(hidden, found.view(signal.shape), is_masked.view(signal.shape))
