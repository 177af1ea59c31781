"""`patchbay inspect`: what a delta file says of itself. Reads the header only; needs no base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchbay_server.commands.options import DeltaArgument, JsonOption
from patchbay_server.commands.output import facts, listing, open_console, print_json, size_text

if TYPE_CHECKING:
    from patchbay.delta import DeltaFile
    from patchbay.delta.manifest import Dense, Manifest, Sparse

SHOWN_LABELS = 12
TENSOR_COLUMNS = ("tensor", "kind", "shape", "dtype", "values", "kept", "density", "bytes")
# How a tensor's streams end, and what of the file they are.
_PARTS = {
    "positions": "positions",
    "values": "values",
    "own_positions": "own",
    "own_values": "own",
    "exception_positions": "exceptions",
    "exception_bits": "exceptions",
}


def inspect(
    delta: DeltaArgument,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a delta file's header: base, method, statistics, provenance and where its bytes go."""
    from patchbay.delta import DeltaFile

    file = DeltaFile.open(delta)
    described = describe(file)
    rows = [describe_tensor(file, name, entry) for name, entry in file.manifest.tensors.items()] if tensors else None
    if as_json:
        print_json(described if rows is None else described | {"tensors": rows})
        return
    console = open_console()
    console.print(facts(_summary(described)))
    if rows is not None:
        console.print()
        console.print(_tensor_table(rows))


def describe(file: DeltaFile) -> dict[str, Any]:
    """`parameters` counts the tensors that the delta names: a fine-tune's unchanged tensors are not in its file."""
    from patchbay.delta.manifest import numel

    manifest = file.manifest
    parameters = sum(numel(entry.shape) for entry in manifest.tensors.values())
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
        "payload_sha256": manifest.payload_sha256,
        "bytes": itemise(file),
        "ratio": manifest.provenance.original_bytes / file.num_bytes,
        "parameters": parameters,
        "kept": manifest.num_kept,
        "bits_per_parameter": 8 * file.num_bytes / max(1, parameters),
        "num_tensors": _count_kinds(manifest),
    }


def itemise(file: DeltaFile) -> dict[str, int]:
    """Where the file's bytes go; all items but `total` sum to it."""
    items = dict.fromkeys(("header", "positions", "values", "dense", "own", "exceptions"), 0)
    items["header"] = file.header_bytes
    for name, size in file.stream_bytes.items():
        items[_PARTS.get(name.rpartition(".")[2], "dense")] += size
    return items | {"total": file.num_bytes}


def describe_tensor(file: DeltaFile, name: str, entry: Sparse | Dense) -> dict[str, Any]:
    """One row of `--tensors`. `bytes` is of the tensor's own streams: dense tensors are packed together, and have none
    unless they carry exceptions.
    """
    from patchbay.delta.manifest import Sparse, numel

    total = numel(entry.shape)
    own = entry.own.count if isinstance(entry, Sparse) and entry.own else 0
    kept = entry.count + own if isinstance(entry, Sparse) else total
    streams = [file.stream_bytes[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in file.stream_bytes]
    return {
        "name": name,
        "kind": entry.kind,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "values": entry.values,
        "kept": kept,
        "density": kept / total if total else None,
        "exceptions": entry.exceptions.count if entry.exceptions else 0,
        "bytes": sum(streams) if streams else None,
    }


def _count_kinds(manifest: Manifest) -> dict[str, int]:
    kinds = [entry.kind for entry in manifest.tensors.values()]
    return {kind: kinds.count(kind) for kind in ("sparse", "delta", "added", "copied")}


def _summary(described: dict[str, Any]) -> dict[str, object]:
    parts = {name: size for name, size in described["bytes"].items() if size and name != "total"}
    params = ", ".join(f"{name} {value}" for name, value in described["params"].items())
    kinds = ", ".join(f"{count} {kind}" for kind, count in described["num_tensors"].items() if count)
    provenance = described["provenance"]
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
        "tensors": kinds or "none: the fine-tune is its base",
        "bytes": size_text(described["bytes"]["total"]),
        **{f"  {name}": f"{size:,}" for name, size in parts.items()},
        "ratio": f"{described['ratio']:.1f}",
        "bits per parameter": f"{described['bits_per_parameter']:.3f} (of {described['parameters']:,} in its tensors)",
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
            "packed" if row["bytes"] is None else f"{row['bytes']:,}",
        )
        for row in rows
    ]
    return listing(TENSOR_COLUMNS, cells, numeric=("kept", "density", "bytes"))
