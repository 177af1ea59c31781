"""One Redis server: TLS, deadlines, and what is asked again."""

from __future__ import annotations

import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.store.redis_server import free_port, running_redis
from tests.stores.faulty import FAULTS, Fault, faulty

from patchbay.errors import StoreUnavailable
from patchbay_server.stores import RedisCatalog
from patchbay_server.stores.redis_blobs import RedisObjects

DIGEST = f"sha256:{'a' * 64}"
OPENSSL = [
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-days",
    "2",
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-made, for 127.0.0.1 and no other name; its key is beside it."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=patchbay", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(folder / "redis.pem"), "-keyout", str(folder / "redis.key")]
    subprocess.run([*OPENSSL, *names, *files], check=True, capture_output=True)
    return folder / "redis.pem"


@pytest.fixture(scope="module")
def tls_port(certificate: Path) -> Iterator[int]:
    port = free_port()
    files = ["--tls-cert-file", certificate, "--tls-key-file", certificate.with_suffix(".key")]
    options = ["--tls-port", port, *files, "--tls-ca-cert-file", certificate, "--tls-auth-clients", "no"]
    with running_redis(*map(str, options)):
        yield port


def test_tls_with_a_certificate_of_ones_own(tls_port: int, certificate: Path, tmp_path: Path) -> None:
    url = f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}"
    with closing(RedisCatalog(url, uuid.uuid4().hex)) as catalog:
        assert catalog.add_version("default", "math", DIGEST, 1, "{}")[1]
    with closing(RedisObjects(url, 1 << 20, uuid.uuid4().hex)) as objects:
        (tmp_path / "file").write_bytes(b"hello")
        objects.write(DIGEST, tmp_path / "file")
        assert b"".join(objects.read(DIGEST, 5)) == b"hello"


@pytest.mark.parametrize(
    "url",
    [
        "rediss://127.0.0.1:{port}/0",  # nobody vouches for the certificate
        "rediss://localhost:{port}/0?ssl_ca_certs={certificate}",  # it is another host's
        "rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}.not",
        "redis://127.0.0.1:{port}/0",
    ],
)
def test_who_cannot_be_trusted_is_unavailable(tls_port: int, certificate: Path, url: str) -> None:
    with pytest.raises(StoreUnavailable, match=f"Redis at .*:{tls_port} does not answer as it should"):
        RedisCatalog(url.format(port=tls_port, certificate=certificate))


def test_a_server_that_says_nothing_is_given_up() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        with pytest.raises(StoreUnavailable, match="does not answer as it should"):
            RedisObjects(url, 1 << 20, answer_s=0.1)
        with pytest.raises(StoreUnavailable, match="does not answer as it should"):
            RedisCatalog(f"{url}?socket_timeout=0.1")


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.times == 1])
def test_a_read_that_fails_once_is_not_noticed(redis_url: str, name: str) -> None:
    with faulty(redis_url) as proxy, closing(RedisCatalog(proxy.redis_url, uuid.uuid4().hex)) as catalog:
        record, _ = catalog.add_version("default", "math", DIGEST, 1, "{}")
        proxy.inject(FAULTS[name])
        assert catalog.get_delta("default", "math") == record
        assert proxy.hits == 1, "it was hit, and asked again"


def test_a_change_is_sent_once(redis_url: str) -> None:
    with faulty(redis_url) as proxy, closing(RedisCatalog(proxy.redis_url, uuid.uuid4().hex)) as catalog:
        for number in range(2):
            catalog.add_version("default", "math", f"sha256:{number:064x}", 1, "{}")
        proxy.inject(Fault("reset", times=1))
        with pytest.raises(StoreUnavailable):
            catalog.add_version("default", "math", DIGEST, 1, "{}")
        assert proxy.hits == 1
        assert [record.version for record in catalog.list_versions("default", "math")] == [1, 2, 3]
