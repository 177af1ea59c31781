"""A store written down as a folder, and read back: nothing in it is believed before it was looked at.

    catalog.jsonl           a line a row; the first says what it is, the last has the sha256 of those before it
    blobs/sha256/ab/ab...   the bytes, named by their digest

Only checked digests become paths, links are not followed, and no line is longer than MAX_LINE. Knows no store.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, get_args, get_origin, get_type_hints

from patchbay.errors import InputError, InvalidName
from patchbay.store.audit import Entry
from patchbay.store.base import Digest, MergeRecord, check_digest, check_name, disk_errors, is_digest
from patchbay.store.keys import KeyRecord, is_key_id, read_scopes, write_scopes
from patchbay.store.snapshot import Brought, Limited, Name, Snapshot, Version, identity
from patchbay.store.tenants import Limits

CATALOG = "catalog.jsonl"
MAX_LINE = 64 << 20
_HEAD = {"patchbay_store": 1}
_PARTS: Mapping[str, type[Any]] = {
    "names": Name,
    "versions": Version,
    "merges": MergeRecord,
    "brought": Brought,
    "limits": Limited,
    "keys": KeyRecord,
    "audit": Entry,
}


def write_catalog(folder: Path, snapshot: Snapshot) -> None:
    """All of it or, where that fails, what was there before. Raises StoreFull, StoreUnavailable."""
    temp, hashed = folder / f".{CATALOG}", hashlib.sha256()
    with disk_errors(folder), temp.open("wb") as file:
        for line in [_HEAD, *_lines(snapshot)]:
            hashed.update(_text(line))
            file.write(_text(line))
        file.write(_text({"sha256": hashed.hexdigest()}))
        file.flush()
        os.fsync(file.fileno())
        temp.replace(folder / CATALOG)


def read_catalog(folder: Path) -> Snapshot:
    """Raises InputError for what is no catalog of this kind, whole and consistent."""
    parts: dict[str, list[Any]] = {part: [] for part in _PARTS}
    with open_file(folder / CATALOG) as file:
        for number, line in enumerate(_checked_lines(file), 1):
            try:
                ((part, row),) = json.loads(line).items()
                parts[part].append(_row(_PARTS[part], row))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise _broken(f"line {number + 1}: {error}") from error
    snapshot = Snapshot(**{part: tuple(rows) for part, rows in parts.items()})
    _check(snapshot)
    return snapshot


def blob_path(folder: Path, digest: Digest) -> Path:
    """Where its bytes are, or would be. Raises NotFound for what is no digest."""
    name = check_digest(digest).removeprefix("sha256:")
    return folder / "blobs" / "sha256" / name[:2] / name


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """An ordinary file, not a link to one. Raises InputError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _broken(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _broken(f"{path} is no file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _lines(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    for part in _PARTS:
        for row in getattr(snapshot, part):
            values = asdict(row)
            if isinstance(row, KeyRecord):
                values["scopes"] = write_scopes(row.scopes)
            yield {part: values}


def _checked_lines(file: BinaryIO) -> Iterator[bytes]:
    """Those between the first and the last, which has the hash of the others. Raises InputError."""
    hashed, last = hashlib.sha256(), b""
    for line in _read_lines(file):
        hashed.update(last)
        last = line
    if last != _text({"sha256": hashed.hexdigest()}):
        raise _broken("its last line does not have the hash of the others: it is cut off, or was changed")
    file.seek(0)
    lines = pairwise(_read_lines(file))  # which leaves out the last one
    if next(lines, (b"", b""))[0] != _text(_HEAD):
        raise _broken(f"its first line is not {_text(_HEAD)!r}: another Patchbay wrote it, or something else")
    for line, _ in lines:
        yield line


def _read_lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise _broken(f"a line is longer than {MAX_LINE} bytes")
        yield line


def _text(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _row(kind: type[Any], values: Any) -> Any:
    """Raises ValueError, TypeError, KeyError, InvalidName for what no catalog has written."""
    hints = get_type_hints(kind)
    if values.keys() != hints.keys():
        raise ValueError(f"the fields are {', '.join(values)[:200]}, not {', '.join(hints)}")
    if kind is KeyRecord:
        values["scopes"] = read_scopes(values["scopes"])
    if kind is Limited:
        values["limits"] = _row(Limits, values["limits"])
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {str(value)[:80]!r}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    allowed = set(get_args(hint)) or {get_origin(hint) or hint}
    if isinstance(value, frozenset):
        return bool(value)
    if type(value) is str:
        value.encode()  # half a surrogate pair is no text that a database takes
    if type(value) is int:
        return int in allowed and 0 <= value < 2**63
    if type(value) is float:
        return float in allowed and math.isfinite(value)
    return type(value) in allowed


def _check(snapshot: Snapshot) -> None:
    """Raises InputError for rows that do not go together, or that name what has no name."""
    for part in _PARTS:
        rows = getattr(snapshot, part)
        for row in rows:
            _check_names(row)
        if part != "audit" and len({identity(row) for row in rows}) < len(rows):
            raise _broken(f"something is there twice in {part}")
    last = {(row.tenant, row.name): row for row in snapshot.names}
    live = [row for row in snapshot.versions if row.deleted_at is None]
    for version in snapshot.versions:
        name = last.get((version.tenant, version.name))
        if name is None or not 1 <= version.version <= name.last_version:
            raise _broken(f"{version.name}@{version.version} is of no name, or over its last version")
    current = {(row.tenant, row.name, row.current) for row in snapshot.names if row.current is not None}
    if not current <= {(row.tenant, row.name, row.version) for row in live}:
        raise _broken("a version is current that does not live")
    if len({(row.tenant, row.name, row.digest) for row in live}) < len(live):
        raise _broken("a name has two live versions of the same bytes")


def _check_names(row: Any) -> None:
    """Of tenants, deltas, merges, digests and keys; and that JSON is JSON."""
    names = [row.tenant] if not isinstance(row, Entry) else []  # an audit log may name any tenant
    names += [row.name] if isinstance(row, Name | Version | MergeRecord) else []
    try:
        for name in names:
            check_name(name)
        texts = [getattr(row, field) for field in ("summary", "recipe") if hasattr(row, field)]
        for text in texts:
            json.loads(text)
    except (InvalidName, ValueError, RecursionError) as error:
        raise _broken(str(error)) from error
    if isinstance(row, Version | Brought) and not is_digest(row.digest):
        raise _broken(f"{row.digest[:80]!r} is no digest")
    if isinstance(row, KeyRecord) and not (is_key_id(row.id) and _HASH.fullmatch(row.secret_hash)):
        raise _broken(f"{row.id[:16]!r} is no key")


_HASH = re.compile("[0-9a-f]{64}")


def _broken(reason: str) -> InputError:
    return InputError(f"the exported store cannot be read: {reason}", param=CATALOG)
