"""Sound containers whose manifest lies, contradicts itself or does not fit the base."""

from __future__ import annotations

import json
from typing import Any

from tests.attacks.registry import attack
from tests.delta.samples import assemble, sample, versioned

from patchbay.delta import Manifest
from patchbay.delta.streams import Stream, stream_bounds
from patchbay.errors import (
    DeltaTooLarge,
    MalformedDelta,
    UnknownTensor,
    WrongBase,
    WrongShape,
)


def fields(**changes: Any) -> bytes:
    """The valid sample with top-level fields replaced."""
    manifest, streams = sample()
    return assemble({**manifest, **changes}, streams)


def entry(name: str, **changes: Any) -> bytes:
    """The valid sample with one tensor's entry changed; None removes a field."""
    manifest, streams = sample()
    changed = {**manifest["tensors"].get(name, {}), **changes}
    manifest["tensors"][name] = {key: value for key, value in changed.items() if value is not None}
    return refitted(manifest, streams)


def refitted(manifest: dict[str, Any], streams: dict[Stream, bytes]) -> bytes:
    """Where the manifest implies other streams than the sample's: the file with all of them empty."""
    try:
        bounds = stream_bounds(Manifest.model_validate(manifest | versioned(2), strict=False))
    except ValueError:
        return assemble(manifest, streams)
    if bounds.keys() == streams.keys():
        return assemble(manifest, streams)
    return assemble({**manifest, "unused": list(bounds.values())}, dict.fromkeys(bounds, b""))


def text(old: str, new: str) -> bytes:
    """The valid sample with a piece of the manifest's JSON text replaced."""
    manifest, streams = sample()
    whole = json.dumps({**manifest, "payload_sha256": f"sha256:{'0' * 64}"})
    assert old in whole
    return assemble(whole.replace(old, new, 1), streams)


@attack(MalformedDelta, "manifest is not strict JSON")
def manifest_is_no_json() -> bytes:
    """Prose where the manifest should be."""
    return assemble("see attachment", {})


@attack(MalformedDelta, "manifest is not strict JSON")
def manifest_is_a_list() -> bytes:
    """JSON, but no object."""
    return assemble("[1]", {})


@attack(MalformedDelta, "duplicate key 'base'")
def duplicate_manifest_key() -> bytes:
    """The last one wins for most parsers, the first for some: two different bases."""
    return text('"base"', '"base": {}, "base"')


@attack(MalformedDelta, "manifest is not strict JSON")
def deep_nesting_in_manifest() -> bytes:
    """100,000 open brackets, one level further in."""
    return text('"0": "cat"', '"0": ' + "[" * 100_000 + "]" * 100_000)


@attack(MalformedDelta, "recursion limit exceeded")
def nesting_below_pythons_limit() -> bytes:
    """Deep enough for a second parser to overflow, though the first one did not."""
    return text('"id2label"', '"x": ' + "[" * 500 + "]" * 500 + ', "id2label"')


@attack(MalformedDelta, "NaN is no finite number")
def nan_in_config() -> bytes:
    """Not JSON, though Python reads it; whoever writes it back writes something else."""
    return text('"cat"', "NaN")


@attack(MalformedDelta, "1e999 is no finite number")
def number_that_becomes_infinity() -> bytes:
    """Valid JSON that overflows into infinity."""
    return text("0.25", "1e999")


@attack(MalformedDelta, "format version 3 is not known")
def future_version() -> bytes:
    """A version this reader was never told about."""
    return fields(format_version=3)


@attack(MalformedDelta, "format_version")
def version_true() -> bytes:
    """`true` equals 1 in Python."""
    return fields(format_version=True)


@attack(MalformedDelta, "format_version")
def version_missing() -> bytes:
    """A manifest that does not say how it is to be read."""
    return text('"format_version": 2, ', "")


@attack(MalformedDelta, "import")
def unknown_manifest_field() -> bytes:
    """What a reader ignores, another may obey."""
    return fields(**{"import": "os.system"})


@attack(MalformedDelta, "keys; at most")
def flood_of_unknown_fields() -> bytes:
    """200,000 unknown fields: one report for each would take seconds."""
    return fields(base={str(i): 0 for i in range(200_000)})


@attack(MalformedDelta, "tensors.")
def flood_of_bad_entries() -> bytes:
    """20,000 entries with twelve unknown fields each."""
    return fields(tensors={f"t{i}": {"kind": "delta", **dict.fromkeys("abcdefghijkl", 0)} for i in range(20_000)})


@attack(MalformedDelta, "params")
def flood_of_params() -> bytes:
    """100,000 parameters, each wrong for four types."""
    return fields(compression={"method": "m", "density": 0.1, "params": {str(i): [] for i in range(100_000)}})


@attack(MalformedDelta, "unknown position encoding 'os.system'")
def unknown_position_encoding() -> bytes:
    """A name from a file never chooses code: encodings are looked up in a fixed table."""
    return entry("mlp.weight", positions="os.system")


@attack(MalformedDelta, "unknown value encoding 'int3'")
def unknown_value_encoding() -> bytes:
    """As above, for values."""
    return entry("mlp.weight", values="int3")


