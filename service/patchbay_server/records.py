"""What answers show of a delta: its record in the catalog, and the summary of its manifest."""

from __future__ import annotations

import json
from typing import Any

from patchbay.delta import Manifest
from patchbay.store.base import DeltaRecord


def to_json(record: DeltaRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "version": record.version,
        "current": record.current,
        "digest": record.digest,
        "size": record.size,
        "created_at": record.created_at,
        "summary": json.loads(record.summary),
    }


def summarise(manifest: Manifest, num_bytes: int, num_parameters: int) -> dict[str, Any]:
    """What the catalog shows of a delta."""
    return {
        "method": manifest.compression.method,
        "density": manifest.compression.density,
        "bits_per_parameter": 8 * num_bytes / num_parameters,
        "ratio": manifest.provenance.original_bytes / num_bytes,
        "relative_error": manifest.statistics.relative_error,
        "labels": manifest.labels,
        "own_head": any(entry.kind == "added" for entry in manifest.tensors.values()),
        "finetuned": manifest.provenance.finetuned,
        "base": manifest.base.fingerprint,
    }
