"""Transfer: how far to go from the base towards a fine-tune. A sweep over scales, as a job."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from patchbay_server.deps import EngineDep, HubDep, QueueDep, TenantDep
from patchbay_server.jobs.files import check_blobs
from patchbay_server.jobs.handlers import TRANSFER
from patchbay_server.routes.deltas import split
from patchbay_server.routes.jobs import KeyHeader, accepted, make_key, submit
from patchbay_server.schemas import TransferRequest

router = APIRouter(prefix="/v1/transfers", tags=["jobs"])


@router.post("", status_code=202, responses={200: {"description": "The job that this Idempotency-Key has made."}})
def transfer(
    body: TransferRequest,
    response: Response,
    engine: EngineDep,
    hub: HubDep,
    queue: QueueDep,
    tenant: TenantDep,
    idempotency_key: KeyHeader = None,
) -> dict[str, Any]:
    """Queues the sweep: the target's score against the retained one, for every scale."""
    key = make_key(idempotency_key, TRANSFER, body)
    before = queue.find_key(tenant, key) if key else None
    if before is not None:
        return accepted(before, response, created=False)
    record = hub.catalog.get_delta(tenant, *split(body.model))
    check_blobs(hub, {"calibration": body.calibration})
    spec = {
        "request": body.model_dump(mode="json"),
        "fingerprint": engine.backbone.fingerprint,
        "digest": record.digest,  # pinned: a roll-out meanwhile does not change what is measured
    }
    return submit(queue, tenant, TRANSFER, spec, key, response)
