"""What of `patchbay demo` is the command's own. The run itself is tested with `patchbay_server.demo`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.service.commands.conftest import Cli


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")])
def test_a_missing_extra_is_named_before_anything_is_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = cli("demo", "--folder", tmp_path / "run", "--json")
    assert result.exit_code == 2
    assert f"the demo needs {package}: pip install" in json.loads(result.stdout)["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_someone_else_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    result = cli("demo", "--folder", tmp_path, "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["param"] == "folder"
    assert mine.read_text() == "mine"