@attack(MalformedDelta, "unknown dtype 'C64'")
def unknown_dtype() -> bytes:
    """A dtype outside the list."""
    return entry("mlp.weight", dtype="C64")


@attack(MalformedDelta, "tensors.")
def unknown_kind() -> bytes:
    """A kind of entry that does not exist."""
    return entry("norm.bias", kind="code")


@attack(MalformedDelta, "cannot be stored as 'raw'")
def raw_difference() -> bytes:
    """A difference in the tensor's own dtype would be added in another precision than specified."""
    return entry("norm.bias", values="raw")


@attack(MalformedDelta, "stored as it is: no exceptions")
def exceptions_of_an_added_tensor() -> bytes:
    """Exceptions to a sum that is never made."""
    return entry("head.weight", exceptions={"count": 0, "positions": "gap"})


@attack(MalformedDelta, "norm.bias")
def huge_dimension() -> bytes:
    """[0, 2^40]: no entries, but strides that overflow."""
    return entry("norm.bias", shape=[0, 2**40])


@attack(MalformedDelta, "mlp.weight.sparse: shape")
def shape_product_overflow() -> bytes:
    """2^248 entries: the product is 0 in 64 bits."""
    return entry("mlp.weight", shape=[2**31] * 8)


@attack(MalformedDelta, "head.weight.added: shape")
def empty_shape_with_overflow() -> bytes:
    """No entries, so no bytes; a reshape overflows all the same."""
    return entry("head.weight", shape=[2**31, 2**31, 2**31, 0])


@attack(MalformedDelta, "norm.bias")
def nine_dimensions() -> bytes:
    """A rank beyond every model's."""
    return entry("norm.bias", shape=[1] * 8 + [64])


@attack(MalformedDelta, "'mlp.weight' keeps 3841 entries of 3840")
def count_above_numel() -> bytes:
    """More entries than the tensor has."""
    return entry("mlp.weight", count=3841)


@attack(MalformedDelta, "count")
def count_as_text() -> bytes:
    """'200' where 200 is meant: nothing is converted."""
    return entry("mlp.weight", count="200")


@attack(MalformedDelta, "'..'")
def traversal_in_tensor_name() -> bytes:
    """A tensor name that climbs."""
    return entry("../mlp.weight", kind="delta", shape=[0], dtype="F32", values="fp32")


@attack(WrongBase, "made for base 'pico'")
def wrong_fingerprint() -> bytes:
    """Made for another model with the same names and shapes."""
    return fields(base={"name": "pico", "fingerprint": f"sha256:{'cd' * 32}"})


@attack(MalformedDelta, "base.fingerprint")
def fingerprint_is_no_hash() -> bytes:
    """A fingerprint that cannot be compared."""
    return fields(base={"name": "pico", "fingerprint": "sha256:"})


@attack(UnknownTensor, "'zz.weight'")
def unknown_tensor() -> bytes:
    """A difference to something the base does not have."""
    return entry("zz.weight", kind="delta", shape=[4], dtype="F32", values="fp32")


@attack(WrongShape, "'norm.bias' has shape [32, 2]")
def wrong_shape() -> bytes:
    """As many entries as the base's tensor, in another shape."""
    return entry("norm.bias", shape=[32, 2])


@attack(WrongShape, "'mlp.weight'")
def integer_sparse_tensor() -> bytes:
    """A difference that would be rounded into integers."""
    return entry("mlp.weight", dtype="I32")


@attack(WrongShape, "'position_ids'")
def difference_of_integers() -> bytes:
    """A float difference for an integer tensor of the base."""
    return entry("position_ids", kind="delta", dtype="F32", values="fp32")


@attack(WrongShape, "'norm.bias'")
def float_copy() -> bytes:
    """A float tensor replaced instead of added to would survive every merge unscaled."""
    return entry("norm.bias", kind="copied", values="raw")


@attack(WrongShape, "'untouched.weight' is a tensor of the base")
def added_shadows_base() -> bytes:
    """An added tensor that would take the place of one of the base's."""
    return entry("untouched.weight", kind="added", shape=[8, 8], dtype="F32", values="raw")


@attack(DeltaTooLarge, "added tensors and rows take")
def added_of_many_gigabytes() -> bytes:
    """Only added tensors are not bounded by the base's shapes."""
    return entry("head.weight", shape=[2**31, 64])


@attack(MalformedDelta, "labels")
def too_many_labels() -> bytes:
    """100,001 labels."""
    return fields(labels=[""] * 100_001)


@attack(DeltaTooLarge, "manifest has")
def huge_labels() -> bytes:
    """5,000 labels of a kilobyte: over the manifest's limit."""
    return fields(labels=["x" * 1024] * 5000)


@attack(MalformedDelta, "config")
def huge_config() -> bytes:
    """1,001 config keys."""
    return fields(config={str(i): 0 for i in range(1001)})


@attack(MalformedDelta, "provenance.tool")
def long_text() -> bytes:
    """A megabyte where a name is meant; the message must not carry it along."""
    return fields(provenance={"finetuned": "f", "tool": "x" * (1 << 20), "original_bytes": 1})
