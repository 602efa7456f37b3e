"""Celery's own display of settings hides passwords wherever libpq takes them."""

from __future__ import annotations

import pytest
from celery import Celery


@pytest.mark.parametrize(("url", "shown"), [
    ("postgresql://u:topsecret@h/db", "postgresql://u:**@h/db"),
    ("postgresql://h/db?user=u&password=topsecret&sslmode=require", "postgresql://h/db?user=u&password=**&sslmode=require"),
    ("postgres://h:1,h:2/db?password=topsecret", "postgres://h:1,h:2/db?password=**"),
    ("postgresql://h/a?password=topsecret;postgresql://u:topsecret@h/b",
     "postgresql://h/a?password=**;postgresql://u:**@h/b"),
    ("redis://:topsecret@h/0", "redis://:********@h/0"),
    ("rpc://", "rpc://"),
])
def test_settings_and_report_show_no_password(url: str, shown: str) -> None:
    app = Celery(broker="postgresql://u:topsecret@h/db", backend=url, set_as_current=False)
    assert app.connection().transport.driver_type == "postgres"  # loads our transport, as every program does
    assert app.conf.table()["result_backend"] == shown
    assert "topsecret" not in app.bugreport()
