"""Classification of text, images and arrays."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from patchbay_server.deps import EngineDep, ResolverDep
from patchbay_server.routes.items import check_path, to_inputs
from patchbay_server.schemas import ClassifyRequest

router = APIRouter(prefix="/v1/classify", tags=["inference"])


@router.post("")
def classify(body: ClassifyRequest, engine: EngineDep, resolver: ResolverDep) -> dict[str, Any]:
    """A label and its probabilities for every input, under the base, a delta or a merge."""
    check_path(body)
    resolved, path = resolver(body.model, body.patch, body.head)
    results = engine.classify(resolved.canonical, to_inputs(body.input), resolved.names, resolved.head)
    return {
        "object": "list",
        "model": body.model,
        "data": [
            {"index": index, "label": result.label, "probabilities": result.probabilities}
            for index, result in enumerate(results)
        ],
        "patchbay": resolved.describe(path),
    }
