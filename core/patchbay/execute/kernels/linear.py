"""The base's own product for few rows, as a step of many answers has them.

torch's library turns a matrix of bf16 round at every call, which for few rows takes longer than the product, or wants a
second copy of the model that is turned round. Knows nothing of deltas and layers.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from patchbay.execute.kernels import native

MOST = 64  # rows; with more of them turning the matrix round costs next to nothing


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b: [n, in], [out, in], [out] -> [n, out], summed in fp32 and rounded once. Where the C code makes it, the
    bits of a row do not depend on the others.
    """
    if not _takes(x, weight, bias):
        return functional.linear(x, weight, bias)
    (rows, inputs), outputs = x.shape, weight.shape[0]
    y = x.new_empty(rows, outputs)
    start = None if bias is None else bias.data_ptr()
    sizes = (rows, inputs, outputs)
    native.linear(x.data_ptr(), weight.data_ptr(), start, y.data_ptr(), sizes, torch.get_num_threads())
    return y


def _takes(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    return (
        0 < len(x) <= MOST
        and all(_is_plain(tensor) for tensor in (x, weight, bias) if tensor is not None)
        and not torch.is_grad_enabled()
        and native.has_bf16()
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype is torch.bfloat16 and tensor.is_cpu and tensor.is_contiguous()
