"""A real S3 server process (moto's) on a free port, for every test that wants one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.waiting import until

# In an environment of its own: moto needs an older python-dateutil than is pinned.
OWN = Path(sys.prefix) / "moto" / "bin" / "moto_server"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@contextmanager
def running_moto() -> Iterator[str]:
    """Its URL. Skips where moto is not installed, unless PATCHBAY_REQUIRE_MOTO=1."""
    program = str(OWN) if OWN.is_file() else shutil.which("moto_server")
    if program is None:
        if os.environ.get("PATCHBAY_REQUIRE_MOTO") == "1":
            pytest.fail(f"PATCHBAY_REQUIRE_MOTO=1, and moto_server is neither on PATH nor at {OWN}")
        pytest.skip("moto_server is not installed")
    command = [program, "--host", "127.0.0.1", "--port", "0"]
    # A file: it writes a line for every request, and once a pipe is full that nobody reads it answers no more.
    with (
        tempfile.NamedTemporaryFile(suffix=".log") as log,
        subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL) as process,
    ):
        try:
            yield until(lambda: re.search(r"Running on (http://\S+)", Path(log.name).read_text("utf-8")))[1]
        finally:
            process.kill()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with running_moto() as url:
        yield url


@pytest.fixture
def new_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Makes a bucket; its URL. The environment leads there."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    return lambda: make_bucket(s3_endpoint)


def make_bucket(endpoint: str) -> str:
    """The URL of a new bucket, with a prefix in it."""
    name = f"bucket-{uuid.uuid4().hex}"
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")) as answer:
        assert answer.status == 200
    return f"s3://{name}/deltas"
