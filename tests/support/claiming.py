"""The claiming side of a connection, for tests that have no connection or no clock."""

from __future__ import annotations

import uuid

from celery_jobqueue.broker.claims import Claims

OWNER = str(uuid.UUID(int=1))
SLOWEST = 5.0


def claims_of(*queues: str) -> Claims:
    claims = Claims(OWNER, SLOWEST)
    for queue in queues:
        claims.add(queue)
    return claims
