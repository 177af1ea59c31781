"""What a model that is pre-trained must guess: amplitude-aware masks (AAMP), and what stands in place of the hidden.

Knows nothing of models.
"""

from __future__ import annotations

import torch


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


def replaced(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    mask_token: torch.Tensor,
    generator: torch.Generator,
    shares: tuple[float, float] = (0.8, 0.1),
) -> torch.Tensor:
    """[B, D, T, width] with the tokens of `hidden` ([B, D, T], bool) replaced: the first share by the mask's token, the
    second by other tokens of the batch, the rest left as they are (BERT's 80/10/10), by count.
    """
    places = hidden.flatten().nonzero()[:, 0]
    places = places[torch.randperm(len(places), generator=generator).to(places.device)]
    masked, swapped = (round(share * len(places)) for share in shares)
    flat = tokens.flatten(0, -2)
    others = torch.randint(len(flat), (swapped,), generator=generator).to(places.device)
    found = flat.index_put((places[:masked],), mask_token.to(flat.dtype))
    found = found.index_put((places[masked : masked + swapped],), flat[others])
    return found.view(tokens.shape)
