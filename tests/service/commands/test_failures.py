from __future__ import annotations

import inspect

import pytest

from patchbay import errors
from patchbay_server.commands.failures import ServerError, ServerUnreachable, explain

FAILURES = {
    *("PatchInProgress", "ShuttingDown", "EngineFailed", "QueueFull", "DeadlineExceeded", "Cancelled"),
    *("StoreFull", "StoreUnavailable", "UploadConflict", "VersionConflict"),
}
ROOTS = {"PatchbayError", "BackboneError", "StoreError"}  # never raised themselves
CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.PatchbayError) and kind.__name__ not in ROOTS | {"InvalidExpression"}
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_exit_codes_of_the_library_errors(kind: type[errors.PatchbayError]) -> None:
    failure = explain(kind("why", param="x"))
    assert failure.exit_code == (1 if kind.__name__ in FAILURES else 2)
    assert failure.to_dict() == {"error": {"message": "why", "code": kind.code, "param": "x"}}


def test_several_lines_become_one_but_for_an_expression_with_its_caret() -> None:
    assert explain(errors.InputError("two\n  lines")).message == "two lines"
    error = errors.InvalidExpression("expected a name", "0.5 * + b", 6)
    assert explain(error).message == "expected a name\n  0.5 * + b\n        ^"


@pytest.mark.parametrize(("status", "exit_code"), [(401, 2), (404, 2), (422, 2), (500, 1), (503, 1), (507, 1)])
def test_answers_of_a_server(status: int, exit_code: int) -> None:
    failure = explain(ServerError("why", status, code="not_found", param="name"))
    assert (failure.exit_code, failure.code, failure.param) == (exit_code, "not_found", "name")


def test_no_server() -> None:
    assert explain(ServerUnreachable("no answer")).exit_code == 1


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "a.txt: No such file or directory"),
        (IsADirectoryError(21, "Is a directory", "a"), 2, "a: Is a directory"),
        (FileNotFoundError("no a.txt"), 2, "no a.txt"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (OSError(), 1, "OSError"),
        (OSError("first line\n  second line"), 1, "first line second line"),
    ],
)
def test_operating_system_errors(error: OSError, exit_code: int, message: str) -> None:
    failure = explain(error)
    assert (failure.exit_code, failure.message, failure.code) == (exit_code, message, "os_error")
