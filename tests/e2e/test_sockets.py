"""Requests that break HTTP, JSON or patience: each gets an error in the one shape or a closed connection, and nobody
else notices.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from tests.e2e import processes
from tests.e2e.sockets import Send, answers, chunks, exchange, half_close, head, post, reset, then, until_answered
from tests.service.serving import ok

HASTY = Path(__file__).with_name("hasty.py")
SECONDS = "0.8"
MOST_GROWTH = 64 << 20
ASK = b'{"model": "base", "prompt": "the cat", "max_tokens": 2, "ignore_eos": true}'
ANSWER = {"model": "base", "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}}
ASK_PATH = "/v1/completions"
CHUNKED = "Transfer-Encoding: chunked"
LAST = "Connection: close"
HEALTH = head("GET /healthz HTTP/1.1")
LAST_HEALTH = head("GET /healthz HTTP/1.1", LAST)
UPLOAD = "/v1/deltas?name=slow"
MEGABYTE = b"a" * (1 << 20)


def asking(text: str) -> bytes:
    """A completion whose JSON is this text."""
    return post(ASK_PATH, text.encode(), LAST)


def with_field(field: str) -> bytes:
    return asking(f'{{"model": "base", "prompt": "the cat", {field}}}')


def in_chunks(body: bytes, path: str = ASK_PATH) -> bytes:
    """A request whose body is written as it is said here."""
    return post(path, body, CHUNKED, LAST)


def form(kind: str, body: bytes) -> bytes:
    return post("/v1/eeg/classify", body, f"Content-Type: {kind}", LAST)


PART = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'
UNREADABLE = ["400 invalid_request"]
SLOW = ["408 http_error"]
TOO_MUCH = ["431 http_error"]
# name -> what is sent, and the answers until the server closes
CASES: dict[str, tuple[bytes | Send, list[str]]] = {
    "headers_that_trickle": (then(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ", until_answered(b"a")), SLOW),
    "blank_lines_that_trickle": (until_answered(b"\r\n"), SLOW),
    "headers_without_an_end_behind_an_answer": (HEALTH + b"GET /healthz", ["200", *SLOW]),
    "nothing_at_all": (then(), []),
    "a_body_that_trickles": (then(post(ASK_PATH, b"{", "Content-Length: 999"), until_answered(b" ")), SLOW),
    "an_upload_that_trickles": (then(post(UPLOAD, b"", CHUNKED), until_answered(b"1\r\na\r\n")), SLOW),
    "a_refused_body_that_trickles": (
        then(post("/v1/nothing", b"", "Content-Length: 99"), until_answered(b" ")),
        ["404 unknown_route"],
    ),
    "chunk_size_that_is_not_hex": (in_chunks(b"xyz\r\nabc\r\n"), UNREADABLE),
    "chunk_size_below_zero": (in_chunks(b"-3\r\nabc\r\n"), UNREADABLE),
    "chunk_size_of_17_digits": (in_chunks(b"fffffffffffffffff\r\nabc\r\n"), UNREADABLE),
    "chunk_of_8_exabytes": (in_chunks(b"7fffffffffffffff\r\nabc"), SLOW),
    "chunk_longer_than_it_says": (in_chunks(b"3\r\nabcde\r\n0\r\n\r\n"), UNREADABLE),
    "chunks_without_an_end": (in_chunks(chunks([ASK])), SLOW),
    "chunk_with_an_extension": (in_chunks(b"%x;a=b;c\r\n%s\r\n0\r\n\r\n" % (len(ASK), ASK)), ["200"]),
    "chunk_extension_of_a_megabyte": (in_chunks(b"3;" + MEGABYTE), TOO_MUCH),
    "trailers": (in_chunks(chunks([ASK]) + b"0\r\nContent-Type: text/plain\r\n\r\n"), ["200"]),
    "trailers_of_a_megabyte": (in_chunks(chunks([ASK]) + b"0\r\nX: " + MEGABYTE), TOO_MUCH),
    "chunked_and_something_else": (post(ASK_PATH, b"0\r\n\r\n", CHUNKED + ", identity", LAST), UNREADABLE),
    "length_and_chunks": (post(ASK_PATH, b"0\r\n\r\n", CHUNKED, "Content-Length: 5"), UNREADABLE),
    "smuggled_behind_length_and_chunks": (
        post(ASK_PATH, b"0\r\n\r\n" + HEALTH, CHUNKED, "Content-Length: 5"),
        UNREADABLE,
    ),
    "smuggled_behind_two_lengths": (
        post(ASK_PATH, HEALTH, "Content-Length: 0", f"Content-Length: {len(HEALTH)}"),
        UNREADABLE,
    ),
    "two_lengths_alike": (post(ASK_PATH, ASK, *[f"Content-Length: {len(ASK)}"] * 2), UNREADABLE),
    "length_below_zero": (post(ASK_PATH, ASK, "Content-Length: -1"), UNREADABLE),
    "length_with_a_sign": (post(ASK_PATH, ASK, f"Content-Length: +{len(ASK)}"), UNREADABLE),
    "length_of_30_digits": (post(ASK_PATH, ASK, "Content-Length: " + "9" * 30), UNREADABLE),
    "length_over_the_limit": (post(ASK_PATH, b"", f"Content-Length: {1 << 40}", LAST), ["413 body_too_large"]),
    "oversize_that_expects_to_go_on": (
        post(ASK_PATH, b"", f"Content-Length: {1 << 21}", "Expect: 100-continue", LAST),
        ["413 body_too_large"],
    ),
    "chunks_over_the_limit": (in_chunks(chunks([MEGABYTE, b"a"])), ["413 body_too_large"]),
    "body_too_short": (then(post(ASK_PATH, ASK, "Content-Length: 999"), half_close), []),
    "body_too_long": (post(ASK_PATH, ASK + b" and more", f"Content-Length: {len(ASK)}"), ["200"]),
    "header_of_a_megabyte": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + MEGABYTE + b"\r\n\r\n", TOO_MUCH),
    "ten_thousand_headers": (head("GET /healthz HTTP/1.1", *["X: a"] * 10_000), TOO_MUCH),
    "path_of_a_megabyte": (b"GET /" + MEGABYTE + b" HTTP/1.1\r\nHost: a\r\n\r\n", TOO_MUCH),
    "nul_in_a_header": (head("GET /healthz HTTP/1.1", "X: a\0b"), UNREADABLE),
    "bare_cr_in_a_header": (head("GET /healthz HTTP/1.1", "X: a\rb"), UNREADABLE),
    "bare_lf_between_headers": (b"GET /healthz HTTP/1.1\nHost: a\n\n", UNREADABLE),
    "folded_header": (head("GET /healthz HTTP/1.1", "X: a\r\n b"), UNREADABLE),
    "blank_before_a_colon": (post(ASK_PATH, b"0\r\n\r\n", "Transfer-Encoding : chunked"), UNREADABLE),
    "bad_utf8_in_a_path": (b"GET /v1/models/\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", UNREADABLE),
    "bad_utf8_in_an_escape": (head("GET /v1/deltas/%ff%fe HTTP/1.1", LAST), ["404 not_found"]),
    "escaped_slashes_in_a_name": (head("GET /v1/deltas/..%2f..%2fetc%2fpasswd HTTP/1.1", LAST), ["404 unknown_route"]),
    "escaped_nul_in_a_name": (head("GET /v1/deltas/math%00 HTTP/1.1", LAST), ["404 not_found"]),
    "dots_for_a_name": (head("DELETE /v1/deltas/.. HTTP/1.1", LAST), ["404 not_found"]),
    "escaped_line_in_a_query": (post("/v1/deltas?name=a%0d%0ab", b"x", LAST), ["422 invalid_name"]),
    "bad_utf8_in_json": (post(ASK_PATH, b'{"model": "\xff\xfe"}', LAST), UNREADABLE),
    "number_1e999": (with_field('"temperature": 1e999'), ["422 invalid_request"]),
    "nan": (with_field('"temperature": NaN'), ["422 invalid_request"]),
    "minus_infinity": (with_field('"logit_bias": {"1": -Infinity}'), ["422 invalid_request"]),
    "number_of_a_million_digits": (with_field(f'"seed": {"9" * 1_000_000}'), UNREADABLE),
    "nested_100_000_deep": (with_field(f'"patch": {"[" * 100_000}'), UNREADABLE),
    "key_given_twice": (with_field('"model": "math"'), ["422 invalid_request"]),
    "half_a_surrogate_pair": (asking(r'{"model": "base", "prompt": "\ud800"}'), ["422 invalid_request"]),
    "half_a_surrogate_pair_as_model": (asking(r'{"model": "\udfff", "prompt": "a"}'), ["422 invalid_request"]),
    "gzip_bomb": (post(ASK_PATH, gzip.compress(bytes(1 << 24)), "Content-Encoding: gzip", LAST), UNREADABLE),
    "form_without_a_boundary": (form("multipart/form-data", PART), ["422 invalid_input"]),
    "form_of_100_000_parts": (
        then(post("/v1/eeg/classify", PART * 100_000, "Content-Type: multipart/form-data; boundary=x"), half_close),
        ["422 invalid_input"],
    ),
    "form_whose_part_has_no_end": (form("multipart/form-data; boundary=x", PART), ["422 invalid_input"]),
    "http_0_9": (b"GET /healthz\r\n\r\n", ["505 http_error"]),
    "http_2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", UNREADABLE),
    "http_3": (b"GET /healthz HTTP/3.0\r\nHost: a\r\n\r\n", UNREADABLE),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), UNREADABLE),
    "unknown_method": (head("BREW /healthz HTTP/1.1"), UNREADABLE),
    "known_method_that_is_not_there": (head("PROPFIND /healthz HTTP/1.1", LAST), ["405 method_not_allowed"]),
    "whole_url_as_target": (head("GET http://elsewhere/healthz HTTP/1.1", LAST), ["200"]),
    "connect": (head("CONNECT elsewhere:443 HTTP/1.1"), UNREADABLE),
    "websocket": (
        head(
            "GET /healthz HTTP/1.1",
            "Connection: Upgrade, close",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
        ["200"],
    ),
    "three_at_once": (HEALTH + post(ASK_PATH, ASK) + LAST_HEALTH, ["200", "200", "200"]),
    "rubbish_behind_a_request": (post(ASK_PATH, ASK) + b"\x00\x01\x02\r\n\r\n", ["200"]),
    "rubbish_behind_two_requests": (post(ASK_PATH, ASK) + HEALTH + b"rubbish\r\n\r\n", ["200", "200"]),
    "bad_chunks_behind_a_request": (post(ASK_PATH, ASK) + in_chunks(b"xyz\r\n"), ["200", *SLOW]),
    "nothing_more_to_come": (then(post(ASK_PATH, ASK), half_close), []),
    "reset_in_an_upload": (then(post(UPLOAD, b"abc", "Content-Length: 999"), reset), []),
}


@dataclass(frozen=True, slots=True)
class Running:
    client: httpx2.Client
    pid: int
    store: Path

    @property
    def address(self) -> tuple[str, int]:
        port = self.client.base_url.port
        assert port is not None
        return self.client.base_url.host, port

    def resident(self) -> int:
        """Bytes of memory that the process has."""
        [kilobytes] = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(kilobytes) << 10

    def partial(self) -> list[Path]:
        """Files of uploads that have not ended."""
        return [path for path in (self.store / "blobs" / "tmp").glob("*/*") if path.name != ".lock"]

    def ask(self) -> dict[str, object]:
        answer = ok(self.client.post(ASK_PATH, content=ASK, headers={"content-type": "application/json"}))
        return {key: answer[key] for key in ANSWER}


@pytest.fixture(scope="module")
def server(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = tmp_path_factory.mktemp("store")
    process = processes.start(str(HASTY), str(model_folder("llama")), str(store), SECONDS)
    with processes.ended(process), httpx2.Client(base_url=processes.announced(process)[3], timeout=60) as client:
        running = Running(client, process.pid, store)
        running.ask()
        yield running


@pytest.fixture(scope="module")
def resident(server: Running) -> int:
    """What the server had before the first case."""
    return server.resident()


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_and_nobody_else_notices(server: Running, resident: int, name: str) -> None:
    sent, expected = CASES[name]
    assert answers(exchange(server.address, sent if callable(sent) else then(sent))) == expected
    assert ok(server.client.get("/healthz")) == {"status": "ok"}
    assert server.ask() == ANSWER
    assert server.partial() == []
    assert server.resident() < resident + MOST_GROWTH


def test_a_trailer_is_no_header(server: Running) -> None:
    sent = in_chunks(chunks([ASK]) + b"0\r\nX-Request-ID: smuggled\r\n\r\n")
    found = exchange(server.address, then(sent))
    assert answers(found) == ["200"] and b"smuggled" not in found


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 30
