"""`patchbay verify`: everything that an upload would check, without a server."""

from __future__ import annotations

from patchbay_server.commands.options import BaseOption, DeltaArgument, JsonOption
from patchbay_server.commands.output import facts, open_console, print_json, size_text
from patchbay_server.commands.quiet import silence_libraries


def verify(delta: DeltaArgument, base: BaseOption, as_json: JsonOption = False) -> None:
    """Check a delta file against its base: structure, fingerprint, names, shapes, values and the payload's hash."""
    from patchbay.architecture import Architecture
    from patchbay.checkpoint import Checkpoint
    from patchbay.delta import DeltaFile, read_delta

    silence_libraries()
    # Header first: a file that is no delta is said so before the base's weights are hashed.
    file = DeltaFile.open(delta)
    with open_console(stderr=True).status("verify"):
        checkpoint = Checkpoint.open(base)
        specs = Architecture.of(checkpoint).specs
        read_delta(delta, specs, checkpoint.fingerprint, read_base=checkpoint.read)
    found = {
        "ok": True,
        "path": str(delta),
        "bytes": file.num_bytes,
        "base": file.manifest.base.name,
        "fingerprint": checkpoint.fingerprint,
        "payload_sha256": file.manifest.payload_sha256,
        "tensors": len(file.manifest.tensors),
    }
    if as_json:
        print_json(found)
    else:
        open_console().print(facts({"ok": str(delta), **_details(found)}))


def _details(found: dict[str, object]) -> dict[str, object]:
    size = found["bytes"]
    assert isinstance(size, int)
    return {
        "bytes": size_text(size),
        "fingerprint": found["fingerprint"],
        "payload": found["payload_sha256"],
        "tensors": found["tensors"],
    }
