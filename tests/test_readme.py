"""The README's commands, run as they stand against models of a few thousand parameters."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
URL = "http://127.0.0.1:8321"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(block: str) -> list[str]:
    """One string a command, with its continuation lines and without comments; set-up lines are somebody else's test."""
    joined = block.replace("\\\n", " ")
    lines = [line.split("   # ")[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "make", "PATCHBAY_"))]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[..., Path], finetune_folder: Callable[..., Path]
) -> Path:
    """A folder with what the README takes for granted: a base and two fine-tunes of it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "base").symlink_to(model_folder("llama"))
    (folder / "math-model").symlink_to(finetune_folder("llama", seed=1))
    (folder / "code-model").symlink_to(finetune_folder("llama", seed=2))
    return folder


@pytest.fixture(scope="module")
def environment(place: Path) -> dict[str, str]:
    """The README's port is its own example; the tests take one that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PATCHBAY_PORT": str(port), "PATCHBAY_URL": f"http://127.0.0.1:{port}"}


def run(command: str, place: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = command.replace(URL, environment["PATCHBAY_URL"])
    return subprocess.run(command, shell=True, cwd=place, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def server(place: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Everything of the sixty seconds up to the questions has run, and its server is up."""
    first = blocks("sh")[1]
    serve = None
    try:
        for command in commands(first):
            if command.endswith("&"):
                serve = subprocess.Popen(command.removesuffix("&").split(), cwd=place, env=environment)
                wait_until_ready(environment["PATCHBAY_URL"], serve)
                continue
            done = run(command, place, environment)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        yield environment
    finally:
        if serve is not None:
            serve.send_signal(signal.SIGINT)
            serve.wait(timeout=30)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the README's server ended"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError("the README's server is not ready after two minutes")


def test_the_first_commands_are_make_demo_and_make_test() -> None:
    assert [line.split()[:2] for line in blocks("sh")[0].strip().splitlines()] == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("command", commands(blocks("sh")[2]), ids=lambda command: command[-60:])
def test_curl_lines_are_answered(server: dict[str, str], place: Path, command: str) -> None:
    done = run(command, place, server)
    assert done.returncode == 0, done.stderr
    assert '"object":"text_completion"' in done.stdout, done.stdout
    assert '"path":"decoupled"' in done.stdout


def test_the_python_lines_run(server: dict[str, str], place: Path) -> None:
    code = blocks("python")[0].replace(URL, server["PATCHBAY_URL"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=server, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "linear(math, 0.5*code)" in done.stdout


def test_every_model_of_the_table_is_served(server: dict[str, str], place: Path) -> None:
    saved = """curl -s -d '{"name": "both", "recipe": "0.6*math + 0.4*code"}' """
    assert '"name":"both"' in run(f"{saved} -H 'Content-Type: application/json' {URL}/v1/merges", place, server).stdout
    table = README.split("| `model` | means |")[1].split("\n\n")[0]
    named = [text for row in table.splitlines()[2:] for text in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(named) >= 7
    for model in [*named, "both"]:
        asked = model.replace("math@3", "math@1").replace("toxic", "code")
        body = f'{{"model": "{asked}", "prompt": "the cat", "max_tokens": 1}}'
        answer = run(f"curl -s -d '{body}' -H 'Content-Type: application/json' {URL}/v1/completions", place, server)
        assert '"object":"text_completion"' in answer.stdout, f"{asked}: {answer.stdout}"


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link
