"""What a merge would be, without running it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from patchbay.store.keys import Scope
from patchbay_server.access import needs
from patchbay_server.answer_schemas import Preview
from patchbay_server.bodies import JsonRoute
from patchbay_server.deps import EngineDep, ResolverDep
from patchbay_server.schemas import PreviewRequest

router = APIRouter(prefix="/v1/merges:preview", tags=["merges"], route_class=JsonRoute)


@router.post("", responses={200: {"model": Preview}})
@needs(Scope.INFER, 400, 404, 413, 422)
def preview_merge(body: PreviewRequest, engine: EngineDep, resolver: ResolverDep) -> dict[str, Any]:
    """Method, path, bytes and milliseconds of a recipe, and of its terms what says whether they go together."""
    resolved = resolver.recipe(body.recipe)
    assert resolved.recipe is not None and resolved.canonical is not None, "a recipe is never the base alone"
    merged, found, seconds = engine.preview(resolved.canonical)
    return {
        "method": resolved.recipe.method,
        "merged_to": "delta" if merged.delta else "plan",
        "bytes": merged.num_bytes,
        "milliseconds": round(1000 * seconds, 3),
        "hash": resolved.canonical.hash,
        "terms": [resolved.names[digest] for digest, _ in resolved.canonical.terms],
        **asdict(found),
        "patchbay": resolved.describe("patched", merged.warnings),
    }
