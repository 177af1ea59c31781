"""`deploy/ray_serve.py` on a Ray of its own with Serve's own proxy: `python on_ray.py PORT`, until the end of stdin."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray import serve

sys.path.append(str(Path(__file__).parents[2] / "deploy"))


def main(port: int) -> None:
    ray.init(num_cpus=3, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    from ray_serve import app  # noqa: PLC0415 - reads settings when it is imported

    serve.run(app)
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
