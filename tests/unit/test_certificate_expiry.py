"""Until when a certificate is valid."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from celery_jobqueue.db.errors import InvalidJob
from tasks.certificates.design import parse_design
from tasks.certificates.errors import DesignError, InvalidExpiry
from tasks.certificates.expiry import check_expiry, last_day
from tasks.certificates.samples import DESIGNS
from tests.support.certificates import classic, one_part, rendered, text_of

ISSUED = date(2026, 11, 25)


@pytest.mark.parametrize(("given", "means"), [
    (None, None), ("2026-11-25", ISSUED), ("2028-02-29", date(2028, 2, 29)), (date(2030, 1, 1), date(2030, 1, 1)),
])
def test_a_day_that_is_asked_for(given: Any, means: date | None) -> None:
    assert check_expiry(given, ISSUED) == means


@pytest.mark.parametrize(("given", "what"), [
    ("2026-11-24", "expires_on 2026-11-24 is before 2026-11-25"), ("2027-02-29", "expires_on '2027-02-29' is no day: day "),
    ("31.12.2028", "expires_on '31.12.2028' is no day: write the last one"), ("", "is no day"), ("2028-1-1", "is no day"),
    (20281231, "expires_on '20281231' is no day"), (True, "is no day"), (datetime(2028, 1, 1, tzinfo=UTC), "is no day"),
    ("\u0662028-01-01", "is no day"), ("2028-01-01\n", "is no day"), ("9" * 1000, "is no day"), ({"a": 1}, "is no day"),
])
def test_what_is_no_day_or_has_passed_is_refused(given: Any, what: str) -> None:
    with pytest.raises(InvalidExpiry) as caught:
        check_expiry(given, ISSUED)
    assert what in str(caught.value)
    assert isinstance(caught.value, InvalidJob)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(("valid_for", "issued_on", "last"), [
    ("1 day", ISSUED, date(2026, 11, 26)), ("90 days", ISSUED, date(2027, 2, 23)), ("2 years", ISSUED, date(2028, 11, 25)),
    ("18 months", ISSUED, date(2028, 5, 25)), ("1 month", date(2027, 1, 31), date(2027, 2, 28)),
    ("1 year", date(2028, 2, 29), date(2029, 2, 28)), ("4 years", date(2028, 2, 29), date(2032, 2, 29)),
])
def test_a_length_of_time_begins_with_the_day_of_issue(valid_for: str, issued_on: date, last: date) -> None:
    design = parse_design(classic(valid_for=valid_for))
    assert last_day(design.valid_for, design.expires_on, issued_on) == last


def test_a_design_may_name_one_day_for_all() -> None:
    design = parse_design(classic(expires_on="2027-12-31"))
    assert last_day(design.valid_for, design.expires_on, date(2027, 12, 31)) == date(2027, 12, 31)
    with pytest.raises(DesignError, match="certificate design: expires_on: 2027-12-31 has passed: correct it"):
        last_day(design.valid_for, design.expires_on, date(2028, 1, 1))
    with pytest.raises(DesignError, match="valid_for: 9000 years from 2026-11-25 end after the year 9999"):
        last_day("9000 years", None, ISSUED)
    assert last_day(None, None, ISSUED) is None


@pytest.mark.parametrize("design", DESIGNS)
def test_the_sheet_says_it_where_something_expires_and_else_nothing(design: str) -> None:
    assert "alid through 24 November 2028" in text_of(rendered("Ada", DESIGNS[design], expires_on="24 November 2028"))
    assert "through" not in text_of(rendered("Ada", DESIGNS[design]))
    assert text_of(rendered("Ada", one_part(text="Ada until {expires_on}"), expires_on="tomorrow")) == "Ada until tomorrow"
