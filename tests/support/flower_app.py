"""The test application as Celery's current one, as every application of a user is: Flower asks for results through that."""

from __future__ import annotations

from tests.support.app import app

app.set_current()
