"""Twenty faults of the network before Redis and before object storage.

Whatever happens, an answer is right or there is none; every call ends; what was acknowledged is there; and when the
fault is over, everything works again. PATCHBAY_LONG=1 runs all faults with the deadlines of a real server.
"""

from __future__ import annotations

import hashlib
import random
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from tests.long import LONG
from tests.stores.faulty import FAULTS, Fault, Proxy, faulty

from patchbay.errors import StoreUnavailable
from patchbay_server.stores import RedisCatalog, connection, object_storage
from patchbay_server.stores.cache import BlobCache
from patchbay_server.stores.object_storage import ObjectStorage
from patchbay_server.stores.redis_blobs import RedisObjects
from patchbay_server.stores.remote import Objects, RemoteBlobs

T = "default"
SHORT = ["the server falls silent in an answer", "a reset in the answer", "every answer is cut short"]
CHOSEN = list(FAULTS) if LONG else SHORT
STALL_S = 2.0 if LONG else 0.1
LIMITS = f"socket_timeout={STALL_S}&socket_connect_timeout={STALL_S}"
DEADLINE_S = 60.0
"""For one call. It is never reached: what hangs would hang for good."""
RECOVERY_S = 5.0


@pytest.fixture(params=CHOSEN)
def fault(request: pytest.FixtureRequest) -> Fault:
    return FAULTS[request.param]


@pytest.fixture(autouse=True)
def _retry_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    if not LONG:
        for module in (connection, object_storage):
            monkeypatch.setattr(module, "RETRY_S", 0.2)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def outcome(threads: ThreadPoolExecutor, call: Callable[[], Any]) -> Any:
    """What the call gave, or the one error that it may raise. Fails if it hangs."""
    try:
        return threads.submit(call).result(DEADLINE_S)
    except StoreUnavailable as error:
        return error


def recovered(call: Callable[[], Any]) -> Any:
    """What the call gives once the fault is over."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        try:
            return call()
        except StoreUnavailable:
            assert time.monotonic() < deadline, "it did not recover"
            time.sleep(0.02)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def test_the_catalog(redis_url: str, fault: Fault, threads: ThreadPoolExecutor) -> None:
    prefix = uuid.uuid4().hex
    with ExitStack() as stack:
        proxy = stack.enter_context(faulty(redis_url))
        catalog = stack.enter_context(closing(RedisCatalog(f"{proxy.redis_url}?{LIMITS}", prefix)))
        truth = stack.enter_context(closing(RedisCatalog(redis_url, prefix)))
        before, _ = catalog.add_version(T, "math", digest(1), 1, "{}")
        proxy.inject(fault)
        read = outcome(threads, lambda: catalog.get_delta(T, "math"))
        changed = outcome(threads, lambda: catalog.add_version(T, "math", digest(2), 1, "{}"))
        check_change(truth, changed, before)
        assert read == before or (isinstance(read, StoreUnavailable) and fault.times is None)
        current = truth.get_delta(T, "math").version
        moved = outcome(threads, lambda: catalog.set_current(T, "math", 1, expected=current))
        assert isinstance(moved, StoreUnavailable) or truth.get_delta(T, "math") == moved
        proxy.inject(None)
        assert recovered(lambda: catalog.list_versions(T, "math")) == truth.list_versions(T, "math")
        catalog.add_version(T, "math", digest(3), 1, "{}")
        assert truth.get_delta(T, "math").digest == digest(3)


def check_change(truth: RedisCatalog, changed: Any, before: Any) -> None:
    """What was acknowledged is there; what was not is there once, or not at all."""
    versions = [record.digest for record in truth.list_versions(T, "math")]
    if isinstance(changed, StoreUnavailable):
        assert versions in ([digest(1)], [digest(1), digest(2)])
    else:
        assert changed[0].version == 2 and versions == [digest(1), digest(2)]


@pytest.fixture(params=["redis", "s3"])
def behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Proxy, Objects, Objects]]:
    """A proxy, the objects behind it, and the same objects straight."""
    with ExitStack() as stack:
        if request.param == "redis":
            url, prefix = request.getfixturevalue("redis_url"), uuid.uuid4().hex
            proxy = stack.enter_context(faulty(url))
            straight: Objects = RedisObjects(url, 1 << 30, prefix)
            objects: Objects = RedisObjects(f"{proxy.redis_url}?{LIMITS}", 1 << 30, prefix)
        else:
            bucket = request.getfixturevalue("new_bucket")()
            proxy = stack.enter_context(faulty(request.getfixturevalue("s3_endpoint")))
            straight = ObjectStorage(bucket)
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
            objects = ObjectStorage(bucket, stall_s=STALL_S)
        stack.callback(straight.close)
        yield proxy, objects, straight


def put(blobs: RemoteBlobs, content: bytes) -> str:
    temp = blobs.new_temp()
    temp.write_bytes(content)
    blobs.put(temp, digest_of(content))
    return digest_of(content)


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_blobs(
    behind: tuple[Proxy, Objects, Objects], fault: Fault, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    proxy, objects, straight = behind
    old, new, last = (random.Random(seed).randbytes(20_000) for seed in range(3))
    with ExitStack() as stack:
        blobs = stack.enter_context(closing(RemoteBlobs(objects, BlobCache(tmp_path / "faulty", 1 << 30))))
        # Not closed: the fixture closes what it made.
        put(RemoteBlobs(straight, BlobCache(tmp_path / "straight", 1 << 30)), old)
        proxy.inject(fault)
        read = outcome(threads, lambda: blobs.path(digest_of(old)).read_bytes())
        assert read == old or (isinstance(read, StoreUnavailable) and fault.times is None)
        written = outcome(threads, lambda: put(blobs, new))
        if not isinstance(written, StoreUnavailable):
            assert b"".join(straight.read(written, len(new))) == new, "what was acknowledged is there"
        proxy.inject(None)
        assert recovered(lambda: blobs.path(digest_of(old)).read_bytes()) == old
        for content in (new, last):
            assert recovered(lambda content=content: put(blobs, content)) == digest_of(content)
            assert b"".join(straight.read(digest_of(content), len(content))) == content


def test_a_flipped_bit_is_never_seen(behind: tuple[Proxy, Objects, Objects], tmp_path: Path) -> None:
    """Checksums of TCP miss one in some ten thousand million packets that were damaged on the way."""
    proxy, objects, straight = behind
    content = random.Random(1).randbytes(20_000)
    put(RemoteBlobs(straight, BlobCache(tmp_path / "straight", 1 << 30)), content)
    with closing(RemoteBlobs(objects, BlobCache(tmp_path / "faulty", 1 << 30))) as blobs:
        objects.size(digest_of(content))
        proxy.inject(Fault("flip", after=10_000))
        with pytest.raises(StoreUnavailable):
            blobs.path(digest_of(content))
        proxy.inject(None)
        assert recovered(lambda: blobs.path(digest_of(content)).read_bytes()) == content
