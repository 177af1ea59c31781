"""What stores refuse, said by each of them in the same words. Knows no database.

What is no name is cut short: it may be any text someone sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from patchbay.errors import NameTaken, NotFound, StoreUnavailable, VersionConflict

if TYPE_CHECKING:
    from patchbay.store.base import Digest


def no_blob(digest: Digest) -> NotFound:
    return NotFound(f"there is no blob {digest}", param="digest")


def no_delta(name: str, known: Iterable[str]) -> NotFound:
    return NotFound.named("delta", name[:64], known, param="name")


def no_merge(name: str, known: Iterable[str]) -> NotFound:
    return NotFound.named("merge", name[:64], known, param="name")


def no_version(name: str, version: int, live: Iterable[int]) -> NotFound:
    return NotFound(f"delta {name!r} has no version {version}; it has {_numbers(live)}", param="version")


def no_current(name: str, live: Iterable[int]) -> NotFound:
    return NotFound(
        f"no version of delta {name!r} is current; it has {_numbers(live)}: name one, or make one current",
        param="version",
    )


def moved_on(name: str, expected: int, current: int | None) -> VersionConflict:
    now = "no version" if current is None else f"version {current}"
    return VersionConflict(
        f"the current version of delta {name!r} is {now}, not {expected} as expected: look again, then repeat",
        param="expected",
    )


def still_current(name: str, version: int) -> VersionConflict:
    return VersionConflict(
        f"version {version} of delta {name!r} is the current one: make another version current first", param="version"
    )


def owned_by(kind: str, name: str) -> NameTaken:
    return NameTaken(
        f"the name {name!r} belongs to a {kind}: choose another name, or delete the {kind} first", param="name"
    )


def being_removed(digest: Digest) -> StoreUnavailable:
    return StoreUnavailable.plain(f"blob {digest} is being removed at this moment: send it again in a minute")


def merge_exists(name: str) -> NameTaken:
    return NameTaken(f"there is a merge {name!r} already: choose another name, or delete it first", param="name")


def _numbers(versions: Iterable[int]) -> str:
    """`version 3`, or `versions 1, 2, 5`: at most the ten newest."""
    newest = sorted(versions)[-10:]
    return f"version{'s' if len(newest) > 1 else ''} {', '.join(map(str, newest))}"
