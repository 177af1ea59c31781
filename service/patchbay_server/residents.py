"""Under which name the engine has a delta: its digest and whose it is. Knows no catalog and no HTTP.

Two tenants with the same bytes have two deltas in memory. Sharing them would save memory where fine-tunes are traded
between tenants, and tell everyone, by what is pinned and by how long a first answer takes, what others have.
"""

from __future__ import annotations

from patchbay.store.base import Digest


def resident(tenant: str, digest: Digest) -> str:
    """Sorted as the digests are, so that a recipe's terms have the same order for every tenant."""
    return f"{digest}@{tenant}"


def digest_of(resident: str) -> Digest:
    return resident.partition("@")[0]


def tenant_of(resident: str) -> str:
    return resident.partition("@")[2]
