"""Attendees from CSV files, with everything that spreadsheets do to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.bulk.attendees import Attendee
from tasks.bulk.csvfile import csv_attendees
from tasks.bulk.errors import InvalidAttendees

ZOE = Attendee(2, "Zoë Ångström", "zoe@example.org", "zoe@example.org")


def read(path: Path, content: str | bytes, written: str = "utf-8", **how: object) -> list[Attendee]:
    path = path / "people.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(written))
    with csv_attendees(path, **how) as attendees:  # type: ignore[arg-type]
        return list(attendees.rows)


def refused(path: Path, content: str | bytes, **how: object) -> str:
    with pytest.raises(InvalidAttendees) as caught:
        read(path, content, **how)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_as_spreadsheets_write_it(mark: str, delimiter: str, end: str, tmp_path: Path) -> None:
    text = mark + f"Name{delimiter}E-Mail{end}Zoë Ångström{delimiter}zoe@Example.org{end}"
    assert read(tmp_path, text) == [ZOE]
    assert read(tmp_path, text.rstrip("\r\n")) == [ZOE]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_mark_says_the_encoding(encoding: str, tmp_path: Path) -> None:
    assert read(tmp_path, "name;email\r\nZoë Ångström;zoe@example.org\r\n", encoding) == [ZOE]


def test_excels_first_line_is_no_row(tmp_path: Path) -> None:
    [attendee] = read(tmp_path, "sep=;\r\nname;email\r\nZoë Ångström;zoe@example.org\r\n")
    assert attendee == Attendee(3, ZOE.name, ZOE.key, ZOE.email)


def test_an_encoding_is_never_guessed_but_shown(tmp_path: Path) -> None:
    content = "name;email\r\nAda;a@example.org\r\nZoë Ångström;zoe@example.org\r\n".encode("windows-1252")
    message = refused(tmp_path, content)
    assert message.startswith("people.csv, line 3, is not UTF-8: say which encoding shows line 3 as it should be\n")
    assert "--encoding windows-1252  Zoë Ångström;zoe@example.org" in message
    assert "--encoding mac-roman     ZoÎ" in message
    assert read(tmp_path, content, encoding="windows-1252")[1].name == "Zoë Ångström"
    assert refused(tmp_path, content, encoding="latin-one").startswith("there is no encoding 'latin-one'")
    assert "say --encoding utf-16-le" in refused(tmp_path, "name\r\nAda\r\n".encode("utf-16-le"))
    assert refused(tmp_path, "name\r\nZoë".encode()[:-1]) == "people.csv ends in the middle of a character: it was cut off"


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """Quoted line breaks and separators, empty lines, lines with separators only."""
    rows = read(tmp_path, '\n\nname,email\n\n"Ada\nLovelace",ada@example.org\n,,\n"Hopper, Grace",\n\n  Zoë  ,\n')
    assert [(row.line, row.name, row.email, row.note) for row in rows] == [
        (5, "Ada Lovelace", "ada@example.org", None), (8, "Hopper, Grace", None, None), (10, "Zoë", None, None)]


def test_bad_rows_say_what_is_wrong_and_the_others_are_read(tmp_path: Path) -> None:
    rows = read(tmp_path, "\n".join((
        "name,email", "Ada,ada@example.org,Grace,x", ",nobody@example.org", "Bell\x07,", "x" * 121 + ",", '"Ada" Lovelace,',
        "Zoë,no address", 'a"b,', "\x1b[31mRed,", "Grace Hopper,grace@example.org,,", '"One\nTwo\nThree",', "<b>Bold</b>,")))
    assert [(row.line, row.note) for row in rows] == [
        (2, "4 cells, but the header has 2: a separator within a cell needs quotation marks around it"),
        (3, "recipient_name is empty: give the name that stands on the certificate"),
        (4, "recipient_name holds U+0007, which is no printable character: remove it"),
        (5, "recipient_name has 121 characters: at most 120"),
        (6, "',' expected after '\"': write a quotation mark within a cell twice"),
        (7, "email 'no address' is no address: write name@example.org"),
        (8, None),
        (9, "recipient_name holds U+001B, which is no printable character: remove it"),
        (10, None),
        (11, "recipient_name spans several lines: is a quotation mark not closed?"),
        (14, "recipient_name holds HTML (<b>): write the name as it is read")]
    assert rows[7].name == "\ufffd[31mRed"  # nothing that draws on a terminal


@pytest.mark.parametrize("end", ["", "\nGrace,g@example.org\n" * 20_000])
def test_a_quotation_mark_that_is_never_closed_is_found(end: str, tmp_path: Path) -> None:
    assert refused(tmp_path, f'name,email\nAda,a@example.org\n"Zoë,z@example.org\nBob,b@example.org{end}') == (
        "people.csv: the quotation mark that opens on line 3 is never closed")


@pytest.mark.parametrize(("header", "how", "message"), [
    ("", {}, "people.csv is empty: the first line names the columns, such as recipient_name,email"),
    ("Ada,ada@example.org", {}, "people.csv: no column is the recipient's name; there are 'Ada', 'ada@example.org'. Call one"),
    ("Name,Full name", {}, "the columns 'Name' and 'Full name' may both be the name: say which with --column name='Full name'"),
    ("Nombre,email", {"columns": {"name": "Nom"}}, "people.csv has no column 'Nom': there are 'Nombre', 'email'"),
    ("name", {"columns": {"title": "name"}}, "a column cannot be 'title': there are name, given, family, email, key"),
    ("name", {"delimiter": ";;"}, "a separator is one character, not ';;'"),
    ("name" + " " * (1 << 20), {}, "people.csv, line 1, is longer than 1,048,576 bytes"),
])
def test_a_header_that_does_not_do(header: str, how: dict[str, object], message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, f"{header}\n", **how)


def test_columns_by_meaning(tmp_path: Path) -> None:
    [row] = read(tmp_path, "Given name;SURNAME;Attendee ID;Phone\nAda;Lovelace;A-17;123\n")
    assert (row.name, row.key, row.email) == ("Ada Lovelace", "a-17", None)
    [row] = read(tmp_path, "Nombre;Correo;Name\nAda;ada@example.org;x\n", columns={"name": "Nombre", "email": "Correo"})
    assert (row.name, row.key) == ("Ada", "ada@example.org")
    assert read(tmp_path, "recipient_name\nADA  Byron\n") == [Attendee(2, "ADA Byron", "ada byron", None)]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    opened = csv_attendees(tmp_path / "nowhere.csv")
    with pytest.raises(InvalidAttendees, match=r"nowhere\.csv cannot be read: No such file"), opened:
        pass
