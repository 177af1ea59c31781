"""`keys` on the store of a server, running and not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.service.commands.conftest import Cli
from tests.service.commands.test_remote import as_json, backbone, error_of, serve
from tests.store.redis_server import redis_url
from tests.waiting import until

from patchbay.store.keys import Scope
from patchbay_server.commands.keys import ScopeName
from patchbay_server.server import check_closed
from patchbay_server.settings import Settings

__all__ = ["backbone", "redis_url", "serve"]


@pytest.fixture
def keys(cli: Cli, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`keys("list")` on the store that `serve` serves."""
    return lambda *args: as_json(cli, "keys", *args, "--store", tmp_path / "store")


def test_the_life_of_a_key(keys: Callable[..., dict[str, Any]], serve: Callable[..., str]) -> None:
    made = keys("create", "--tenant", "acme", "--scope", "read", "--scope", "infer", "--expires", "2999-01-31")
    url = serve()
    assert (made["tenant"], made["scopes"], made["state"]) == ("acme", ["read", "infer"], "active")
    assert made["expires_at"] == datetime(2999, 1, 31).timestamp()
    headers = {"authorization": f"Bearer {made['key']}"}
    assert httpx2.get(f"{url}/v1/models", headers=headers).status_code == 200
    assert httpx2.get(f"{url}/v1/models").status_code == 401
    [listed] = keys("list")["data"]
    assert listed.pop("last_used_at") is not None
    assert listed | {"last_used_at": None} == {name: made[name] for name in made if name != "key"}
    assert keys("revoke", made["id"])["state"] == "revoked"
    until(lambda: httpx2.get(f"{url}/v1/models", headers=headers).status_code == 401)
    assert keys("list")["data"][0]["state"] == "revoked"


def test_the_secret_is_shown_once_and_is_nowhere_in_the_store(cli: Cli, tmp_path: Path) -> None:
    made = cli("keys", "create", "--tenant", "acme", "--store", tmp_path)
    key = made.stdout.splitlines()[0]
    assert re.fullmatch("pb_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", key), "with nothing beside it"
    assert made.stderr == "keep it: it is shown this once\n"
    secret = key[20:].encode()
    assert all(secret not in file.read_bytes() for file in tmp_path.iterdir())
    listed = cli("keys", "list", "--store", tmp_path).stdout
    assert key[3:19] in listed and key[20:] not in listed and "read, infer" in listed


def test_refusals_are_one_sentence(cli: Cli, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    assert error_of(cli, "keys", "list", *store)[:2] == (2, "not_found")
    assert not (tmp_path / "store").exists()
    create = ("keys", "create", *store, "--tenant")
    assert error_of(cli, *create, "acme", "--scope", "admin")[:2] == (2, "invalid_key")
    assert error_of(cli, *create, "acme", "--expires", "2001-01-01")[:2] == (2, "invalid_key")
    assert error_of(cli, *create, "No Name")[:2] == (2, "invalid_name")
    assert error_of(cli, "keys", "revoke", "x", *store)[:2] == (2, "not_found")
    assert json.loads(cli("keys", "list", *store, "--json").stdout) == {"data": []}


def test_a_server_may_listen_beyond_loopback_once_there_is_a_key(cli: Cli, tmp_path: Path) -> None:
    settings = Settings(base="m", host="0.0.0.0", store=tmp_path)
    with pytest.raises(Exception, match="refusing to listen on 0.0.0.0"):
        check_closed(settings)
    assert cli("keys", "create", "--tenant", "acme", "--store", tmp_path).exit_code == 0
    check_closed(settings)
    check_closed(Settings(base="m", host="0.0.0.0", store=tmp_path / "new", api_key="0123456789abcdef"))


def test_redis(cli: Cli, redis_url: str) -> None:
    made = as_json(cli, "keys", "create", "--tenant", "acme", "--store-url", redis_url)
    assert made["id"] in {key["id"] for key in as_json(cli, "keys", "list", "--store-url", redis_url)["data"]}


def test_the_scopes_of_the_command_are_those_of_keys() -> None:
    assert [name.value for name in ScopeName] == [scope.value for scope in Scope]
