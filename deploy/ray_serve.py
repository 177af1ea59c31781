"""Patchbay on a Ray cluster: `serve run ray_serve:app` in this folder, or as `kubernetes/rayservice.yaml` runs it.

Settings are `PATCHBAY_*` in the environment, the same on every node. How many replicas there are and what each takes is
the cluster's configuration: `deployments` of its `serveConfigV2`, the deployment `Replica`.
"""

from patchbay_server.replicas.ingress import application
from patchbay_server.settings import Settings

app = application(Settings())
