"""What a worker has in memory from its start: psycopg's modules and OpenSSL are much already."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_LOADED = """
import json, sys
import flower.views.broker, flower.views.monitor  # as the command `celery` does where Flower is installed
from kombu import Connection
import celery_jobqueue.broker.results
Connection("postgresql://nobody@127.0.0.1:1/nothing").transport
print(json.dumps([name for name in sys.modules if name.startswith(("celery_jobqueue.", "sqlalchemy"))]))
"""


def test_a_worker_does_not_load_what_others_need() -> None:
    pytest.importorskip("flower")
    done = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True)
    loaded = {name.removeprefix("celery_jobqueue.") for name in json.loads(done.stdout)}
    assert "broker.cycle" in loaded
    assert "broker.flower_hook" in loaded
    others = {"broker.flower", "broker.gauges", "broker.beat", "broker.schedules", "broker.enqueue", "broker.many",
              "broker.callers", "broker.finish", "db.migrate", "db.embedded", "db.cli", "db.models", "sqlalchemy"}
    assert not loaded & others
