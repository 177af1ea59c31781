"""The resident base: what it is, and whether it is still bit for bit what was loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from patchbay.engine.engine import LANGUAGE, Engine
from patchbay.store.keys import Scope
from patchbay_server.access import ScopedRoute, needs
from patchbay_server.answer_schemas import Base, Verified
from patchbay_server.deps import CallerDep, EngineDep

router = APIRouter(prefix="/v1/base", tags=["base"], route_class=ScopedRoute)


@router.get("", responses={200: {"model": Base}})
@needs(Scope.READ)
def get_base(engine: EngineDep, caller: CallerDep) -> dict[str, Any]:
    """Name, task, fingerprint, device and resident bytes of the base; how busy all tenants are, for admins only."""
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
        "cached_deltas": _cached(engine) if caller.may(Scope.ADMIN) else None,
        "execution": _execution(engine, with_use=caller.may(Scope.ADMIN)),
    }


@router.post("/verify", responses={200: {"model": Verified}})
@needs(Scope.ADMIN)
def verify_base(engine: EngineDep) -> dict[str, Any]:
    """Hashes the resident weights and compares with the digest taken at load."""
    return asdict(engine.verify())


def _cached(engine: Engine) -> dict[str, int]:
    return {"count": len(engine.recipes.deltas), "bytes": engine.recipes.deltas.num_bytes}


def _execution(engine: Engine, *, with_use: bool) -> dict[str, Any]:
    """What was proved of the model at start, and the memory for keys and values: null where it writes no text."""
    proof = engine.proof
    found = {
        "decoupled": proof.ok,
        "error": proof.error,
        "reason": proof.reason,
        "break_even_bytes": engine.recipes.break_even_bytes if proof.ok else None,
        "layers": dict(proof.layers),
    }
    if engine.backbone.task not in LANGUAGE:
        return found | {"continuous_batching": None, "not_continuous_reason": None, "kv": None}
    why, memory = engine.language.not_continuous, engine.language.memory
    used = memory.used_tokens if with_use else None
    kv = {"bytes": memory.num_bytes, "budget_tokens": memory.budget_tokens, "used_tokens": used}
    return found | {"continuous_batching": why is None, "not_continuous_reason": why, "kv": kv}
