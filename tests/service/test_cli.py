from __future__ import annotations

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

import patchbay
from patchbay.errors import StoreFull, WrongShape
from patchbay_server.cli import Commands, app
from patchbay_server.commands.options import JsonOption

ROOT = Path(__file__).parents[2]
SOURCES = os.pathsep.join([str(ROOT / "core"), str(ROOT / "service")])
ENTRY = "from patchbay_server.cli import main; main()"
# Not pydantic: typer takes it itself to coerce a command's options.
HEAVY = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "httpx2", "fastapi", "uvicorn")
NAMES = [
    "compress",
    "fuse",
    "merge",
    "tune",
    "export",
    "transfer",
    "inspect",
    "verify",
    "reconstruct",
    "serve",
    "push",
    "ls",
    "show",
    "rm",
    "worker",
    "audit",
    "demo",
]
GROUPS = ["jobs", "keys", "neuript", "store", "tenants"]
DEADLINE_S = 60.0


def command(*args: str, code: str = ENTRY, flags: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *flags, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": SOURCES, "COLUMNS": "100"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from patchbay_server.cli import app
for args in [[]] + [[name] for name in {[*NAMES, *GROUPS]!r}]:
    try:
        app([*args, "--help"], prog_name="patchbay")
    except SystemExit as done:
        assert done.code == 0, args
try:
    app(["--version"], prog_name="patchbay")
except SystemExit as done:
    assert done.code == 0
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    exit_code, out, err = finish(command(code=code))
    assert exit_code == 0, err
    assert all(name in out for name in [*NAMES, *GROUPS])
    assert err.strip() == "[]"
    assert out.splitlines()[-1] == f"patchbay {patchbay.__version__}"


def test_the_commands_are_the_documented_ones_and_all_speak_json() -> None:
    functions = {info.callback.__name__: info.callback for info in app.registered_commands if info.callback}
    assert list(functions) == NAMES
    groups = {group.typer_instance.info.name: group.typer_instance for group in app.registered_groups}
    assert list(groups) == GROUPS
    for group in groups.values():
        members = {info.callback.__name__: info.callback for info in group.registered_commands if info.callback}
        functions |= {f"{group.info.name} {name}": function for name, function in members.items()}
    for name, function in functions.items():
        assert "as_json" in inspect.signature(function).parameters, name


def test_missing_file_is_one_sentence_and_exit_code_2() -> None:
    exit_code, out, err = finish(command("push", "nowhere.safetensors", "--name", "math"))
    assert exit_code == 2
    assert err == "error: nowhere.safetensors: No such file or directory\n"
    assert out == ""


def test_no_server_is_exit_code_1_and_json_on_stdout() -> None:
    with socket.socket() as taken:  # bound and not listening: nothing answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        exit_code, out, err = finish(command("ls", "--url", url, "--json"))
    assert exit_code == 1
    error = json.loads(out)["error"]
    assert error["code"] == "server_unreachable" and error["param"] == "url" and url in error["message"]
    assert err == f"error: {error['message']}\n"


def test_ctrl_c_is_exit_code_130() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE_S)
        process = command("ls", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--json")
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)  # the request is under way, and nobody will answer it
            process.send_signal(signal.SIGINT)
            exit_code, out, err = finish(process)
    assert (exit_code, err) == (130, "error: interrupted\n")
    assert json.loads(out)["error"]["code"] == "interrupted"


@pytest.mark.parametrize(
    "args", [["compress"], ["inspect"], ["unknown"], ["ls", "--nonsense"], ["serve", "--port", "x"]]
)
def test_wrong_usage_is_exit_code_2(args: list[str]) -> None:
    result = CliRunner().invoke(app, args, env={"PATCHBAY_BASE": None})
    assert result.exit_code == 2
    assert "Usage" in result.stderr and result.stdout == ""


def failing(error: BaseException) -> typer.Typer:
    """An app of the same group whose only command raises `error`."""
    own = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    def fail(note: Annotated[str, typer.Argument()] = "", as_json: JsonOption = False) -> None:
        raise error

    own.command("fail")(fail)
    own.command("other")(fail)
    return own


@pytest.mark.parametrize(
    ("error", "exit_code", "sentence"),
    [
        (WrongShape("'w' has shape [2]", param="w"), 2, "'w' has shape [2]"),
        (StoreFull("no space left"), 1, "no space left"),
        (OSError(28, "No space left on device", "x.safetensors"), 1, "x.safetensors: No space left on device"),
        (MemoryError(), 1, "not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyError("w"), 1, "unexpected KeyError: 'w'; this is a bug, python -X dev shows where it happened"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_ends_a_command_is_one_sentence(error: BaseException, exit_code: int, sentence: str) -> None:
    result = CliRunner().invoke(failing(error), ["fail", "--json"])
    assert (result.exit_code, result.stderr) == (exit_code, f"error: {sentence}\n")
    shown = json.loads(result.stdout)["error"]
    assert shown["message"] == sentence and set(shown) == {"message", "code", "param"}


def test_without_json_stdout_stays_empty() -> None:
    result = CliRunner().invoke(failing(KeyError("w")), ["fail"])
    assert result.exit_code == 1 and result.stdout == ""


def test_the_json_option_is_not_looked_for_among_other_values() -> None:
    assert CliRunner().invoke(failing(KeyError("w")), ["fail", "--", "--json"]).stdout == ""


def test_messages_cannot_steer_the_terminal() -> None:
    result = CliRunner().invoke(failing(WrongShape("tensor '\x1b[2J\u202e' [red]is[/red] wrong")), ["fail"])
    assert result.stderr == "error: tensor '\\x1b[2J\\u202e' [red]is[/red] wrong\n"


def test_development_mode_shows_where_a_bug_is() -> None:
    code = """
import typer
from patchbay_server.cli import Commands
app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
app.command("a")(lambda: 1 / 0)
app.command("b")(lambda: None)
app()
"""
    exit_code, _, err = finish(command("a", code=code, flags=("-X", "dev")))
    assert exit_code == 1 and "Traceback" in err and "ZeroDivisionError" in err
    exit_code, _, err = finish(command("a", code=code))
    assert exit_code == 1 and "Traceback" not in err and len(err.splitlines()) == 1
