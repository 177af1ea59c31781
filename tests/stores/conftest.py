from __future__ import annotations

from tests.store.redis_server import redis_url
from tests.stores.moto_server import new_bucket, s3_endpoint

__all__ = ["new_bucket", "redis_url", "s3_endpoint"]
