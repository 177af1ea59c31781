from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from patchbay_server.settings import Settings

KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(f"PATCHBAY_{field.upper()}", raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert Settings(base="m", host=host).is_loopback


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.example.org", "127.0.0.1.nip.io"]
)
def test_everything_else_is_the_world(host: str) -> None:
    assert not Settings(base="m", host=host).is_loopback


@pytest.mark.parametrize("key", ["", "short", KEY[:-1]])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_short_keys_are_refused(host: str, key: str) -> None:
    with pytest.raises(ValidationError, match="shorter than 16") as error:
        Settings(base="m", host=host, api_key=key)
    assert "'short'" not in str(error.value) and KEY[:-1] not in str(error.value)


def test_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {"BASE": "m", "HOST": "0.0.0.0", "PORT": "0", "API_KEY": KEY, "STORE": str(tmp_path), "DTYPE": "bf16"}
    for name, value in values.items():
        monkeypatch.setenv(f"PATCHBAY_{name}", value)
    settings = Settings()  # type: ignore[call-arg]
    assert (settings.base, settings.host, settings.port, settings.store) == ("m", "0.0.0.0", 0, tmp_path)
    assert settings.api_key is not None and settings.api_key.get_secret_value() == KEY
    assert Settings(base="other").base == "other", "an argument wins"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("max_upload_bytes", 0),
        ("max_body_bytes", 0),
        ("kv_bytes", 1000),
        ("max_running", 0),
        ("max_step_tokens", 0),
        ("max_waiting", 0),
    ],
)
def test_numbers_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(base="m", **{name: value})


def test_the_catalog_is_in_the_store_unless_it_is_said(tmp_path: Path) -> None:
    assert Settings(base="m", store=tmp_path).catalog_url == f"sqlite:///{tmp_path}/catalog.db"
    assert Settings(base="m", store=Path("rel")).catalog_url == f"sqlite:///{Path.cwd()}/rel/catalog.db"
    assert Settings(base="m", store_url="redis://h").catalog_url == "redis://h"


def test_blobs_are_in_the_store_unless_it_is_said(tmp_path: Path) -> None:
    assert Settings(base="m", store=tmp_path / "a b").blobs_url == f"file://{tmp_path}/a%20b/blobs"
    assert Settings(base="m", store=Path("rel")).blobs_url == f"file://{Path.cwd()}/rel/blobs"
    assert Settings(base="m", blob_url="s3://bucket").blobs_url == "s3://bucket"


def test_sizes_are_read_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHBAY_KV_BYTES", "2GiB")
    monkeypatch.setenv("PATCHBAY_DELTA_CACHE_BYTES", "123")
    settings = Settings(base="m", max_upload_bytes="1.5 MB")
    assert (settings.kv_bytes, settings.delta_cache_bytes, settings.max_upload_bytes) == (2 << 30, 123, 1_500_000)
    with pytest.raises(ValidationError, match="'much' is no size"):
        Settings(base="m", plan_cache_bytes="much")


def test_deltas_to_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(base="m").preloaded == []
    monkeypatch.setenv("PATCHBAY_PRELOAD", "math, code@2,")
    assert Settings(base="m").preloaded == ["math", "code@2"]
