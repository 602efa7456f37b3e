"""Events to issue certificates for."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg

from tasks.certificates.samples import CLASSIC
from tests.support.database import rows

__all__ = ["USER", "add_event", "certificates_of", "path_of"]

USER = "organiser-1"


def add_event(url: str, design: dict[str, Any] | None = CLASSIC, user: str | None = USER, **fields: Any) -> str:
    """A new event's id; without a design it has no configuration, without a user no organiser."""
    values = {"id": str(uuid.uuid4()), "name": "A Day of Queues", "starts_on": "2026-11-16", "ends_on": "2026-11-16",
              "place": "Lisbon", "organiser": "ACADEMY", **fields}
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("insert into events (id, name, starts_on, ends_on, place, organiser) values "
                     "(%(id)s, %(name)s, %(starts_on)s, %(ends_on)s, %(place)s, %(organiser)s)", values)
        if design is not None:
            conn.execute("insert into certificate_configs (event_id, design) values (%s, %s)", (values["id"], json.dumps(design)))
        if user is not None:
            conn.execute("insert into event_organisers (event_id, user_id) values (%s, %s)", (values["id"], user))
    return str(values["id"])


def certificates_of(url: str, event: str) -> list[dict[str, Any]]:
    """The rows of an event's certificates."""
    return rows(url, "select * from certificates where event_id = %s order by recipient_key", (event,))


def path_of(link: str) -> Path:
    """The file that a file:// link leads to."""
    parts = urlsplit(link)
    assert parts.scheme == "file"
    return Path(unquote(parts.path))
