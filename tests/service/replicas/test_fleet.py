from __future__ import annotations

import importlib.util

import pytest

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray's own use of pydantic
]


@pytest.mark.parametrize(("under_way", "wanted"), [([], 0), ([1], 1), ([32], 1), ([20, 20], 2), ([100, 0, 29], 5)])
def test_as_many_replicas_as_it_takes(under_way: list[float], wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.serve._private.common import DeploymentID, ReplicaID  # noqa: PLC0415 - an extra
    from ray.serve.config import AutoscalingConfig, AutoscalingContext  # noqa: PLC0415

    from patchbay_server.replicas.fleet import REPLICA, by_requests  # noqa: PLC0415

    deployment = DeploymentID(REPLICA)
    told = {ReplicaID(str(number), deployment): count for number, count in enumerate(under_way)}
    context = AutoscalingContext(
        deployment_id=deployment,
        deployment_name=REPLICA,
        app_name=None,
        current_num_replicas=len(told),
        target_num_replicas=len(told),
        running_replicas=list(told),
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics={"under_way": told} if told else {},
        raw_metrics={},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=10,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=AutoscalingConfig(target_ongoing_requests=32),
    )
    assert by_requests(context) == (wanted, {})
