"""A design is checked before anything is drawn; what is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest

from celery_jobqueue.db.errors import FinalError
from tasks.certificates.design import Text, fill, parse_design
from tasks.certificates.errors import DesignError
from tests.support.certificates import classic, one_part

A5 = {"size": "A5", "orientation": "portrait"}
SIGNED = {"kind": "signature", "name": "Ada", "x": 100, "y": 100}


@pytest.mark.parametrize(("design", "where", "what"), [
    ({}, "parts", "Field required"),
    (classic(parts=[]), "parts", "at least 1 item"),
    (classic(colour="red"), "colour", "Extra inputs"),
    (classic(page={"size": "B9"}), "page.size", "'A4', 'A5', 'Letter' or 'Legal'"),
    (classic(page={"colour": "red"}), "page.colour", "pattern"),
    (classic(language="English!"), "language", "pattern"),
    (classic(verify_url="javascript:alert(1)"), "verify_url", "pattern"),
    (classic(verify_url="https://example.org/{nonce}"), "verify_url", "unknown placeholder {nonce}"),
    (classic(verify_url="https://example.org/{verify_url}"), "verify_url", "unknown placeholder {verify_url}"),
    (classic(title="For {recipent_name}"), "title", "unknown placeholder {recipent_name}"),
    (classic(fields={"Hours": "24"}), "fields.Hours", "pattern"),
    (classic(fields={"hours": 24}), "fields.hours", "valid string"),
    (classic(fields={"hours": "24", "serial": "1"}), "fields.serial", "built in"),
    (classic(fields={"hours": "24", "expires_on": "never"}), "fields.expires_on", "built in"),
    (classic(valid_for="2 yrs"), "valid_for", "'2 yrs' is no length of time: write for instance 90 days, 18 months or 2 years"),
    (classic(valid_for=2), "valid_for", "is no length of time"), (classic(valid_for="0 days"), "valid_for", "is no length"),
    (classic(expires_on="31.12.2028"), "expires_on", "'31.12.2028' is no day: write the last one"),
    (classic(expires_on=20281231), "expires_on", "is no day"),
    (classic(expires_on="2028-12-31", valid_for="2 years"), "valid_for and expires_on", "say one of the two"),
    (one_part(kind="blob"), "parts.0", "'text', 'rule', 'box', 'frame', 'seal', 'signature', 'qr', 'image'"),
    ({"parts": [{"text": "x"}]}, "parts.0", "kind is missing"),
    (one_part(text="Hello {nmae}"), "parts.0.text", "unknown placeholder {nmae}"),
    (one_part(text="{}"), "parts.0.text", "unknown placeholder {}"),
    (one_part(text="{recipient_name.__class__}"), "parts.0.text", "unknown placeholder"),
    (one_part(text="{serial:>20}"), "parts.0.text", "without a format"),
    (one_part(text="{serial!r}"), "parts.0.text", "without a format"),
    (one_part(text="a { b"), "parts.0.text", "write {{ or }} for a brace"),
    (one_part(size="huge"), "parts.0.size", "valid number"),
    (one_part(size=0), "parts.0.size", "greater than 3"),
    (one_part(x=float("nan")), "parts.0.x", "less than or equal to 1000"),
    (one_part(colour="gold"), "parts.0.colour", "pattern"),
    (one_part(font="Comic Sans"), "parts.0.font",
     "unknown font 'Comic Sans'; there are: bold, display, italic, sans, serif"),
    (one_part(colr="#000000"), "parts.0.colr", "Extra inputs"),
    (one_part(**{**SIGNED, "name": "{chief}"}), "parts.0.name", "unknown placeholder {chief}"),
    (one_part(**SIGNED, strokes=[[[1, 1]]]), "parts.0.strokes.0", "at least 2 items"),
    (one_part(**SIGNED, strokes=[[[1, 1], [400, 1]]]), "parts.0.strokes.0.1.0", "less than or equal to 100"),
    # What cannot stand on the page.
    (one_part(x=400), "parts.0", "beyond the right of the page (297 × 210 mm)"),
    (one_part(x=294, anchor="left"), "parts.0.x", "leaves 2.5 mm for the text"),
    (one_part(x=0, anchor="left"), "parts.0", "beyond the left"),
    (one_part(y=3), "parts.0", "beyond the top"),
    (one_part(y=209), "parts.0", "beyond the bottom"),
    (one_part(y=20, max_lines=3), "parts.0", "beyond the top"),
    (one_part(A5, x=74, y=209), "parts.0", "beyond the bottom of the page (148 × 210 mm)"),
    (one_part(kind="qr", x=5), "parts.0", "beyond the left"),
    (one_part(kind="seal", x=290), "parts.0", "beyond the right"),
    (one_part(kind="image", key="logo.png", x=200, y=10, width=100, height=10), "parts.0", "beyond the right"),
    (one_part(kind="rule", x=10, width=30), "parts.0", "beyond the left"),
    (one_part(**{**SIGNED, "y": 205}), "parts.0", "beyond the bottom"),
    ({"parts": [{"kind": "frame", "margin": 100}]}, "parts.0", "beyond the bottom"),
])
def test_an_error_names_the_field(design: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(DesignError) as caught:
        parse_design(design)
    message = str(caught.value)
    assert message.startswith(f"certificate design: {where}: ")
    assert what in message
    assert "more)" not in message
    assert isinstance(caught.value, FinalError)


def test_several_errors_are_counted() -> None:
    with pytest.raises(DesignError, match=r"parts\.0\.size: .* \(and 1 more\)$"):
        parse_design(one_part(size=0, colour="gold"))


def test_a_design_that_is_no_object_is_refused() -> None:
    with pytest.raises(DesignError, match=r"^certificate design: Input should be a valid dictionary"):
        parse_design([1])  # type: ignore[arg-type]


def test_text_may_reach_no_further_than_the_page() -> None:
    design = parse_design(one_part(A5, x=30))
    assert isinstance(text := design.parts[0], Text)
    assert text.room(design.page) == pytest.approx(60, abs=1.2)


def test_values_are_taken_literally() -> None:
    values = {"recipient_name": "{serial} {0} }{", "serial": "S"}
    assert fill("{{{recipient_name}}} – {serial}", values) == "{{serial} {0} }{} – S"
