"""Embeddings in OpenAI's shape."""

from __future__ import annotations

import base64
from functools import partial
from typing import Any

import torch
from fastapi import APIRouter, Request

from patchbay.engine.engine import Engine
from patchbay.engine.patience import Patience
from patchbay.store.keys import Scope
from patchbay_server.access import needs
from patchbay_server.bodies import JsonRoute
from patchbay_server.deps import EngineDep, Resolver, ResolverDep
from patchbay_server.errors import UnsupportedParameter
from patchbay_server.inference_schemas import Embeddings
from patchbay_server.logs import note
from patchbay_server.routes.items import to_inputs
from patchbay_server.schemas import EmbeddingsRequest
from patchbay_server.threads import run_inference

router = APIRouter(prefix="/v1/embeddings", tags=["inference"], route_class=JsonRoute)


@router.post("", responses={200: {"model": Embeddings}})
@needs(Scope.INFER, 400, 404, 413, 422, 500, 504)
async def create_embeddings(
    request: Request, body: EmbeddingsRequest, engine: EngineDep, resolver: ResolverDep
) -> dict[str, Any]:
    """One unit vector an input: fp32 numbers, or their little-endian bytes in base64."""
    return await run_inference(request, partial(_answer, body, engine, resolver), body.timeout)


def _answer(body: EmbeddingsRequest, engine: Engine, resolver: Resolver, patience: Patience) -> dict[str, Any]:
    resolved, ready = resolver(body, patience)
    embedded = engine.embed(ready, to_inputs(body.input), patience, resolver.take)
    width = embedded.vectors.shape[1]
    if body.dimensions not in (None, width):
        raise UnsupportedParameter(f"vectors have the model's width: leave it out, or at {width}", param="dimensions")
    data = [
        {"object": "embedding", "index": index, "embedding": encoded(row, body.encoding_format)}
        for index, row in enumerate(embedded.vectors)
    ]
    note(prompt_tokens=embedded.num_tokens)
    usage = {"prompt_tokens": embedded.num_tokens, "total_tokens": embedded.num_tokens}
    return {
        "object": "list",
        "model": body.model,
        "data": data,
        "usage": usage,
        "patchbay": resolved.describe(ready.path, engine.warnings(resolved.canonical)),
    }


def encoded(row: torch.Tensor, encoding: str) -> list[float] | str:
    """As JSON has it: `float` or `base64`."""
    if encoding == "float":
        return row.tolist()
    return base64.b64encode(row.numpy().astype("<f4").tobytes()).decode()
