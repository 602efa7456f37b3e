"""A sample event with its design, for the demo and the tests."""

from __future__ import annotations

import json
import uuid
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from celery_jobqueue.db.models import CertificateConfig, Event, EventOrganiser

__all__ = ["CLASSIC", "DESIGNS", "SAMPLE_EVENT", "SAMPLE_USER", "seed_sample_event"]

SAMPLE_EVENT = uuid.UUID("6f1d8c2e-5b7a-4c39-9d51-0a4be1c7f203")
SAMPLE_USER = "organiser-1"

#: The designs that come with this application, to begin one's own with: `classic`, `modern`, `diploma`.
DESIGNS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(Path(__file__).with_name("designs").glob("*.json"))}

#: Black on cream with an engraved frame: the design that the demo issues.
CLASSIC = DESIGNS["classic"]


def seed_sample_event(session: Session) -> Event:
    """The sample event with its organiser and design; made when missing, brought up to date when there. Flushes only."""
    session.execute(insert(Event).values(
        id=SAMPLE_EVENT, name="PostgreSQL for Application Developers", starts_on=date(2026, 11, 16), ends_on=date(2026, 11, 20),
        place="Lisbon", organiser="NORTHERN LIGHTS ACADEMY").on_conflict_do_nothing())
    session.execute(insert(EventOrganiser).values(event_id=SAMPLE_EVENT, user_id=SAMPLE_USER).on_conflict_do_nothing())
    config = insert(CertificateConfig).values(event_id=SAMPLE_EVENT, design=CLASSIC)
    session.execute(config.on_conflict_do_update(index_elements=["event_id"], set_={"design": config.excluded.design}))
    event = session.get(Event, SAMPLE_EVENT)
    assert event is not None
    return event
