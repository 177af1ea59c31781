"""Layers that give every row of a batch its own plan's answer: one class for each kind, the kernel is the delta's.

Each is the model's own layer with another class, so names, memory and `isinstance` stay what they were; outside of a
`delta_context` it is the layer that it was. Knows nothing of requests. Inference only: outputs are changed in place.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from patchbay.execute.active import ActivePlan
from patchbay.execute.context import Batch, Segment, entered, running
from patchbay.execute.kernels.linear import linear

Names = Mapping[str, str]  # a layer's own parameters -> the checkpoint's names


def add_deltas(batch: Batch, name: str, x: torch.Tensor, y: torch.Tensor) -> None:
    """y = x W0^T becomes a y + sum_t C_t (x D_t^T), in place, every row with its own a and C.

    x D_t^T is made once for all rows that use D_t, whatever else their recipes are.
    """
    work = batch.work(name)
    if work is None:
        return
    inputs, outputs = batch.split(x), batch.split(y)
    if work.scale is not None:
        outputs.mul_(work.scale.of_rows())
    for products in work.products:
        products.add(inputs, outputs)


def own_bias(batch: Batch, names: Names, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Every row's bias [B, out], where it cannot be added with the base's product: rows have others, or scale it."""
    if bias is None:
        return None
    own, work = batch.values(names.get("bias"), bias), batch.work(names["weight"])
    if own is None and work is not None and work.scale is not None:
        return bias.expand(batch.num_rows, -1)
    return own


def with_merged(
    layer: DeltaLinear | DeltaConv1D, batch: Batch, long: Sequence[Segment], x: torch.Tensor, width: int
) -> torch.Tensor:
    """[..., width]: the rows of `long` have x (a W0 + sum_t C_t D_t)^T at once, all others what they have without them.

    A matrix is merged for this one product and then gone: it may be as large as the base's.
    """
    inputs = batch.split(x)
    y = inputs.new_empty(*inputs.shape[:2], width)
    weight, bias = layer.names["weight"], layer.names.get("bias")
    for segment in long:
        assert segment.plan is not None
        own_bias = layer.bias if bias is None else segment.plan.merged(bias)
        rows = batch.place(segment.rows)
        found = y[rows].flatten(0, 1)
        _product(inputs[rows].flatten(0, 1), segment.plan.merged_matrix(weight), own_bias, found)
        if not isinstance(rows, slice):  # then it is a copy
            y[rows] = found.view(-1, *y.shape[1:])
    rest = batch.without(long)
    if rest is not None:
        with entered(rest[1]):
            y[rest[0]] = layer(inputs[rest[0]])
    return y.view(*x.shape[:-1], width)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.T, out=out)
    else:
        torch.addmm(bias, x, weight.T, out=out)


class DeltaLinear(nn.Linear):
    names: Names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = running()
        if batch is not None and (long := batch.long(self.names["weight"], x)):
            return with_merged(self, batch, long, x, self.out_features)
        bias = None if batch is None else own_bias(batch, self.names, self.bias)
        # Of an input with the strides of a larger one, as a slice of the last tokens, torch makes a product a row, or
        # one that is slow: also where there is but one row, which is contiguous by name.
        rows = x.reshape(-1, x.shape[-1])
        y = linear(rows, self.weight, self.bias if bias is None else None)
        y = y.view(*x.shape[:-1], y.shape[-1])
        if batch is not None:
            add_deltas(batch, self.names["weight"], x, y)
        if batch is not None and bias is not None:
            batch.split(y).add_(bias[:, None])
        return y


class DeltaConv1D(Conv1D):
    names: Names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = running()
        if batch is not None and (long := batch.long(self.names["weight"], x)):
            return with_merged(self, batch, long, x, self.nf)
        bias = self.bias if batch is None else own_bias(batch, self.names, self.bias)
        if batch is None or bias is None:
            y: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        else:
            y = x @ self.weight
        if batch is not None:
            add_deltas(batch, self.names["weight"], x, y)
            if bias is not None:
                batch.split(y).add_(bias[:, None])
        return y


class DeltaEmbedding(nn.Embedding):
    names: Names

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y = super().forward(ids)
        batch = running()
        name = self.names["weight"]
        if batch is None or not batch.changes(name):
            return y
        if ids.shape[0] not in (1, batch.num_rows):
            raise ValueError(f"ids of shape {list(ids.shape)} in a batch of {batch.num_rows} rows")
        if ids.shape[0] == 1 < batch.num_rows:  # positions, which are the same for all
            ids, y = ids.expand(batch.num_rows, -1), y.repeat(batch.num_rows, *[1] * (y.dim() - 1))
        for segment in batch.segments:
            if segment.plan is not None:
                self._add(segment.plan, name, ids, y, list(segment.rows))
        return y

    def _add(self, plan: ActivePlan, name: str, ids: torch.Tensor, y: torch.Tensor, rows: list[int]) -> None:
        tokens = ids[rows].reshape(-1)
        own = y[rows].reshape(len(tokens), -1).float()
        scale = plan.base_scale(name)
        if scale is not None:
            own *= _of(scale, tokens)
        for delta, coefficients in plan.terms(name):
            own += delta.kernels[name].rows(tokens) * _of(coefficients, tokens)
        y[rows] = own.reshape(len(rows), *y.shape[1:]).to(y.dtype)


def _of(coefficients: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
    return coefficients if len(coefficients) == 1 else coefficients[neurons, None]


class DeltaNorm:
    """Mixed into a normalisation, whose output is a product with its weight, plus its bias: `unit` is the same layer
    with weights of 1, or `zero_centred` ones of 0, and without a bias.
    """

    names: Names
    unit: nn.Module
    zero_centred: bool

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        batch = running()
        if batch is None or not any(map(batch.changes, self.names.values())):
            found: torch.Tensor = super().forward(x)  # type: ignore[misc]
            return found
        y = batch.split(self.unit(x))
        weight, bias = (self._own(batch, key) for key in ("weight", "bias"))
        y = y * ((1 + weight) if self.zero_centred else weight)
        return (y if bias is None else y + bias).to(x.dtype).reshape(x.shape)  # type: ignore[no-any-return]

    def _own(self: Any, batch: Batch, key: str) -> torch.Tensor | None:
        base = getattr(self, key, None)
        if base is None:
            return None
        own = batch.values(self.names.get(key), base)
        return base if own is None else own[:, None]


class PerPlan:
    """Mixed into any other layer with parameters of its own: every plan's rows run by themselves, with merged ones."""

    names: Names
    shadow: nn.Module

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = running()
        if batch is None or not any(map(batch.changes, self.names.values())):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        outputs: list[Any] = []
        for segment in batch.segments:
            rows = torch.tensor(segment.rows, device=batch.device)
            layer = copy.copy(self.shadow)
            if segment.plan is not None:
                merged = {key: nn.Parameter(segment.plan.merged(name), False) for key, name in self.names.items()}
                layer._parameters = {**layer._parameters, **merged}
            with entered(batch.narrowed(segment)):
                outputs.append(
                    layer(
                        *(_rows_of(batch, arg, rows) for arg in args),
                        **{key: _rows_of(batch, value, rows) for key, value in kwargs.items()},
                    )
                )
        order = torch.argsort(torch.tensor([row for segment in batch.segments for row in segment.rows]))
        return torch.cat(outputs)[order.to(batch.device)]


def _rows_of(batch: Batch, value: Any, rows: torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == batch.num_rows:
        return value[rows]
    return value
