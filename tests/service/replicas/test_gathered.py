from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from tests.service.serving import Served, ok

from patchbay_server.replicas.gathered import REPLICA, SHARED, gathered


def test_every_series_says_whose_it_is_and_none_is_lost(vit: Served) -> None:
    ok(vit.post("/v1/classify", {"model": "math", "input": {"array": [[[0.1] * 16] * 16] * 3}}))
    text = vit.app.state.metrics.render().decode()
    both = gathered({"one": text, "two": text}).decode()
    before = {family.name: family for family in text_string_to_metric_families(text)}
    after = {family.name: family for family in text_string_to_metric_families(both)}
    assert after.keys() == before.keys() and len(before) > 40
    for name, family in after.items():
        assert (family.type, family.documentation) == (before[name].type, before[name].documentation)
        times = 1 if name in SHARED else 2
        assert len(family.samples) == times * len(before[name].samples)
        named = {sample.labels.get(REPLICA) for sample in family.samples}
        assert named <= ({None} if name in SHARED else {"one", "two"})
    assert both.count("# HELP patchbay_inferences_total") == 1
