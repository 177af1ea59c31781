"""The manifests against what they are about: settings, routes and seconds. No cluster has read them here."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchbay_server.auth import OPEN
from patchbay_server.listen import DRAIN_S, END_S
from patchbay_server.settings import Settings

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
PLAIN = list(yaml.safe_load_all((FOLDER / "patchbay.yaml").read_text("utf-8")))
RAY = yaml.safe_load((FOLDER / "rayservice.yaml").read_text("utf-8"))
SERVE = yaml.safe_load(RAY["spec"]["serveConfigV2"])
CLUSTER = RAY["spec"]["rayClusterConfig"]
NOT_OURS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def of(kind: str, name: str = "patchbay") -> dict[str, Any]:
    [found] = [each for each in PLAIN if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return dict(found)


def pods() -> list[dict[str, Any]]:
    workloads = [of("Deployment"), of("Deployment", "patchbay-worker")]
    return [each["spec"]["template"]["spec"] for each in workloads]


def ray_pods() -> list[dict[str, Any]]:
    groups = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_every_variable_is_a_setting_that_takes_it() -> None:
    given = of("ConfigMap")["data"]
    assert all(isinstance(value, str) for value in given.values()), "Kubernetes takes nothing else"
    secret = set(re.findall(r"--from-literal=(\w+)=", (FOLDER / "patchbay.yaml").read_text("utf-8")))
    fields = {f"PATCHBAY_{field.upper()}" for field in Settings.model_fields}
    assert given.keys() | secret - NOT_OURS <= fields
    Settings.model_validate({name.removeprefix("PATCHBAY_").lower(): value for name, value in given.items()})
    assert given["PATCHBAY_WORKERS"] == "0", "jobs are the worker's"


def test_probes_ask_routes_that_need_no_key_at_the_port_that_is_served() -> None:
    [container] = of("Deployment")["spec"]["template"]["spec"]["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert probes["readiness"]["path"] == "/readyz" and {probe["path"] for probe in probes.values()} <= OPEN
    [port] = container["ports"]
    assert port["containerPort"] == Settings.model_fields["port"].default
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert of("Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert container["readinessProbe"]["timeoutSeconds"] > 2, "/readyz itself waits two seconds for the catalog"


def test_who_is_told_to_end_is_given_the_time() -> None:
    assert all(pod["terminationGracePeriodSeconds"] > DRAIN_S + END_S for pod in pods())


def test_labels_and_names_meet() -> None:
    for name in ("patchbay", "patchbay-worker"):
        spec = of("Deployment", name)["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    serving = of("Deployment")["spec"]["selector"]["matchLabels"]
    assert of("Service")["spec"]["selector"] == serving
    assert of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == serving
    target = of("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "patchbay")


@pytest.mark.parametrize("pod", [*pods(), *ray_pods()])
def test_every_pod_has_its_settings_its_volumes_and_a_bound_on_memory(pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": "patchbay"}}, {"secretRef": {"name": "patchbay"}}]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/models", "/data"}
    assert container["resources"]["limits"].keys() == {"memory"}


def test_the_queue_is_a_metric_that_there_is() -> None:
    [pods, _] = of("HorizontalPodAutoscaler")["spec"]["metrics"]
    api = (ROOT / "service" / "API.md").read_text("utf-8")
    assert f"`{pods['pods']['metric']['name'].replace('vllm_', 'vllm:', 1)}`" in api


def test_ray_runs_what_is_here() -> None:
    [app] = SERVE["applications"]
    module, _, name = app["import_path"].partition(":")
    source = ast.parse((ROOT / "deploy" / f"{module}.py").read_text("utf-8"))
    assert name in {target.id for node in source.body if isinstance(node, ast.Assign) for target in node.targets}  # type: ignore[attr-defined]
    assert f"COPY deploy/{module}.py /opt/patchbay/deploy/" in (ROOT / "Dockerfile").read_text("utf-8")
    assert CLUSTER["rayVersion"] == re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)[0]
    assert CLUSTER["authOptions"] == {"mode": "token"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own use of pydantic
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_ray_serve_takes_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415 - an extra

    from patchbay_server.replicas import fleet, ingress  # noqa: PLC0415 - the same

    found = ServeDeploySchema.model_validate(SERVE)
    deployments = {each.name: each for each in found.applications[0].deployments}
    assert deployments.keys() == {ingress.FRONT, fleet.REPLICA}
    scaling = SERVE["applications"][0]["deployments"][1]["autoscaling_config"]
    module, _, name = scaling["policy"]["policy_function"].partition(":")
    assert (module, name) == (fleet.__name__, fleet.by_requests.__name__)
    assert scaling["target_ongoing_requests"] == Settings.model_fields["max_running"].default
    most = sum(group["maxReplicas"] for group in CLUSTER["workerGroupSpecs"])
    assert most == scaling["max_replicas"], "one replica a pod"
