"""What watches a server, as Prometheus' own tool reads it. That a real one shows all of it: e2e/test_observed.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "patchbay.json").read_text("utf-8"))
KEY_FILE = "/run/patchbay/key"
METRIC = re.compile(r"\b(?:patchbay_|vllm:|process_)\w+")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))


def promtool(*arguments: object, stdin: str = "", cwd: Path = DEPLOY) -> subprocess.CompletedProcess[str]:
    """Skips where there is none, unless PATCHBAY_REQUIRE_PROMTOOL=1."""
    program = shutil.which("promtool")
    if program is None:
        if os.environ.get("PATCHBAY_REQUIRE_PROMTOOL") == "1":
            pytest.fail("PATCHBAY_REQUIRE_PROMTOOL=1, and promtool is not on PATH")
        pytest.skip("promtool, which comes with Prometheus, is not on PATH")
    command = [program, *map(str, arguments)]
    return subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, text=True, timeout=60)


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def watched() -> set[str]:
    """Every metric that the dashboard and the alerts name, with the ends of histograms' names taken off."""
    texts = [*expressions(), *(alert["expr"] for alert in alerts().values())]
    names = {name for text in texts for name in METRIC.findall(text)}
    return {re.sub("_(bucket|sum|count)$", "", name) for name in names}


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    folder = shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    (tmp_path / "key").write_text("secret", "utf-8")
    config = folder / "prometheus.yml"
    text = config.read_text("utf-8")
    assert text.count(KEY_FILE) == 1
    config.write_text(text.replace(KEY_FILE, str(tmp_path / "key")), "utf-8")
    done = promtool("check", "config", config)
    assert done.returncode == 0, done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


def test_every_alert_fires_when_it_must_and_only_then() -> None:
    cases = yaml.safe_load((RULES.parent / "rules.test.yml").read_text("utf-8"))["tests"]
    tried = {(rule["alertname"], bool(rule["exp_alerts"])) for case in cases for rule in case["alert_rule_test"]}
    assert tried == {(name, fires) for name in alerts() for fires in (True, False)}
    done = promtool("test", "rules", RULES.with_name("rules.test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_do() -> None:
    text = (DEPLOY / "runbook.md").read_text("utf-8")
    headings = {heading.lower() for heading in re.findall(r"^### (Patchbay\w+)$", text, re.MULTILINE)}
    links = {name: alert["annotations"]["runbook"] for name, alert in alerts().items()}
    assert links == {name: f"deploy/runbook.md#{name.lower()}" for name in alerts()}
    assert headings == {name.lower() for name in alerts()}
    assert {alert["labels"]["severity"] for alert in alerts().values()} == {"critical", "warning"}
    assert f"| {len(alerts())} alerts" in (DEPLOY / "README.md").read_text("utf-8")


def test_the_dashboards_expressions_can_be_evaluated(tmp_path: Path) -> None:
    """As rules, whose syntax promtool checks."""
    texts = [text.replace("$__rate_interval", "1m").replace("$instance", ".+") for text in expressions()]
    rules = [{"record": f"dashboard:{number}", "expr": text} for number, text in enumerate(texts)]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_the_dashboard_asks_the_provisioned_source_and_no_panel_covers_another() -> None:
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text("utf-8"))
    [source] = provisioned["datasources"]
    asked = {json.dumps(t["datasource"], sort_keys=True) for panel in panels() for t in (panel, *panel["targets"])}
    assert asked == {json.dumps({"type": source["type"], "uid": source["uid"]}, sort_keys=True)}
    cells = [cell for panel in DASHBOARD["panels"] for cell in covered(panel["gridPos"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["title"] and panel["description"] for panel in panels())


def covered(place: dict[str, int]) -> list[tuple[int, int]]:
    return [(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])]


def test_compose_mounts_what_is_here() -> None:
    mounts = [v.split(":") for service in COMPOSE["services"].values() for v in service.get("volumes", ())]
    here = {target: ROOT / source for source, target, *_ in mounts if source.startswith("./")}
    assert here and all(path.is_dir() for path in here.values())
    [provider] = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/patchbay.yml").read_text("utf-8"))[
        "providers"
    ]
    assert (here[provider["options"]["path"]] / "patchbay.json").is_file()
    assert {source for source, *_ in mounts if re.fullmatch("[a-z]+", source)} == set(COMPOSE["volumes"])
    assert KEY_FILE in COMPOSE["services"]["prometheus"]["command"][0]


def test_compose_is_pinned_closed_and_watched_and_has_no_secret() -> None:
    services = COMPOSE["services"]
    assert services.keys() == {"patchbay", "worker", "redis", "prometheus", "grafana"}
    for name, service in services.items():
        assert service.get("build") == "." or re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-alpine)?", service["image"]), name
        assert all(
            re.match(r"127\.0\.0\.1:|\$\{PATCHBAY_BIND:-127\.0\.0\.1\}:", port) for port in service.get("ports", ())
        )
        assert name == "patchbay" or "healthcheck" in service, "the image's own asks the service's port"
        for key, value in service["environment"].items() if "environment" in service else ():
            assert not re.search("KEY|PASSWORD", key) or re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), key


def test_compose_is_read_by_its_own_program() -> None:
    environment = os.environ | {"PATCHBAY_BASE": "/models/x", "PATCHBAY_API_KEY": "k" * 16, "GRAFANA_PASSWORD": "p"}
    for program in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(program[0]) and not subprocess.run([*program, "version"], capture_output=True).returncode:
            command = [*program, "-f", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
            assert done.returncode == 0, done.stderr
            return
    pytest.skip("neither 'docker compose' nor docker-compose is here")
