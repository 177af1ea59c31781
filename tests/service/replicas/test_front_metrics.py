from __future__ import annotations

import re
from pathlib import Path

from patchbay_server.replicas.front_metrics import FrontMetrics

API = Path(__file__).parents[3] / "service" / "API.md"


def test_every_metric_of_the_front_is_documented() -> None:
    text = FrontMetrics().render()
    real = {(name, kind) for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE)}
    table = API.read_text("utf-8").partition("| front metric |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \| (\w+) \|", table, re.MULTILINE)) == real
