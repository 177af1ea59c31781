"""Classification of text, images and arrays."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from patchbay.engine.engine import Engine
from patchbay.engine.patience import Patience
from patchbay.store.keys import Scope
from patchbay_server.access import needs
from patchbay_server.bodies import JsonRoute
from patchbay_server.deps import EngineDep, Resolver, ResolverDep
from patchbay_server.inference_schemas import Classes
from patchbay_server.routes.items import to_inputs
from patchbay_server.schemas import ClassifyRequest
from patchbay_server.threads import run_inference

router = APIRouter(prefix="/v1/classify", tags=["inference"], route_class=JsonRoute)


@router.post("", responses={200: {"model": Classes}})
@needs(Scope.INFER, 400, 404, 413, 422, 500, 504)
async def classify(request: Request, body: ClassifyRequest, engine: EngineDep, resolver: ResolverDep) -> dict[str, Any]:
    """A label and its probabilities for every input, under the base, a delta or a merge."""
    return await run_inference(request, partial(_answer, body, engine, resolver), body.timeout)


def _answer(body: ClassifyRequest, engine: Engine, resolver: Resolver, patience: Patience) -> dict[str, Any]:
    resolved, ready = resolver(body, patience)
    results = engine.classify(ready, to_inputs(body.input), resolved.names, resolved.head, patience, resolver.take)
    return {
        "object": "list",
        "model": body.model,
        "data": [
            {"index": index, "label": result.label, "probabilities": result.probabilities}
            for index, result in enumerate(results)
        ],
        "patchbay": resolved.describe(ready.path, engine.warnings(resolved.canonical)),
    }
