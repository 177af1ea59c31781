"""Recordings: what windows of them are, and vectors of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from patchbay.engine.engine import Engine
from patchbay.engine.patience import Patience
from patchbay.errors import UnsupportedTask
from patchbay.store.keys import Scope
from patchbay_server.access import needs
from patchbay_server.deps import EngineDep, Resolver, ResolverDep
from patchbay_server.eeg import Prepared, prepared, steps_of
from patchbay_server.inference_schemas import EegClasses, EegEmbeddings
from patchbay_server.recordings import (
    FORM_SCHEMA,
    EegEmbedRequest,
    RecordingRequest,
    RecordingRoute,
    Turns,
    file_of,
    recordings_of,
)
from patchbay_server.resolve import Resolved
from patchbay_server.routes.embeddings import encoded
from patchbay_server.threads import run_inference

router = APIRouter(prefix="/v1/eeg", tags=["inference"], route_class=RecordingRoute)


@router.post("/classify", responses={200: {"model": EegClasses}}, openapi_extra=FORM_SCHEMA)
@needs(Scope.INFER, 400, 404, 413, 422, 500, 504)
async def classify(
    request: Request, body: RecordingRequest, engine: EngineDep, resolver: ResolverDep
) -> dict[str, Any]:
    """A label and its probabilities for every window of a recording, under the base, a delta or a merge."""
    answer = partial(_classified, body, file_of(request), engine, resolver, request.app.state.turns)
    return await run_inference(request, answer, body.timeout)


@router.post("/embed", responses={200: {"model": EegEmbeddings}}, openapi_extra=FORM_SCHEMA)
@needs(Scope.INFER, 400, 404, 413, 422, 500, 504)
async def embed(request: Request, body: EegEmbedRequest, engine: EngineDep, resolver: ResolverDep) -> dict[str, Any]:
    """A unit vector for every window of a recording: the mean of the encoder's last level over channels and time."""
    answer = partial(_embedded, body, file_of(request), engine, resolver, request.app.state.turns)
    return await run_inference(request, answer, body.timeout)


def _classified(
    body: RecordingRequest, file: bytes | None, engine: Engine, resolver: Resolver, turns: Turns, patience: Patience
) -> dict[str, Any]:
    resolved, ready = resolver(body, patience)
    found = _prepared(body, file, engine, resolved, ready.deltas, turns, patience)
    results = engine.classify(ready, found.inputs, resolved.names, resolved.head, patience)
    data = [
        {**place, "index": index, "label": result.label, "probabilities": result.probabilities}
        for index, (place, result) in enumerate(zip(found.places, results, strict=True))
    ]
    mean = {label: sum(r.probabilities[label] for r in results) / len(results) for label in results[0].probabilities}
    described = found.describe()
    described["recording"] |= {"label": max(mean, key=lambda label: mean[label]), "probabilities": mean}
    warnings = engine.warnings(resolved.canonical)
    own = {"patchbay": resolved.describe(ready.path, warnings)}
    return {"object": "list", "model": body.model, "data": data, **described, **own}


def _embedded(
    body: EegEmbedRequest, file: bytes | None, engine: Engine, resolver: Resolver, turns: Turns, patience: Patience
) -> dict[str, Any]:
    resolved, ready = resolver(body, patience)
    found = _prepared(body, file, engine, resolved, ready.deltas, turns, patience)
    vectors = engine.embed(ready, found.inputs, patience).vectors
    data = [
        {**place, "index": index, "embedding": encoded(row, body.encoding_format)}
        for index, (place, row) in enumerate(zip(found.places, vectors, strict=True))
    ]
    own = {"patchbay": resolved.describe(ready.path, engine.warnings(resolved.canonical))}
    return {"object": "list", "model": body.model, "data": data, **found.describe(), **own}


def _prepared(
    body: RecordingRequest,
    file: bytes | None,
    engine: Engine,
    resolved: Resolved,
    deltas: Mapping[str, Any],
    turns: Turns,
    patience: Patience,
) -> Prepared:
    """Raises UnsupportedTask where the base reads no recordings."""
    if engine.backbone.model.main_input_name != "signal":
        raise UnsupportedTask(f"{engine.backbone.name!r} does not read recordings", param="model")
    named = {resolved.names[key]: delta for key, delta in deltas.items()}
    steps, departures = steps_of(body, engine.backbone, named, resolved.head)
    with turns.taken(patience):
        return prepared(recordings_of(body, file), steps, body.onsets, departures)
