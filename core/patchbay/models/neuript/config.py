"""What a NeurIPT model is: widths, depths, and the choices that the paper leaves open, each with its default.

Knows nothing of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

NUM_LOBES = 5  # slots of the head's input: a fixed number, so that a head outlives a channel that is missing


@dataclass(frozen=True, slots=True)
class _Size:
    hidden_size: int
    num_heads: int
    intermediate_size: int
    expert_size: int
    experts: tuple[int, ...] = (0, 0, 2, 4, 4, 6)


SIZES = {
    "test": _Size(48, 4, 48, 32, (0, 0, 2, 2, 2, 3)),
    "small": _Size(96, 4, 96, 64),
    "medium": _Size(192, 8, 192, 128),
    "paper": _Size(768, 8, 768, 512),
}


@strict
class NeurIPTConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Defaults are the paper's model. One entry of `merges` and `experts` is one block.

    - `merges`: time tokens that become one before the block's attention. `experts`: routed experts of each of the
      block's two feed-forward layers, 0 for a plain one.
    - `expert_share` of them (rounded up) run for a token; `gate_norm`: their softmax is over the chosen ones (`chosen`,
      the paper) or over all, of which the chosen keep theirs (`all`, the authors' code).
    - `coordinates`: positions in millimetres under one fixed map (`fixed`), or stretched to 0..49 by each recording's
      own extent and rounded (`stretched`, the authors' code), where an electrode's code depends on its neighbours.
    - `decoder_input`: the visible signal with its positions (`signal`, the paper) or positions alone (`positions`).
    - `loss_power`: p of the reconstruction's loss, (mean of the p-th powers of errors)^(1/p) (paper, eq. 7).
    - `pooled_levels`: what the head reads: the embedding and all blocks (`all`), or blocks alone (`blocks`).
    - `head_size`: width of a hidden layer of the head; 0 for none, as in the authors' code.
    - `label_priors`, `prior_strength`: pi and K of the balanced loss (paper, eq. 25).
    - `preprocessing`: what was done to the recordings that it was trained on (Steps); None where nobody said.

    Raises ValueError where widths do not fit each other.
    """

    model_type = "neuript"

    hidden_size: int = 768
    num_heads: int = 8
    intermediate_size: int = 768
    expert_size: int = 512
    merges: list[int] | tuple[int, ...] = (1, 4, 1, 2, 1, 2)
    experts: list[int] | tuple[int, ...] = (0, 0, 2, 4, 4, 6)
    expert_share: float = 0.5
    gate_norm: Literal["chosen", "all"] = "chosen"
    router_noise: float = 0.001
    importance_weight: float = 0.008
    auxiliary_weight: float = 0.8
    dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    coordinates: Literal["fixed", "stretched"] = "fixed"
    decoder_input: Literal["signal", "positions"] = "signal"
    loss_power: float = 1.0
    mask_ratios: list[float] | tuple[float, ...] = (0.2, 0.35, 0.5)
    pooled_levels: Literal["all", "blocks"] = "all"
    head_size: int = 0
    label_priors: list[float] | tuple[float, ...] | None = None
    prior_strength: float = 0.0
    preprocessing: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.hidden_size % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide a width of {self.hidden_size}")
        if any(width < 2 or width % 2 for width in axis_widths(self.hidden_size)):
            raise ValueError(f"a width of {self.hidden_size} does not split into three even parts, one an axis")
        if len(self.merges) != len(self.experts) or not self.merges:
            raise ValueError(f"{len(self.merges)} merges and {len(self.experts)} experts: give one of each a block")

    @classmethod
    def of_size(cls, size: str, **changes: Any) -> NeurIPTConfig:
        """`test`, `small` (1.46 M parameters), `medium` (5.8 M) or `paper` (92.2 M). Raises KeyError."""
        found = SIZES[size]
        given = {name: getattr(found, name) for name in found.__slots__}
        return cls(**{**given, **changes})

    @classmethod
    def paper(cls, **changes: Any) -> NeurIPTConfig:
        """92,212,000 parameters in embedding and encoder, of which a token meets 73,308,960."""
        return cls.of_size("paper", **changes)

    @property
    def num_blocks(self) -> int:
        return len(self.merges)

    @property
    def num_pooled_levels(self) -> int:
        return self.num_blocks + (self.pooled_levels == "all")

    @property
    def time_factor(self) -> int:
        """Samples that end as one token."""
        return prod(self.merges)


def axis_widths(hidden_size: int) -> tuple[int, int, int]:
    """Features for x, y and z: a third each, x and y rounded down to even numbers (authors' code)."""
    third = hidden_size // 3
    each = third - third % 2
    return each, each, hidden_size - 2 * each
