"""`patchbay inspect`: what a delta file says of itself. Reads header and manifest only; needs no base."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchbay_server.commands.options import DeltaArgument, JsonOption
from patchbay_server.commands.output import HEAD_ALONE, facts, listing, open_console, print_json, size_text

if TYPE_CHECKING:
    from patchbay.delta import DeltaFile
    from patchbay.delta.manifest import Entry, Manifest

SHOWN_LABELS = 12
TENSOR_COLUMNS = ("tensor", "kind", "shape", "dtype", "values", "kept", "density", "raw bytes")


def inspect(
    delta: DeltaArgument,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a delta file's manifest: base, method, statistics, provenance and where its bytes go.

    Reads no payload: `patchbay verify` does, and finds damage there.
    """
    from patchbay.delta import DeltaFile

    file = DeltaFile.open(delta)
    described = describe(file)
    rows = describe_tensors(file) if tensors else None
    if as_json:
        print_json(described if rows is None else described | {"tensors": rows})
        return
    console = open_console()
    console.print(facts(_summary(described)))
    if rows is not None:
        console.print()
        console.print(_tensor_table(rows))


def describe(file: DeltaFile) -> dict[str, Any]:
    """`parameters` is the base's where the file says it, else counts the tensors that the delta changes."""
    manifest = file.manifest
    items = file.itemised()
    parameters = _count_parameters(manifest)
    # Version 1 keeps heads and norms in one stream: its heads' bytes cannot be told apart.
    body = file.num_bytes - items["added"] if "dense" not in items else None
    return {
        "path": str(file.path),
        "format_version": manifest.format_version,
        "base": manifest.base.model_dump(),
        **manifest.compression.model_dump(),
        "statistics": manifest.statistics.model_dump(),
        "provenance": manifest.provenance.model_dump(),
        "labels": None if manifest.labels is None else list(manifest.labels),
        "tokens": [token.model_dump() for token in manifest.tokens],
        "missing": list(manifest.missing),
        "head_alone": manifest.is_head_alone,
        "payload_sha256": manifest.payload_sha256,
        "bytes": {**items, "total": file.num_bytes},
        "ratio": manifest.provenance.original_bytes / file.num_bytes,
        "parameters": parameters,
        "kept": _count_kept(manifest),
        "bits_per_parameter": 8 * file.num_bytes / max(1, parameters),
        "bits_per_parameter_without_heads": None if body is None else 8 * body / max(1, parameters),
        "num_tensors": _count_kinds(manifest),
    }


def describe_tensors(file: DeltaFile) -> list[dict[str, Any]]:
    """The rows of `--tensors`. `raw_bytes` is of a tensor's streams before compression: tensors share frames."""
    raw_bytes: Counter[str] = Counter()
    for frame in file.frames:
        for stream, length in frame.lengths.items():
            raw_bytes[stream.name] += length
    known = file.manifest.format_version > 1
    tensors = file.manifest.tensors.items()
    return [describe_tensor(name, entry) | {"raw_bytes": raw_bytes[name] if known else None} for name, entry in tensors]


def describe_tensor(name: str, entry: Entry) -> dict[str, Any]:
    from patchbay.delta.manifest import LowRank, Sparse, numel

    total = numel(entry.shape)
    own = entry.own.count if isinstance(entry, Sparse) and entry.own else 0
    kept = entry.count + own if isinstance(entry, Sparse) else total
    bands = entry.bands if isinstance(entry, Sparse | LowRank) else ()
    own_values = [] if isinstance(entry, LowRank) else [entry.values]
    return {
        "name": name,
        "kind": entry.kind,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "values": ", ".join([*own_values, *(f"{band.values} x{band.rank}" for band in bands)]),
        "kept": kept,
        "density": kept / total if total else None,
        "exceptions": entry.exceptions.count if entry.exceptions else 0,
        "neurons": entry.neurons,
        "appended": entry.appended,
    }


def _count_parameters(manifest: Manifest) -> int:
    from patchbay.delta.manifest import numel

    stated = manifest.provenance.parameters
    if stated is not None:
        return stated
    return sum(numel(entry.shape) for entry in manifest.tensors.values() if entry.kind != "added")


def _count_kept(manifest: Manifest) -> int:
    """Entries of the sparse tensors, or of all where none is sparse."""
    from patchbay.delta.manifest import numel

    whole = sum(numel(e.shape) for e in manifest.tensors.values() if e.kind in ("delta", "low_rank", "lossless"))
    return manifest.num_kept if any(e.kind == "sparse" for e in manifest.tensors.values()) else whole


def _count_kinds(manifest: Manifest) -> dict[str, int]:
    kinds = [entry.kind for entry in manifest.tensors.values()]
    return {kind: kinds.count(kind) for kind in ("sparse", "delta", "low_rank", "lossless", "added", "copied")}


def _summary(described: dict[str, Any]) -> dict[str, object]:
    parts = {name: size for name, size in described["bytes"].items() if size and name != "total"}
    params = ", ".join(f"{name} {value}" for name, value in described["params"].items())
    kinds = ", ".join(f"{count} {kind}" for kind, count in described["num_tensors"].items() if count)
    provenance = described["provenance"]
    without = described["bits_per_parameter_without_heads"]
    return {
        "delta": described["path"],
        "base": described["base"]["name"],
        "fingerprint": described["base"]["fingerprint"],
        "method": described["method"] + (f" ({params})" if params else ""),
        "density": f"{described['density']:g} ({described['kept']:,} entries kept)",
        "seed": described["seed"],
        "relative error": f"{described['statistics']['relative_error']:.4g}",
        "sigma": f"{described['statistics']['sigma']:.4g}",
        "made from": f"{provenance['finetuned']}, {size_text(provenance['original_bytes'])}, with {provenance['tool']}",
        "labels": _labels(described["labels"]),
        "tokens": ", ".join(token["content"] for token in described["tokens"]) or None,
        "changes": HEAD_ALONE if described["head_alone"] else None,
        "tensors": kinds or "none: the fine-tune is its base",
        "bytes": size_text(described["bytes"]["total"]),
        **{f"  {name}": f"{size:,}" for name, size in parts.items()},
        "ratio": f"{described['ratio']:.1f}",
        "bits per parameter": f"{described['bits_per_parameter']:.4f} (of {described['parameters']:,} parameters)",
        "  without heads": None if without is None else f"{without:.4f}",
    }


def _labels(labels: list[str] | None) -> str | None:
    if labels is None:
        return None
    more = f", ... ({len(labels)} in all)" if len(labels) > SHOWN_LABELS else ""
    return ", ".join(labels[:SHOWN_LABELS]) + more


def _tensor_table(rows: list[dict[str, Any]]) -> object:
    cells = [
        (
            row["name"],
            row["kind"],
            "x".join(map(str, row["shape"])) or "scalar",
            row["dtype"],
            row["values"],
            f"{row['kept']:,}",
            None if row["density"] is None else f"{row['density']:.4f}",
            None if row["raw_bytes"] is None else f"{row['raw_bytes']:,}",
        )
        for row in rows
    ]
    return listing(TENSOR_COLUMNS, cells, numeric=("kept", "density", "raw bytes"))
