"""The resident base: what it is, and whether it is still bit for bit what was loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from patchbay.engine.engine import LANGUAGE, Engine
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
        "execution": _execution(engine),
    }


@router.post("/verify")
def verify_base(engine: EngineDep) -> dict[str, Any]:
    """Hashes the resident weights and compares with the digest taken at load."""
    return asdict(engine.verify())


def _execution(engine: Engine) -> dict[str, Any]:
    """What was proved of the model at start, and the memory for keys and values: null where it writes no text."""
    proof = engine.proof
    found = {"decoupled": proof.ok, "error": proof.error, "reason": proof.reason, "layers": dict(proof.layers)}
    if engine.backbone.task not in LANGUAGE:
        return found | {"continuous_batching": None, "not_continuous_reason": None, "kv": None}
    why, memory = engine.language.not_continuous, engine.language.memory
    kv = {"bytes": memory.num_bytes, "budget_tokens": memory.budget_tokens, "used_tokens": memory.used_tokens}
    return found | {"continuous_batching": why is None, "not_continuous_reason": why, "kv": kv}
