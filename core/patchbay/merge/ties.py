"""TIES-Merging (Yadav et al., arXiv 2306.01708): trim every term by size, elect signs, average those who agree."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from patchbay.merge.consensus import elected
from patchbay.merge.stack import Params, Stacks
from patchbay.merge.trim import by_size


def ties(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """`density`, `scope`, `rescale`: `trim.by_size`; `sign`, `tie`, `divisor`, `normalize`: `consensus`.

    The paper's code keeps one entry more than floor(density n); exactly that many are kept here. mergekit keeps one
    entry of a tensor so small that floor(density n) is 0.
    """
    return elected(by_size(stacks, params), params)
