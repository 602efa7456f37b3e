"""The test application with a schedule (TEST_SCHEDULE, JSON: name → seconds) and a beat that dies where it hurts most."""

from __future__ import annotations

import json
import os
import random
import signal
from typing import Any

from celery_jobqueue.broker.beat import DatabaseScheduler
from tests.support.app import make_app

app = make_app(os.environ.get("DATABASE_URL", "postgresql://unset@127.0.0.1:1/unset"), result_expires=None, beat_schedule={
    name: {"task": "t.add", "schedule": seconds, "args": [1, 2]}
    for name, seconds in json.loads(os.environ.get("TEST_SCHEDULE", "{}")).items()})
app.conf.broker_transport_options = {**app.conf.broker_transport_options, **json.loads(os.environ.get("TEST_OPTIONS", "{}"))}


class MortalScheduler(DatabaseScheduler):
    """TEST_FATE says when (`sent`, `saved`, `committed`; several: any of them), TEST_CHANCE how often, TEST_SIGNAL how."""

    def _meet_fate(self, moment: str) -> None:
        if moment in os.environ["TEST_FATE"].split() and random.random() < float(os.environ.get("TEST_CHANCE", "1")):
            os.kill(os.getpid(), signal.Signals[os.environ.get("TEST_SIGNAL", "SIGKILL")])

    def _send(self, *args: Any) -> Any:
        failure = super()._send(*args)
        self._meet_fate("sent")
        return failure

    def _save(self, *args: Any, **kwargs: Any) -> None:
        super()._save(*args, **kwargs)
        self.ran = kwargs.get("ran", False)
        if self.ran:
            self._meet_fate("saved")

    def _look(self) -> float:
        self.ran = False
        wait = super()._look()
        if self.ran:
            self._meet_fate("committed")
        return wait
