"""One file a resource. Routes translate: HTTP in, one call of the engine or the store, HTTP out."""

from __future__ import annotations

from fastapi import APIRouter

from patchbay_server.routes import base, completions, deltas, embeddings, health, merges, models, predictions

OPEN: tuple[APIRouter, ...] = (health.router,)
GUARDED: tuple[APIRouter, ...] = (
    base.router,
    models.router,
    deltas.router,
    merges.router,
    predictions.router,
    embeddings.router,
    completions.router,
    health.metrics_router,
)
