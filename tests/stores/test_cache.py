"""The bounded folder: least recently used goes, and nothing that somebody reads, whoever that is."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patchbay
import patchbay_server
from patchbay_server.stores.cache import BlobCache

HOLDER = """
import sys
from pathlib import Path
from patchbay_server.stores.cache import BlobCache
held = BlobCache(Path(sys.argv[1]), 100).hold(sys.argv[2])
print(held.read_text(), flush=True)
sys.stdin.read()
"""
ROOTS = [str(Path(package.__file__).parent.parent) for package in (patchbay, patchbay_server)]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlobCache]:
    cache = BlobCache(tmp_path, max_bytes=100)
    yield cache
    cache.close()


def keep(cache: BlobCache, content: bytes) -> tuple[str, Path]:
    temp = cache.new_temp()
    temp.write_bytes(content)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return digest, cache.keep(temp, digest)


def sizes(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "sha256").glob("*/*"))


def test_least_recently_used_goes_first(cache: BlobCache) -> None:
    first, second, third = (keep(cache, bytes([number]) * 30)[0] for number in range(3))
    assert cache.hold(first)
    fourth = keep(cache, b"x" * 40)[0]
    assert cache.hold(second) is None
    assert all(map(cache.hold, (first, third, fourth)))


def test_what_is_held_stays_whatever_comes(cache: BlobCache, tmp_path: Path) -> None:
    digest, held = keep(cache, b"a" * 60)
    other, also_held = keep(cache, b"b" * 60)
    assert sizes(tmp_path) == 120, "both are in use"
    cache.make_room(1000)
    cache.drop(digest)
    assert held.read_bytes() == b"a" * 60 and also_held.read_bytes() == b"b" * 60
    again = cache.hold(digest)
    del held
    cache.make_room(100)
    assert again is not None and again.read_bytes() == b"a" * 60, "held twice, let go once"
    del again
    cache.make_room(100)
    assert cache.hold(digest) is None and also_held.exists()


def test_what_another_process_holds_stays_until_it_dies(cache: BlobCache, tmp_path: Path) -> None:
    digest = keep(cache, b"a" * 60)[0]
    command = [sys.executable, "-c", HOLDER, str(tmp_path), digest]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(ROOTS)}
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "a" * 60 + "\n"
        cache.make_room(100)
        assert cache.hold(digest)
        holder.kill()
        holder.wait()
        cache.make_room(100)
        assert cache.hold(digest) is None


def test_nothing_goes_between_finding_and_locking(
    cache: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = keep(cache, b"a" * 60)[0]
    other, lock = BlobCache(tmp_path, 100), fcntl.flock
    with ThreadPoolExecutor(1) as pool:

        def evicting(descriptor: int, operation: int) -> None:
            if operation == fcntl.LOCK_SH:
                wait([pool.submit(other.make_room, 100)], timeout=0.2)  # it has to wait, and comes too late
            lock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", evicting)
        held = cache.hold(digest)
    assert held is not None and held.read_bytes() == b"a" * 60
    other.close()


def test_a_file_larger_than_the_folder_may_be_is_there_while_it_is_used(cache: BlobCache, tmp_path: Path) -> None:
    digest, held = keep(cache, b"a" * 1000)
    assert held.read_bytes() == b"a" * 1000
    del held
    keep(cache, b"b")
    assert sizes(tmp_path) == 1 and cache.hold(digest) is None


def test_a_damaged_file_is_replaced_by_what_is_put(cache: BlobCache) -> None:
    digest, held = keep(cache, b"hello")
    held.write_bytes(b"damag")
    del held
    assert keep(cache, b"hello")[1].read_bytes() == b"hello"


def test_links_outlive_the_cached_file(cache: BlobCache) -> None:
    digest, held = keep(cache, b"a" * 100)
    link = cache.new_folder() / "link"
    link.hardlink_to(held)
    del held
    cache.make_room(100)
    assert cache.hold(digest) is None and link.read_bytes() == b"a" * 100


def test_a_folder_that_was_emptied_from_outside_is_filled_again(cache: BlobCache, tmp_path: Path) -> None:
    digest, held = keep(cache, b"hello")
    held.unlink()
    assert cache.hold(digest) is None
    assert keep(cache, b"hello")[1].read_bytes() == b"hello"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=30))
def test_never_more_than_the_bound_but_for_what_is_in_use(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = BlobCache(folder, max_bytes=100)
    held: dict[int, Path] = {}
    for number, hold in steps:
        digest, path = keep(cache, bytes([number]) * (10 + number))
        if hold:
            held[number] = path
        else:
            held.pop(number, None)
        del path
        cache.make_room(0)
        used = sum(10 + number for number in held)
        assert sizes(folder) <= max(100, used)
        assert all(path.read_bytes() == bytes([number]) * (10 + number) for number, path in held.items())
    cache.close()


def test_readers_and_evictors_in_threads(tmp_path: Path) -> None:
    """A bound so small that everything is evicted all the time: no reader ever finds its file gone."""
    caches = [BlobCache(tmp_path, max_bytes=100) for _ in range(2)]
    contents = [bytes([number]) * 60 for number in range(6)]

    def work(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(40):
            content = source.choice(contents)
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            cache = source.choice(caches)
            held = cache.hold(digest) or keep(cache, content)[1]
            assert held.read_bytes() == content
            cache.make_room(source.choice([0, 100]))
            assert held.read_bytes() == content

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    for cache in caches:
        cache.make_room(0)
        cache.close()
    assert sizes(tmp_path) <= 100
