"""`patchbay store export` and `import`: from files to S3 and Redis, and back, beside a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.service.commands.conftest import Cli
from tests.service.commands.test_compress import error_of, report_of
from tests.service.commands.test_remote import Serve, as_json, backbone, serve
from tests.service.commands.test_store import place
from tests.store.redis_server import redis_url
from tests.stores.moto_server import new_bucket, s3_endpoint

from patchbay.store import SqliteCatalog

__all__ = ["backbone", "new_bucket", "place", "redis_url", "s3_endpoint", "serve"]


def test_from_files_to_s3_and_redis_and_back(
    cli: Cli, place: Path, tmp_path: Path, new_bucket: Callable[[], str], redis_url: str
) -> None:
    made = cli("keys", "create", "--store", place, "--tenant", "acme", "--scope", "read", "--json")
    secret = json.loads(made.stdout)["key"]
    first = report_of(cli, "store", "export", tmp_path / "first", "--store", place)
    assert first | {"folder": ""} == {
        "folder": "",
        "versions": 1,
        "merges": 0,
        "keys": 1,
        "audit": 1,
        "blobs": 1,
        "bytes": 5,
    }
    text = (tmp_path / "first" / "catalog.jsonl").read_text()
    assert secret not in text and secret.rpartition("_")[2] not in text
    there = ["--store", tmp_path / "there", "--store-url", redis_url, "--blob-url", new_bucket()]
    of_it = {name: count for name, count in first.items() if name != "folder"}
    assert report_of(cli, "store", "import", tmp_path / "first", *there) == first | {"new": of_it}
    again = report_of(cli, "store", "import", tmp_path / "first", *there)
    assert again == first | {"new": dict.fromkeys(of_it, 0)}
    assert report_of(cli, "store", "fsck", *there)["ok"]
    back = report_of(cli, "store", "export", tmp_path / "second", *there)
    assert back["audit"] == 3, "the imports themselves"
    lines = [(tmp_path / name / "catalog.jsonl").read_text().splitlines()[:-1] for name in ("first", "second")]
    assert lines[1][:-2] == lines[0] and '"action": "store import"' in lines[1][-1]
    told = cli("store", "import", str(tmp_path / "second"), "--store", str(tmp_path / "back"))
    counts = "1 versions, 0 merges, 1 keys, 1 blobs, 5 bytes"
    assert told.stdout == f"imported from {tmp_path / 'second'}: {counts}\nnew in the store: {counts}\n"
    with closing(SqliteCatalog(tmp_path / "back" / "catalog.db")) as catalog:
        assert catalog.get_delta("default", "math").digest == as_listed(catalog)
        assert [entry.action for entry in catalog.audit.list_entries()] == ["keys create", *["store import"] * 3]


def as_listed(catalog: SqliteCatalog) -> str:
    (record,) = catalog.all_versions()
    return record.digest


def test_a_server_goes_on_from_an_export_of_a_running_one(
    cli: Cli, serve: Serve, delta: Path, exact_delta: Path, tmp_path: Path
) -> None:
    serve()
    pushed = as_json(cli, "push", delta, "--name", "math")
    as_json(cli, "push", exact_delta, "--name", "gone")
    as_json(cli, "rm", "gone")
    report_of(cli, "store", "export", tmp_path / "export", "--store", tmp_path / "store")
    copy = tmp_path / "copy"
    report_of(cli, "store", "import", tmp_path / "export", "--store", copy)
    (tmp_path / "store").rename(tmp_path / "old")
    copy.rename(tmp_path / "store")
    serve()
    shown = as_json(cli, "show", "math")
    assert (shown["digest"], shown["created_at"]) == (pushed["digest"], pushed["created_at"])
    assert as_json(cli, "push", exact_delta, "--name", "gone")["version"] == 2


def test_what_is_in_the_way_or_no_export(cli: Cli, place: Path, tmp_path: Path) -> None:
    report_of(cli, "store", "export", tmp_path / "export", "--store", place)
    other = tmp_path / "other"
    cli("tenants", "set", "default", "--max-jobs", "3", "--store", str(other))
    with closing(SqliteCatalog(other / "catalog.db")) as catalog:
        catalog.save_merge("default", "math", "{}")
    error = error_of(cli, "store", "import", tmp_path / "export", "--store", other)
    assert error["code"] == "import_conflict" and "default/math" in error["message"]
    error = error_of(cli, "store", "import", place, "--store", tmp_path / "new")
    assert error["code"] == "invalid_input" and "catalog.jsonl" in error["message"]
    error = error_of(cli, "store", "export", place, "--store", place)
    assert error["code"] == "invalid_input" and "is no export" in error["message"]


@pytest.mark.parametrize("command", ["export"])
def test_a_store_that_is_not_there_is_not_made(cli: Cli, tmp_path: Path, command: str) -> None:
    message = error_of(cli, "store", command, tmp_path / "out", "--store", tmp_path / "none")["message"]
    assert "there is no store" in message and not (tmp_path / "none").exists()
