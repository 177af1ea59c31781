"""The OpenAPI of a real server holds: nothing is answered that it does not say, and nothing with 5xx."""

from __future__ import annotations

from tests.openapi.run import TARGETS, one_round


def test_a_server_answers_as_its_openapi_says() -> None:
    """A short round; `make test-api` makes thousands of requests."""
    report, statuses = one_round(TARGETS[0], seed=1, examples=5, phases=("fuzzing", "stateful"))
    assert (report.failures, report.errors) == ([], []), report.output
    assert report.phases == {"examples": "skip", "coverage": "skip", "fuzzing": "success", "stateful": "success"}
    assert {status[0] for status in statuses} == {"2", "4"}
    assert sum(statuses.values()) >= report.cases >= 150
