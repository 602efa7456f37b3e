"""Certificates for tests: rendered in this process, looked at with PDFium as a reader would."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import pypdfium2

from tasks.certificates.design import parse_design
from tasks.certificates.render import render
from tasks.certificates.samples import CLASSIC

__all__ = ["ATTENDEES", "classic", "image_of", "one_part", "rendered", "text_of"]

_DATA = Path(__file__).parents[1] / "data"

with (_DATA / "attendees.csv").open(encoding="utf-8") as _file:
    #: The demo's names.
    ATTENDEES = [row["recipient_name"] for row in csv.DictReader(_file)]

_VALUES = {
    "event_name": "PostgreSQL for Application Developers", "event_dates": "16–20 November 2026", "event_place": "Lisbon",
    "organiser": "NORTHERN LIGHTS ACADEMY", "issued_on": "24 November 2026", "serial": "AAAA-BBBB-CCCC",
    "verify_url": "https://certificates.example.org/verify/AAAA-BBBB-CCCC",
}


def classic(**changes: Any) -> dict[str, Any]:
    """The sample design, with other fields."""
    return {**copy.deepcopy(CLASSIC), **changes}


def one_part(page: dict[str, Any] | None = None, **part: Any) -> dict[str, Any]:
    """A design with this part only; a text unless it says otherwise."""
    whole = {"kind": "text", "text": "{recipient_name}", "x": 148.5, "y": 100, "size": 30, **part}
    if whole["kind"] != "text":
        whole = {key: value for key, value in whole.items() if key not in ("text", "size") or key in part}
    return {"parts": [whole], **({"page": page} if page else {})}


def rendered(name: str, design: dict[str, Any] | None = None, **values: str) -> bytes:
    """The PDF of this recipient."""
    return render(parse_design(design or CLASSIC), {**_VALUES, "recipient_name": name, **values})


def text_of(pdf: bytes) -> str:
    """What a reader copies from the only page, in one line."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        assert len(document) == 1
        page = document[0].get_textpage()
        return " ".join(page.get_text_bounded().split())
    finally:
        document.close()


def image_of(pdf: bytes, scale: float = 2.0) -> Any:
    """The only page as a picture."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        return document[0].render(scale=scale).to_pil().convert("RGB")
    finally:
        document.close()
