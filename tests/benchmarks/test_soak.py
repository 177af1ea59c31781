"""A short soak of a real server asks everything, and what goes wrong is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from benchmarks.churn import Churn, Tally, Unasked
from benchmarks.soak import draw_plot, flatness, soak, summary
from hypothesis import given
from hypothesis import strategies as st
from tests.long import long


@long
def test_a_short_soak(tmp_path: Path) -> None:
    report = soak("2M", 0.1, 0.2, tmp_path / "cache")
    assert report["failures"] == []
    wanted = {"upload", "complete", "stream", "hang up", "merge", "pin", "unpin", "delete", "delete merge"}
    assert set(report["requests"]) == wanted
    requests = [sample["requests"] for sample in report["samples"]]
    assert requests == sorted(requests) and requests[-1] > 0
    assert all(0 < sample["anonymous"] < sample["rss"] for sample in report["samples"])
    assert "RSS" in summary(json.loads(json.dumps(report)))
    draw_plot(report["samples"], tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


@given(st.lists(st.integers(1 << 20, 1 << 30), min_size=1))
def test_what_happens_again_is_flat(rss: list[int]) -> None:
    assert flatness(3 * rss)["change"] == 0


@pytest.mark.parametrize(("last", "is_flat"), [(1040, True), (960, True), (1060, False), (940, False)])
def test_what_grows_or_shrinks_is_not(last: int, is_flat: bool) -> None:
    """The first third may do what it likes."""
    assert flatness([*range(30), *[1000] * 30, *[last] * 30])["is_flat"] == is_flat


@pytest.fixture
def broken() -> Iterator[str]:
    """The URL of a server that answers whatever is posted with an error of its own."""

    class Broken(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(500)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_wrong_answer_is_a_failure(broken: str, tmp_path: Path) -> None:
    file = tmp_path / "drawn"
    file.write_bytes(b"no matter what")
    tally = Tally()
    client = Churn(broken, 0, lambda client, number: file, tally)
    for ask in (client.upload, client.complete, client.stream, client.hang_up):
        with pytest.raises(Unasked, match="500"):
            ask("own")

    class Once(Event):
        """Set by the first wait."""

        def wait(self, timeout: float | None = None) -> bool:
            self.set()
            return True

    client.run(Once())
    assert len(tally.failures) == 1 and "round 1: Unasked: POST /v1/deltas: 500" in tally.failures[0]
