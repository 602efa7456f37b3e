"""A sample event with its design, for the demo and the tests."""

from __future__ import annotations

import uuid
from datetime import date
from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from celery_jobqueue.db.models import CertificateConfig, Event, EventOrganiser

__all__ = ["CLASSIC", "SAMPLE_EVENT", "SAMPLE_USER", "seed_sample_event"]

SAMPLE_EVENT = uuid.UUID("6f1d8c2e-5b7a-4c39-9d51-0a4be1c7f203")
SAMPLE_USER = "organiser-1"

#: Black on cream with an engraved frame: the design that the demo issues.
CLASSIC: dict[str, Any] = {
    "title": "Certificate of Completion",
    "language": "en",
    "page": {"size": "A4", "orientation": "landscape", "colour": "#fffdf6"},
    "fields": {"hours": "24"},
    "verify_url": "https://certificates.example.org/verify/{serial}",
    "parts": [
        {"kind": "frame", "margin": 9, "width": 7, "colour": "#1f3a5f", "accent": "#b08d3c"},
        {"kind": "text", "text": "{organiser}", "x": 148.5, "y": 37, "font": "sans", "size": 11, "colour": "#1f3a5f",
         "tracking": 2.4, "max_width": 220},
        {"kind": "text", "text": "Certificate of Completion", "x": 148.5, "y": 56, "font": "display", "size": 40,
         "colour": "#1f3a5f", "max_width": 230},
        {"kind": "rule", "x": 148.5, "y": 65, "width": 96, "diamond": True, "colour": "#b08d3c"},
        {"kind": "text", "text": "This is to certify that", "x": 148.5, "y": 79, "font": "italic", "size": 14,
         "colour": "#4a5568"},
        {"kind": "text", "text": "{recipient_name}", "x": 148.5, "y": 99, "font": "display", "size": 42, "min_size": 22,
         "max_width": 226, "max_lines": 2, "colour": "#1b2a41"},
        {"kind": "text", "text": "has attended all {hours} hours of", "x": 148.5, "y": 115.5, "font": "italic", "size": 14,
         "colour": "#4a5568"},
        {"kind": "text", "text": "{event_name}", "x": 148.5, "y": 127, "font": "serif", "size": 21, "min_size": 13,
         "max_width": 220, "max_lines": 2, "colour": "#1f3a5f"},
        {"kind": "text", "text": "{event_place}  ·  {event_dates}", "x": 148.5, "y": 138, "font": "serif", "size": 12.5,
         "colour": "#4a5568", "max_width": 220},
        {"kind": "signature", "name": "Dr. Amélie Laurent", "title": "Programme Director", "x": 78, "y": 172, "width": 62,
         "colour": "#1b2a41",
         "strokes": [[[4, 30], [14, 8], [22, 2], [20, 18], [14, 32], [26, 20], [36, 16], [34, 26], [42, 18], [50, 24],
                      [58, 16], [64, 24], [74, 14], [70, 28], [84, 20], [99, 12]], [[10, 22], [24, 18], [34, 14]]]},
        {"kind": "seal", "x": 148.5, "y": 168, "radius": 15.5, "colour": "#b08d3c"},
        {"kind": "signature", "name": "Prof. Jürgen Öztürk", "title": "Head of Examinations", "x": 219, "y": 172, "width": 62,
         "colour": "#1b2a41",
         "strokes": [[[18, 6], [30, 3], [26, 22], [16, 36], [8, 30], [22, 22], [40, 18], [36, 28], [46, 18], [54, 27],
                      [62, 12], [60, 28], [72, 20], [80, 25], [97, 17]], [[6, 16], [32, 8], [44, 5]]]},
        {"kind": "qr", "x": 34.5, "y": 174, "size": 17, "colour": "#1f3a5f"},
        {"kind": "text", "text": "No. {serial}  ·  issued {issued_on}", "x": 148.5, "y": 190, "font": "sans", "size": 7.5,
         "colour": "#718096", "max_width": 160, "min_size": 6},
    ],
}


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
