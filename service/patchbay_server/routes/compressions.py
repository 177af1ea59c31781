"""Compression as a service: blobs that make up a fine-tune -> a job that ends with a delta."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from patchbay.errors import NotFound
from patchbay.store.hub import Hub
from patchbay.store.keys import Scope
from patchbay.store.refusals import owned_by
from patchbay_server.access import needs
from patchbay_server.bodies import JsonRoute
from patchbay_server.deps import EngineDep, HubDep, TenantDep
from patchbay_server.jobs.base import Json
from patchbay_server.jobs.files import check_blobs, check_model
from patchbay_server.jobs.handlers import COMPRESSION, make_options
from patchbay_server.routes.jobs import SUBMITTED, SubmitterDep
from patchbay_server.schemas import CompressionRequest

router = APIRouter(prefix="/v1/compressions", tags=["jobs"], route_class=JsonRoute)


@router.post("", status_code=202, responses=SUBMITTED)
@needs(Scope.WRITE, 400, 404, 409, 413, 415, 422, 507)
def compress(
    body: CompressionRequest, engine: EngineDep, hub: HubDep, tenant: TenantDep, submit: SubmitterDep
) -> dict[str, Any]:
    """Queues the compression of a fine-tune whose files are blobs already."""

    def make_spec() -> Json:
        _check(hub, tenant, body)
        return {"fingerprint": engine.backbone.fingerprint}

    return submit(COMPRESSION, body, make_spec)


def _check(hub: Hub, tenant: str, body: CompressionRequest) -> None:
    """Everything that can be known to fail is said now and not in an hour."""
    hub.check_name(body.name)
    try:
        hub.catalog.get_merge(tenant, body.name)
    except NotFound:
        pass
    else:
        raise owned_by("merge", body.name)
    check_model(body.files)
    make_options(body)
    files = {f"files.{name}": digest for name, digest in body.files.items()}
    check_blobs(hub, tenant, {**files, "calibration": body.calibration, "labels": body.labels})
