"""What every blob store promises: files, object storage behind a real S3 server process, a real redis-server."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from patchbay.errors import NotFound
from patchbay.store import BlobStore, FileBlobs
from patchbay_server.stores.cache import BlobCache
from patchbay_server.stores.object_storage import ObjectStorage
from patchbay_server.stores.redis_blobs import RedisObjects
from patchbay_server.stores.remote import CHUNK_BYTES, Objects, RemoteBlobs

Place = Callable[[], BlobStore]
KINDS = ["files", "s3", "redis"]
NO_DIGESTS = ["", "sha256:", "../../etc/passwd", f"sha256:{'A' * 64}", f"md5:{'a' * 64}", "\ud800", "x" * 100_000]


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def put(blobs: BlobStore, content: bytes) -> str:
    temp = blobs.new_temp()
    temp.write_bytes(content)
    blobs.put(temp, digest_of(content))
    assert not temp.exists()
    return digest_of(content)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Opens one more store on the same place: on another host, as far as files are concerned."""
    with ExitStack() as opened:
        make = maker(request, tmp_path)

        def open_one() -> BlobStore:
            blobs = make()
            opened.callback(blobs.close)
            return blobs

        yield open_one


def maker(request: pytest.FixtureRequest, folder: Path) -> Place:
    if request.param == "files":
        return lambda: FileBlobs(folder / "blobs")
    objects: Callable[[], Objects]
    if request.param == "s3":
        bucket = request.getfixturevalue("new_bucket")()
        objects = lambda: ObjectStorage(bucket)  # noqa: E731
    else:
        url, prefix = request.getfixturevalue("redis_url"), uuid.uuid4().hex
        objects = lambda: RedisObjects(url, 1 << 30, prefix)  # noqa: E731
    return lambda: RemoteBlobs(objects(), BlobCache(folder / uuid.uuid4().hex, 1 << 30))


@pytest.fixture
def blobs(place: Place) -> BlobStore:
    return place()


def test_what_is_put_is_there_for_everybody(place: Place) -> None:
    here, there = place(), place()
    digest = put(here, b"hello")
    for blobs in (here, there, place()):
        assert blobs.exists(digest) and blobs.size(digest) == 5 and blobs.digests() == {digest}
        assert blobs.path(digest).read_bytes() == b"hello"


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 12345])
def test_every_size_comes_back(place: Place, size: int) -> None:
    content = random.Random(size).randbytes(size)
    digest = put(place(), content)
    there = place()
    assert there.size(digest) == size and there.examine(digest) == (size, digest)
    assert there.path(digest).read_bytes() == content


def test_putting_again_changes_nothing(place: Place) -> None:
    blobs = place()
    assert put(blobs, b"hello") == put(blobs, b"hello") == put(place(), b"hello")
    assert blobs.digests() == {digest_of(b"hello")}
    assert place().path(digest_of(b"hello")).read_bytes() == b"hello"


def test_what_is_not_there(blobs: BlobStore) -> None:
    digest = digest_of(b"nothing")
    assert not blobs.exists(digest) and blobs.digests() == set()
    for call in (blobs.path, blobs.size, blobs.examine):
        with pytest.raises(NotFound, match=f"there is no blob {digest}") as refused:
            call(digest)
        assert refused.value.param == "digest"


def test_deleting(place: Place) -> None:
    blobs = place()
    digest, other = put(blobs, b"hello"), put(blobs, b"world")
    blobs.delete(digest)
    blobs.delete(digest)
    assert not blobs.exists(digest) and blobs.digests() == {other}
    for one in (blobs, place()):
        with pytest.raises(NotFound):
            one.path(digest)
    assert put(blobs, b"hello") == digest and blobs.path(digest).read_bytes() == b"hello"


@pytest.mark.parametrize("digest", NO_DIGESTS, ids=range(len(NO_DIGESTS)))
def test_only_digests_name_blobs(blobs: BlobStore, digest: str) -> None:
    temp = blobs.new_temp()
    for call in (blobs.path, blobs.size, blobs.exists, blobs.delete, lambda digest: blobs.put(temp, digest)):
        with pytest.raises(NotFound, match="is not a digest") as refused:
            call(digest)
        assert len(str(refused.value)) < 600
    assert temp.exists() and blobs.digests() == set()


def test_a_blob_can_be_linked_into_a_new_folder(blobs: BlobStore) -> None:
    digest = put(blobs, b"hello")
    folder = blobs.new_folder()
    (folder / "model.safetensors").hardlink_to(blobs.path(digest))
    assert (folder / "model.safetensors").read_bytes() == b"hello"


def test_threads_may_put_and_read_the_same_blobs_at_once(place: Place) -> None:
    here, there = place(), place()
    contents = [bytes([number]) * 100_000 for number in range(8)]

    def put_and_read(number: int) -> bool:
        content = contents[number % len(contents)]
        digest = put(here if number % 2 else there, content)
        return (there if number % 2 else here).path(digest).read_bytes() == content

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(put_and_read, range(40)))
    assert here.digests() == there.digests() == set(map(digest_of, contents))
