"""kombu's own integration classes against `postgresql://`; copied into kombu's unpacked sdist and run there."""

from __future__ import annotations

import os
from typing import Any

import kombu
import pytest
from t.integration.common import (
    BaseEventLoop,
    BaseExchangeTypes,
    BaseFailover,
    BaseMessage,
    BasePriority,
    BaseTimeToLive,
    BasicFunctionality,
)

import celery_jobqueue.broker  # noqa: F401  (a program without Celery says so once)

URL = os.environ["TEST_BROKER"]
NOWHERE = "postgresql://nobody:secret@127.0.0.1:9/none?sslmode=disable"


@pytest.fixture
def connection() -> Any:
    return kombu.Connection(URL)


@pytest.fixture
def invalid_connection() -> Any:
    return kombu.Connection(NOWHERE)


@pytest.fixture
def failover_connection() -> Any:
    """With query parameters, which kombu's own failover does not survive."""
    return kombu.Connection(f"{NOWHERE};{URL}?application_name=second")


class test_Basic(BasicFunctionality):  # noqa: N801  (kombu's naming)
    pass


class test_ExchangeTypes(BaseExchangeTypes):  # noqa: N801
    pass


class test_TimeToLive(BaseTimeToLive):  # noqa: N801
    pass


class _Priority(BasePriority):
    SCALE = "jobs"

    @pytest.fixture
    def connection(self) -> Any:
        """Empty queues: what an earlier class left unacknowledged went back into them."""
        names = ("priority_test", "priority_requeue_test", "priority_simple_queue_test", "priority_simple_buffer_test")
        with kombu.Connection(URL) as conn, conn.channel() as channel:
            for name in names:
                channel.queue_delete(name)
        return kombu.Connection(URL, transport_options={"priority_scale": self.SCALE})


class test_PriorityJobs(_Priority):  # noqa: N801
    PRIORITY_ORDER = "desc"

    @pytest.mark.xfail(strict=True, reason="uses 0 as the highest priority; on the scale of jobs 0 is 'nobody said', because "
                                           "kombu writes 0 where nobody did, and means the default (contract §4.3)")
    def test_publish_requeue_consume(self, connection: Any) -> None:
        super().test_publish_requeue_consume(connection)


class test_PriorityAmqp(_Priority):  # noqa: N801
    PRIORITY_ORDER = "asc"
    SCALE = "amqp"


class test_PriorityRedis(_Priority):  # noqa: N801
    PRIORITY_ORDER = "desc"
    SCALE = "redis"


class test_Message(BaseMessage):  # noqa: N801
    pass


class test_EventLoop(BaseEventLoop):  # noqa: N801
    pass


class test_Failover(BaseFailover):  # noqa: N801
    pass
