"""What a stranger installs: the wheel, the pins, the container files. No container engine is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import patchbay

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MAX_LINES = 300


def built_wheel(folder: Path, **environment: str) -> Path:
    """Of this tree, into an empty folder, with variables other than this process's."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env={**os.environ, **environment})
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_two_packages_and_their_types(tmp_path: Path) -> None:
    wheel = built_wheel(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"patchbay", "patchbay_server"}
    assert {"patchbay/py.typed", "patchbay_server/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    compiled = "patchbay/execute/kernels/_kernels.so" in names
    assert compiled == (shutil.which("cc") is not None) == (not wheel.name.endswith("-any.whl"))


def test_without_a_compiler_the_package_is_there_all_the_same(tmp_path: Path) -> None:
    """Its tools are this Python's; nothing else is on the path."""
    wheel = built_wheel(tmp_path, PATH=str(tmp_path))
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {f"patchbay/execute/kernels/{name}.c" for name in ("rows", "linear")}
    assert sources <= set(names) and not any(name.endswith(".so") for name in names)


def test_pyproject_has_lower_bounds_only() -> None:
    requirements = [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
    for requirement in requirements:
        assert re.fullmatch(r"[a-zA-Z0-9_.\-]+(\[[a-z]+\])?>=[0-9.]+", requirement), requirement


def test_every_dependency_is_argued_and_pinned() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    pins = {line.split("==")[0].lower().replace("_", "-") for line in constraints() if "==" in line}
    for requirement in PROJECT["dependencies"]:
        name = re.split(r"[\[>]", requirement)[0]
        assert re.search(rf'"{re.escape(requirement)}",? +# \S', text), f"{name} has no reason beside it"
        assert name.lower().replace("_", "-") in pins, f"{name} is not pinned in constraints.txt"


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_constraints_are_exact_and_name_no_place() -> None:
    assert "torch==2.13.0" in constraints()
    for line in constraints():
        assert re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.+!\-]+", line), line


def test_the_changelog_knows_this_version() -> None:
    assert PROJECT["dynamic"] == ["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## Unreleased" in changelog or f"## {patchbay.__version__}" in changelog


def test_ci_installs_what_tests_would_skip_without_and_calls_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "redis-server" in script and "prometheus" in script
    assert "PATCHBAY_REQUIRE_REDIS=1 PATCHBAY_REQUIRE_PROMTOOL=1 make test" in script


def test_compose_runs_the_service_on_a_redis_that_forgets_nothing() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    command = services["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == "yes"
    environment = services["patchbay"]["environment"]
    assert environment["PATCHBAY_STORE_URL"].startswith("redis://redis")
    assert environment["PATCHBAY_API_KEY"].startswith("${PATCHBAY_API_KEY:?")
    assert "blobs:/data" in services["patchbay"]["volumes"]


def test_the_image_is_built_in_stages_and_runs_without_root() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    last_from = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    assert "USER patchbay" in lines[last_from:]
    assert any(line.startswith("ARG TORCH_INDEX=") and line.endswith("/cpu") for line in lines)


@pytest.mark.parametrize("root", ["core", "service"])
def test_no_file_is_longer_than_one_idea(root: str) -> None:
    long = {str(f): n for f in (ROOT / root).rglob("*.py") if (n := len(f.read_text("utf-8").splitlines())) > MAX_LINES}
    assert not long


def test_the_import_ladder_holds() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
