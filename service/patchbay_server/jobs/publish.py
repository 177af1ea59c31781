"""From a delta file to a version in the store, by the same way and with the same checks as an upload."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from patchbay.architecture import Architecture, TensorSpec
from patchbay.backbone import Backbone, parse_task
from patchbay.checkpoint import Checkpoint
from patchbay.delta import read_delta
from patchbay.errors import WrongBase
from patchbay.models.heads import check_head
from patchbay.store.base import DeltaRecord
from patchbay.store.hub import Hub
from patchbay_server.records import summarise

CHUNK = 1 << 20


@dataclass(frozen=True)
class Base:
    """The server's base as a worker needs it: names, shapes and the fingerprint, without the weights in memory."""

    source: str
    task: str | None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.source)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        return Architecture.of(self.checkpoint, parse_task(self.task)).specs

    @cached_property
    def backbone(self) -> Backbone:
        """With the weights: only a delta that brings a head is tried on."""
        return Backbone.load(self.checkpoint.folder, task=self.task, device="cpu")

    def check(self, fingerprint: str) -> None:
        """Raises WrongBase where the job was made for another base than this worker's."""
        if self.checkpoint.fingerprint != fingerprint:
            raise WrongBase(
                f"the job was asked of a server with another base ({fingerprint[:19]}..., this worker's is "
                f"{self.checkpoint.fingerprint[:19]}...): start it with the server's base",
                param="base",
            )


def publish(hub: Hub, base: Base, file: Path, name: str, *, tenant: str, activate: bool, max_bytes: int) -> DeltaRecord:
    """The same bytes again are the same version, so that an attempt after a crash changes nothing.

    Raises what an upload is refused with: DeltaError, InvalidName, NameTaken, StoreFull, StoreUnavailable.
    """
    with hub.begin_upload(max_bytes) as upload, file.open("rb") as source:
        while chunk := source.read(CHUNK):
            upload.write(chunk)
        upload.finish()
        delta = read_delta(upload.path, base.specs, base.checkpoint.fingerprint, read_base=base.checkpoint.read)
        if delta.added:
            check_head(base.backbone, delta)
        parameters = sum(spec.numel for spec in base.specs.values())
        summary = json.dumps(summarise(delta.manifest, upload.size, parameters))
        return hub.commit(upload, tenant, name, summary, activate)[0]
