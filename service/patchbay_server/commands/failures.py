"""Failures as a shell sees them: one sentence and an exit code.

| exit | when |
|---|---|
| 0 | done |
| 1 | a failure: no server answers or it fails (5xx), a port that is taken, no space, no memory, a bug |
| 2 | bad input: wrong usage, a file that is missing or refused, a request that the server refuses (4xx) |
| 130 | interrupted (Ctrl-C; pre-training by SIGTERM, too) |

Knows nothing of the commands. Imports no HTTP client: `commands.client` raises what is defined here.
"""

from __future__ import annotations

from dataclasses import dataclass

from patchbay import errors
from patchbay.errors import PatchbayError

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


class ServerUnreachable(PatchbayError):
    """No server answers at the URL, or it stopped in the middle."""

    code = "server_unreachable"


class ServerError(PatchbayError):
    """The server answered with an error; `code` and `param` are the server's."""

    def __init__(self, message: str, status: int, *, code: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.code = code


# The caller's mistakes: the same command fails again. Every other error is a failure, and may pass.
_BAD_INPUT = (
    errors.UnsupportedBackbone,
    errors.UnsupportedTask,
    errors.InputError,
    errors.FinetuneMismatch,
    errors.DeltaError,
    errors.RecipeError,
    errors.InvalidName,
    errors.NotFound,
    errors.NameTaken,
    errors.InvalidKey,
    errors.QuotaExceeded,
    errors.DeltaInUse,
    errors.ImportConflict,
    errors.CacheFull,
)
_WRONG_PATH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


@dataclass(frozen=True, slots=True)
class Failure:
    message: str
    code: str
    exit_code: int
    param: str | None = None

    def to_dict(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": self.message, "code": self.code, "param": self.param}}


def explain(error: BaseException) -> Failure:
    """The sentence and the exit code of whatever ended a command."""
    if isinstance(error, PatchbayError):
        # An expression stands in lines of its own, with a caret under what is wrong.
        text = error.message if isinstance(error, errors.InvalidExpression) else " ".join(error.message.split())
        return Failure(text, error.code, _exit_code(error), error.param)
    if isinstance(error, OSError):
        exit_code = BAD_INPUT if isinstance(error, _WRONG_PATH) else FAILED
        return Failure(_os_message(error), "os_error", exit_code, _file_name(error))
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", "interrupted", INTERRUPTED)
    if isinstance(error, MemoryError):
        return Failure("not enough memory", "out_of_memory", FAILED)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return Failure(
        f"unexpected {reason}; this is a bug, python -X dev shows where it happened", "internal_error", FAILED
    )


def _exit_code(error: PatchbayError) -> int:
    if isinstance(error, ServerError):
        return BAD_INPUT if error.status < 500 else FAILED
    return BAD_INPUT if isinstance(error, _BAD_INPUT) else FAILED


def _os_message(error: OSError) -> str:
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    name = _file_name(error)
    return f"{name}: {reason}" if name else reason


def _file_name(error: OSError) -> str | None:
    return None if error.filename is None else str(error.filename)
