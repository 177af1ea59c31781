"""The commands' side of the HTTP API: requests to a running server, errors as one sentence.

Knows the shape of errors, not of records.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx2

from patchbay.errors import InputError
from patchbay_server.commands.failures import ServerError, ServerUnreachable

CONNECT_S = 10.0
# An upload is answered after the server has decoded and checked the whole delta.
ANSWER_S = 600.0


class Client:
    """One server, at `url`, with the key of PATCHBAY_API_KEY. A context, closed on leaving it."""

    def __init__(self, url: str) -> None:
        self._url = _checked(url)
        timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S)
        self._client = httpx2.Client(base_url=self._url, headers=_authorization(), timeout=timeout)
        self._place = f"{self._url.scheme}://{self._url.netloc.decode()}"  # without a password

    def request(self, method: str, path: str, *, expect: str, **options: Any) -> tuple[int, dict[str, Any]]:
        """(status, body) of a successful answer, whose body has the field `expect`.

        Raises ServerUnreachable; ServerError for an error answer and for a server that is no Patchbay.
        """
        response = self._answer(method, path, options)
        body = _body(response)
        if expect not in body:
            raise self._stranger(response.status_code)
        return response.status_code, body

    def number(self, method: str, path: str, header: str, **options: Any) -> int:
        """The number in a header of a successful answer. Raises as `request` does."""
        response = self._answer(method, path, options)
        text = response.headers.get(header, "")
        if not text.isdecimal():
            raise self._stranger(response.status_code)
        return int(text)

    def _answer(self, method: str, path: str, options: Mapping[str, Any]) -> httpx2.Response:
        with self._reached():
            response = self._client.request(method, path, **options)
        if not response.is_success:
            raise self._error(response.status_code, _body(response))
        return response

    def _error(self, status: int, body: Mapping[str, Any]) -> ServerError:
        error = body.get("error")
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            return self._stranger(status)
        message = error["message"] + ("; commands take it from PATCHBAY_API_KEY" if status == 401 else "")
        return ServerError(message, status, code=str(error.get("code")), param=error.get("param"))

    def _stranger(self, status: int) -> ServerError:
        message = f"{self._place} answered {status}, but not as a Patchbay server: check --url or PATCHBAY_URL"
        return ServerError(message, status, code="unexpected_answer", param="url")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError as error:
            raise ServerUnreachable(
                f"cannot connect to {self._place} ({error}): start `patchbay serve`, or name the server's URL",
                param="url",
            ) from error
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ServerUnreachable(f"no answer from {self._place}: {reason}", param="url") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()


def _checked(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InputError(f"{url!r} is no URL ({error}): give one like http://127.0.0.1:8321", param="url") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"{url!r} is no http URL: give one like http://127.0.0.1:8321", param="url")
    # What OpenAI's client wants as its base URL is taken too.
    return parsed.copy_with(path=parsed.path.removesuffix("/").removesuffix("/v1"))


def _authorization() -> dict[str, str]:
    key = os.environ.get("PATCHBAY_API_KEY")
    if not key:
        return {}
    if not key.isascii() or not key.isprintable():
        raise InputError("PATCHBAY_API_KEY has characters that cannot be sent: use printable ASCII", param="api_key")
    return {"Authorization": f"Bearer {key}"}


def _body(response: httpx2.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
