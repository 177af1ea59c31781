"""One file a resource. Routes translate: HTTP in, one call of the engine or the store, HTTP out."""

from __future__ import annotations

from fastapi import APIRouter

from patchbay_server.routes import (
    base,
    blobs,
    chat,
    completions,
    compressions,
    deltas,
    eeg,
    embeddings,
    health,
    jobs,
    merges,
    models,
    predictions,
    presigned,
    preview,
    transfers,
    uploads,
)

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    base.router,
    models.router,
    deltas.router,
    merges.router,
    preview.router,
    predictions.router,
    embeddings.router,
    eeg.router,
    completions.router,
    chat.router,
    blobs.router,
    uploads.router,
    presigned.router,
    compressions.router,
    jobs.router,
    transfers.router,
)
