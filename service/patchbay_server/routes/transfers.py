"""Transfer: how far to go from the base towards a fine-tune. A sweep over scales, as a job."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from patchbay.store.keys import Scope
from patchbay_server.access import needs
from patchbay_server.bodies import JsonRoute
from patchbay_server.deps import EngineDep, HubDep, TenantDep
from patchbay_server.jobs.base import Json
from patchbay_server.jobs.files import check_blobs
from patchbay_server.jobs.handlers import TRANSFER
from patchbay_server.jobs.inputs import check_retained
from patchbay_server.pins import split
from patchbay_server.routes.jobs import SUBMITTED, SubmitterDep
from patchbay_server.schemas import TransferRequest

router = APIRouter(prefix="/v1/transfers", tags=["jobs"], route_class=JsonRoute)
BLOBS = ("calibration", "labels", "retained", "retained_labels")


@router.post("", status_code=202, responses=SUBMITTED)
@needs(Scope.WRITE, 400, 404, 409, 413, 415, 422, 507)
def transfer(
    body: TransferRequest, engine: EngineDep, hub: HubDep, tenant: TenantDep, submit: SubmitterDep
) -> dict[str, Any]:
    """Queues the sweep: the target's score against the retained one, for every scale."""

    def make_spec() -> Json:
        record = hub.catalog.get_delta(tenant, *split(body.model))
        check_retained(body.retained, body.retained_labels)
        check_blobs(hub, tenant, {name: getattr(body, name) for name in BLOBS})
        # The digest is pinned: a roll-out meanwhile does not change what is measured.
        return {"fingerprint": engine.backbone.fingerprint, "digest": record.digest}

    return submit(TRANSFER, body, make_spec)
