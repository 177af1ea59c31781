"""The resident base: what it is, and whether it is still bit for bit what was loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from patchbay_server.deps import EngineDep

router = APIRouter(prefix="/v1/base", tags=["base"])


@router.get("")
def get_base(engine: EngineDep) -> dict[str, Any]:
    """Name, task, fingerprint, device and resident bytes of the base."""
    backbone = engine.backbone
    return {
        "name": backbone.name,
        "task": backbone.task.value,
        "fingerprint": backbone.fingerprint,
        "resident_digest": backbone.resident_digest,
        "device": str(backbone.device),
        "dtype": str(next(backbone.model.parameters()).dtype).removeprefix("torch."),
        "num_parameters": backbone.num_parameters,
        "resident_bytes": backbone.num_bytes,
        "labels": backbone.labels,
        "cached_deltas": {"count": len(engine.recipes.deltas), "bytes": engine.recipes.deltas.num_bytes},
    }


@router.post("/verify")
def verify_base(engine: EngineDep) -> dict[str, Any]:
    """Hashes the resident weights and compares with the digest taken at load."""
    return asdict(engine.verify())
