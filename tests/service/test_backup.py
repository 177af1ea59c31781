"""The runbook's backup: first the catalog, then the blobs, while the server runs and more comes."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.service.serving import Served, ok, serving

from patchbay.backbone import Backbone

IMAGE = {"array": [[[0.1] * 16] * 16] * 3}
RUNBOOK = Path(__file__).parents[2] / "deploy" / "runbook.md"


def test_a_backup_of_a_running_server_is_served(
    vit: Served, backbone: Callable[[str], Backbone], delta_file: Callable[..., Path], tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    backup.mkdir()
    names = ("math", "code")
    before = {name: vit.classify(name, [IMAGE]) for name in names}
    source, copy = (sqlite3.connect(folder / "catalog.db") for folder in (vit.store, backup))
    with closing(source), closing(copy):
        source.backup(copy)
    vit.upload("late", delta_file("vit", 3))
    shutil.copytree(vit.store / "blobs", backup / "blobs", ignore=shutil.ignore_patterns("tmp"))
    with serving(backbone("vit"), backup) as restored:
        assert [record["name"] for record in ok(restored.get("/v1/deltas"))["data"]] == sorted(names)
        assert {name: restored.classify(name, [IMAGE]) for name in names} == before


def test_the_runbook_takes_the_catalog_first() -> None:
    [commands] = re.findall(r"## Backup.*?```sh\n(.*?)```", RUNBOOK.read_text("utf-8"), re.DOTALL)
    assert commands.index("catalog.db") < commands.index("catalog.rdb") < commands.index("blobs/")
