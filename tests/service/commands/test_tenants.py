"""`tenants` and `audit` on the store of a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.service.commands.conftest import Cli
from tests.service.commands.test_remote import as_json, error_of

NO_LIMITS = {"max_bytes": None, "max_deltas": None, "max_jobs": None, "max_requests": None, "tokens_per_minute": None}


def test_limits_are_set_one_by_one_and_lifted(cli: Cli, tmp_path: Path) -> None:
    store = ("--store", tmp_path)
    options = ("--max-bytes", "2MiB", "--max-deltas", "3", "--max-jobs", "0")
    made = as_json(cli, "tenants", "set", "acme", *options, *store)
    limits = NO_LIMITS | {"max_bytes": 2 << 20, "max_deltas": 3, "max_jobs": 0}
    assert made == {"tenant": "acme", "bytes": 0, "deltas": 0, "limits": limits}
    changed = as_json(cli, "tenants", "set", "acme", "--max-deltas", "none", "--tokens-per-minute", "9", *store)
    assert changed["limits"] == limits | {"max_deltas": None, "tokens_per_minute": 9}
    default = {"tenant": "default", "bytes": 0, "deltas": 0, "limits": NO_LIMITS}
    assert as_json(cli, "tenants", "list", *store) == {"data": [changed, default]}
    shown = cli("tenants", "list", *store).stdout
    assert "2,097,152" in shown and "default" in shown


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("acme", "--max-deltas", "many"), "invalid_recipe"),
        (("acme", "--max-deltas", "-1"), "invalid_recipe"),
        (("acme", "--max-bytes", "much"), "invalid_recipe"),
        (("No Name", "--max-jobs", "1"), "invalid_name"),
    ],
)
def test_refusals_are_one_sentence(cli: Cli, tmp_path: Path, options: tuple[str, ...], code: str) -> None:
    assert error_of(cli, "tenants", "set", *options, "--store", tmp_path)[:2] == (2, code)


def test_the_audit_log_has_what_commands_change(cli: Cli, tmp_path: Path) -> None:
    store = ("--store", tmp_path)
    made = as_json(cli, "keys", "create", "--tenant", "acme", *store)
    as_json(cli, "keys", "revoke", made["id"], *store)
    as_json(cli, "tenants", "set", "bolt", "--max-jobs", "1", *store)
    entries = as_json(cli, "audit", *store)["data"]
    assert [(e["tenant"], e["action"], e["subject"], e["result"]) for e in entries] == [
        ("acme", "keys create", made["id"], "done"),
        ("acme", "keys revoke", made["id"], "done"),
        ("bolt", "tenants set", '{"max_jobs": 1}', "done"),
    ]
    assert all(entry["actor"].startswith("user ") for entry in entries)
    assert as_json(cli, "audit", "--tenant", "acme", "--limit", "1", *store)["data"] == entries[1:2]
    assert "keys revoke" in cli("audit", *store).stdout and made["key"][20:] not in cli("audit", *store).stdout
    assert error_of(cli, "audit", "--store", tmp_path / "nowhere")[:2] == (2, "not_found")
