from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.store.redis_server import redis_database, redis_url
from typer.testing import CliRunner, Result

from patchbay.compress.compress import Options, compress
from patchbay_server.cli import app

__all__ = ["redis_database", "redis_url"]

Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("inspect", path, "--json")` in this process, as `patchbay` would run it; no setting comes from outside."""
    for name in (
        "URL",
        "API_KEY",
        "BASE",
        "HOST",
        "PORT",
        "STORE",
        "STORE_URL",
        "BLOB_URL",
        "TASK",
        "DTYPE",
        "DEVICE",
        "WORKERS",
        "JOBS_DB",
    ):
        monkeypatch.delenv(f"PATCHBAY_{name}", raising=False)

    def run(*args: object, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args], env=env)

    return run


@pytest.fixture(scope="session")
def base(model_folder: Callable[..., Path]) -> Path:
    return model_folder("bert_classifier")


@pytest.fixture(scope="session")
def tuned(finetune_folder: Callable[..., Path]) -> Path:
    return finetune_folder("bert_classifier")


@pytest.fixture(scope="session")
def delta(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("delta") / "tuned.safetensors"
    compress(base, tuned, out, Options("magnitude", density=0.1, values="int8"))
    return out


@pytest.fixture(scope="session")
def exact_delta(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("delta") / "exact.safetensors"
    compress(base, tuned, out, Options("magnitude", density=0.3, values="sign", exact=True))
    return out
