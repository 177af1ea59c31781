from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.service.commands.conftest import Cli

from patchbay_server.commands.serve import make_settings

ROOT = Path(__file__).parents[3]
DEADLINE_S = 120.0


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHBAY_PORT", "9000")
    monkeypatch.setenv("PATCHBAY_DTYPE", "bf16")
    monkeypatch.setenv("PATCHBAY_API_KEY", "0123456789abcdef")
    settings = make_settings({"base": "b", "port": 9001, "dtype": None, "host": None})
    assert (settings.base, settings.port, settings.dtype, settings.host) == ("b", 9001, "bf16", "127.0.0.1")
    assert settings.api_key is not None


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (["--host", "0.0.0.0"], {}, "refusing to listen on 0.0.0.0 without PATCHBAY_API_KEY or a key in the store"),
        ([], {"PATCHBAY_HOST": "0.0.0.0"}, "without PATCHBAY_API_KEY"),
        ([], {"PATCHBAY_API_KEY": "short-secret"}, "shorter than 16 characters"),
        ([], {"PATCHBAY_MAX_UPLOAD_BYTES": "much"}, "PATCHBAY_MAX_UPLOAD_BYTES: "),
        (["--device", "abacus"], {}, "unknown device 'abacus'"),
        (["--task", "nonsense"], {}, "unknown task 'nonsense'"),
        (["--store-url", "ftp://x"], {}, "ftp"),
        (["--blob-url", "ftp://x"], {}, "names no blob store"),
        ([], {"PATCHBAY_BLOB_CACHE_BYTES": "much"}, "PATCHBAY_BLOB_CACHE_BYTES: 'much' is no size"),
        (["--preload", "math", "--preload", "code@2"], {}, "there is no delta 'math'"),
        (["--kv-bytes", "much"], {}, "PATCHBAY_KV_BYTES: 'much' is no size"),
        ([], {"PATCHBAY_PREFIX_BYTES": "much"}, "PATCHBAY_PREFIX_BYTES: 'much' is no size"),
        (["--kv-bytes", "1kB"], {}, "PATCHBAY_KV_BYTES: "),
    ],
)
def test_bad_settings_are_one_sentence(
    cli: Cli, base: Path, tmp_path: Path, options: list[str], environment: dict[str, str], words: str
) -> None:
    result = cli("serve", "--base", base, "--store", tmp_path / "s", *options, "--json", env=environment)
    assert result.exit_code in (1, 2)
    assert words in result.stderr and len(result.stderr.splitlines()) == 1 and "secret" not in result.stderr
    assert "error" in json.loads(result.stdout)


def test_a_taken_port_is_named(cli: Cli, base: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli("serve", "--base", base, "--store", tmp_path / "store", "--port", port)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already in use")


def test_serves_until_interrupted(cli: Cli, base: Path, delta: Path, tmp_path: Path) -> None:
    """A real process: options from the environment, announced on stderr, stopped by Ctrl-C without a failure."""
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT / "core"), str(ROOT / "service")])}
    own = {"PATCHBAY_BASE": str(base), "PATCHBAY_PORT": "0", "PATCHBAY_STORE": str(tmp_path / "elsewhere")}
    code = "from patchbay_server.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--store", str(tmp_path / "store"), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment | own,
    )
    try:
        assert process.stderr is not None
        announced = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert announced is not None
        pushed = cli("push", delta, "--name", "math", "--url", announced[0])
        assert pushed.exit_code == 0, pushed.stderr
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and {json.loads(line)["level"] for line in err.splitlines()} == {"info"}
    assert json.loads(out)["store"] == str(tmp_path / "store")
    assert (tmp_path / "store").is_dir() and not (tmp_path / "elsewhere").exists()
