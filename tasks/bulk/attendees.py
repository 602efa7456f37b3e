"""Attendees: what a row says, whichever file or query it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tasks.bulk.errors import InvalidAttendees
from tasks.certificates.errors import InvalidRecipient
from tasks.certificates.issue import check_key, check_name
from tasks.certificates.mail import check_email

__all__ = ["Attendee", "Attendees", "Columns", "columns_of"]

#: What a column may be called: letters and digits only, whatever their case.
_NAMES = {
    "name": ("recipientname", "name", "fullname", "recipient", "attendee", "attendeename", "participant", "participantname",
             "displayname"),
    "given": ("firstname", "givenname", "forename"),
    "family": ("lastname", "familyname", "surname"),
    "email": ("recipientemail", "email", "mail", "emailaddress", "mailaddress"),
    "key": ("recipientkey", "key", "attendeeid", "participantid"),
}
_LONGEST_NOTE = 300


@dataclass(frozen=True, slots=True)
class Attendee:
    """One row. line: where it begins in the file. note: why it cannot be issued; then name and key may be empty."""

    line: int
    name: str
    key: str
    email: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which cell is what: positions in a row, by meaning; `header` has the columns' names as they stand."""

    header: tuple[str, ...]
    places: Mapping[str, int]

    def described(self) -> str:
        """For people: which column is taken for what."""
        return ", ".join(f"{self.header[place]} → {meaning}" for meaning, place in self.places.items())

    def attendee(self, line: int, cells: Sequence[str]) -> Attendee | None:
        """The attendee of a row; None when the row is empty."""
        if not any(cell.strip() for cell in cells):
            return None
        if len(cells) > len(self.header) and any(cell.strip() for cell in cells[len(self.header):]):
            return self._bad(line, cells, f"{len(cells)} cells, but the header has {len(self.header)}: "
                                          "a separator within a cell needs quotation marks around it")
        try:
            name = check_name(self._name(cells))
            email = self._cell("email", cells).strip() or None
            email = check_email(email) if email else None
            key = check_key(self._cell("key", cells) or email) or name.casefold()
        except InvalidRecipient as error:
            return self._bad(line, cells, str(error))
        return Attendee(line, name, key, email)

    def _name(self, cells: Sequence[str]) -> str:
        if "name" not in self.places:
            name = " ".join(filter(None, (self._cell(part, cells).strip() for part in ("given", "family"))))
        else:
            name = self._cell("name", cells)
        # Spreadsheets let people type a line break into a cell. Three lines are other rows that an open quotation mark took in.
        if len(re.findall(r"\r\n|\r|\n", name.strip())) > 1:
            raise InvalidRecipient("recipient_name spans several lines: is a quotation mark not closed?")
        return name

    def _cell(self, meaning: str, cells: Sequence[str]) -> str:
        place = self.places.get(meaning)
        return "" if place is None or place >= len(cells) else cells[place]

    def _bad(self, line: int, cells: Sequence[str], note: str) -> Attendee:
        # Shown to people and stored: nothing of it may draw on a terminal, or be refused by PostgreSQL.
        try:
            name = "".join(char if char.isprintable() else "\ufffd" for char in self._name(cells).strip())[:120]
        except InvalidRecipient:
            name = ""
        return Attendee(line, name, "", None, note[:_LONGEST_NOTE])


@dataclass(frozen=True, slots=True)
class Attendees:
    """A source that was opened. described: how it was understood. rows: read while they are asked for, once."""

    source: str
    described: str
    columns: Columns
    rows: Iterator[Attendee]


def columns_of(header: Sequence[str], given: Mapping[str, str], source: str) -> Columns:
    """Which column is what. given: meaning → column, where names do not tell. Raises InvalidAttendees."""
    header = tuple(cell.strip() for cell in header)
    shown = ", ".join(repr(cell[:40]) for cell in header[:20])
    places: dict[str, int] = {}
    for meaning, column in given.items():
        if meaning not in _NAMES:
            raise InvalidAttendees(f"{source}: a column cannot be {meaning!r}: there are {', '.join(_NAMES)}")
        if column not in header:
            raise InvalidAttendees(f"{source} has no column {column!r}: there are {shown}")
        places[meaning] = header.index(column)
    for place, cell in enumerate(header):
        plain = "".join(char for char in cell.casefold() if char.isalnum())
        for meaning, names in _NAMES.items():
            if plain not in names or meaning in given or place in places.values():
                continue
            if meaning in places:
                raise InvalidAttendees(f"{source}: the columns {header[places[meaning]]!r} and {cell!r} may both be the "
                                       f"{meaning}: say which with --column {meaning}='{cell}'")
            places[meaning] = place
    if "name" in places:
        places = {meaning: place for meaning, place in places.items() if meaning not in ("given", "family")}
    elif "given" not in places or "family" not in places:
        raise InvalidAttendees(f"{source}: no column is the recipient's name; there are {shown}. "
                               "Call one recipient_name, or say --column name='…'")
    return Columns(header, places)
