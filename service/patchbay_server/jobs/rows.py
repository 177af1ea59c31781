"""A job's fields as queues keep them, numbers and JSON text, and the job that they are. Knows no database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from patchbay_server.jobs.base import Job, Json, State


def read_job(fields: Mapping[str, Any]) -> Job:
    """Fields are named as the job's; what it has not is None or missing. Numbers may be text."""
    owner, lease_until = fields.get("owner"), fields.get("lease_until")
    return Job(
        id=fields["id"],
        tenant=fields["tenant"],
        kind=fields["kind"],
        spec=json.loads(fields["spec"]),
        state=State(fields["state"]),
        attempt=int(fields["attempt"]),
        losses=int(fields["losses"]),
        generation=int(fields["generation"]),
        owner=owner,
        lease_until=None if lease_until is None else float(lease_until),
        cancelling=int(fields["cancelling"]) == 1,
        progress=_load(fields.get("progress")),
        result=_load(fields.get("result")),
        error=_load(fields.get("error")),
        created_at=float(fields["created_at"]),
        updated_at=float(fields["updated_at"]),
    )


def dump(value: Json | None) -> str | None:
    return None if value is None else json.dumps(value)


def _load(text: str | None) -> Any:
    return None if text is None else json.loads(text)
