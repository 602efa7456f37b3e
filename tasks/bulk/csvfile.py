"""Attendees from a CSV file, as spreadsheets write them: byte order marks, semicolons, quoted line breaks, empty lines.

The file is read line by line, so its length costs no memory. An encoding is never guessed: a wrong guess would stand on
certificates. What is not UTF-8 (or UTF-16 with its mark) has to be named, and the message shows how it would look.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from tasks.bulk.attendees import Attendee, Attendees, Columns, columns_of
from tasks.bulk.errors import InvalidAttendees

__all__ = ["csv_attendees"]

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_LONGEST_LINE = 1 << 20  # bytes: what is longer is no list of people
#: What a file that is not UTF-8 most likely is; shown to people, who know how their names are written.
_LIKELY = ("windows-1252", "windows-1250", "windows-1251", "mac-roman")


@contextmanager
def csv_attendees(path: Path, *, encoding: str | None = None, delimiter: str | None = None,
                  columns: Mapping[str, str] | None = None) -> Iterator[Attendees]:
    """The attendees of a CSV file. Raises InvalidAttendees when the file as a whole cannot be read; single rows carry notes.

    encoding, delimiter: as named by a person, else found. columns: meaning → column's name, where names do not tell.
    """
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise InvalidAttendees(f"a separator is one character, not {delimiter!r}")
    with ExitStack() as stack:
        try:
            found = _encoding(path, encoding)
            # newline="": line breaks inside of quotation marks belong to the cell.
            file = stack.enter_context(path.open(encoding=found, newline=""))
        except OSError as error:
            raise InvalidAttendees(f"{path} cannot be read: {error.strerror or error}") from error
        declared = _declared_delimiter(file)
        used = delimiter or declared or _likely_delimiter(file, path.name, columns or {})
        records = _records(file, used, path.name, before=1 if declared else 0)
        header = next((cells for _, cells in records if isinstance(cells, list) and any(map(str.strip, cells))), None)
        if header is None:
            raise InvalidAttendees(f"{path.name} is empty: the first line names the columns, such as recipient_name,email")
        known = columns_of(header, columns or {}, path.name)
        described = f"{found.removesuffix('-sig').upper()}, separated by {_DELIMITERS.get(used, repr(used))}"
        yield Attendees(path.name, described, known, _attendees(records, known))


def _attendees(records: Iterator[tuple[int, list[str] | str]], columns: Columns) -> Iterator[Attendee]:
    for line, cells in records:
        if isinstance(cells, str):
            yield Attendee(line, "", "", None, cells)
        elif (attendee := columns.attendee(line, cells)) is not None:
            yield attendee


def _records(file: TextIO, delimiter: str, source: str, before: int) -> Iterator[tuple[int, list[str] | str]]:
    """Line where it begins, and cells, of every record; or what is wrong with it."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        line = before + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # From here on nobody knows what is inside of quotation marks and what is not.
            if "unexpected end" in str(error) or "field larger" in str(error):
                raise InvalidAttendees(f"{source}: the quotation mark that opens on line {line} is never closed") from None
            yield line, f"{error}: write a quotation mark within a cell twice"
            continue
        yield line, cells


def _declared_delimiter(file: TextIO) -> str | None:
    """Excel's own first line, `sep=;`."""
    line = file.readline(64).rstrip("\r\n")
    if len(line) == 5 and line.lower().startswith("sep="):
        return line[4]
    file.seek(0)
    return None


def _likely_delimiter(file: TextIO, source: str, given: Mapping[str, str]) -> str:
    """The separator with which the header has the columns that are needed."""
    place = file.tell()
    line = ""
    while not line.strip() and (more := file.readline(_LONGEST_LINE)):
        line = more
    file.seek(place)

    def fits(delimiter: str) -> tuple[bool, int]:
        header: Sequence[str] = next(csv.reader([line], delimiter=delimiter), [])
        try:
            columns_of(header, given, source)
        except InvalidAttendees:
            return False, len(header)
        return True, len(header)

    return max(_DELIMITERS, key=fits)


def _encoding(path: Path, given: str | None) -> str:
    """The file's encoding, after a look at every line. Raises InvalidAttendees naming the line that does not fit."""
    with path.open("rb") as file:
        start = file.read(4)
    encoding = given or next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in start:
        raise InvalidAttendees(f"{path.name} looks like UTF-16 without its mark: say --encoding utf-16-le or utf-16-be")
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError:
        raise InvalidAttendees(f"there is no encoding {encoding!r}; usual ones are utf-8, utf-16, {', '.join(_LIKELY)}") from None
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise InvalidAttendees(f"{path.name}, line {number}, is longer than {_LONGEST_LINE:,} bytes")
            try:
                decoder.decode(line)
            except UnicodeDecodeError:
                raise InvalidAttendees(_wrong_encoding(path.name, encoding, number, line)) from None
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise InvalidAttendees(f"{path.name} ends in the middle of a character: it was cut off") from None
    return encoding


def _wrong_encoding(source: str, encoding: str, number: int, line: bytes) -> str:
    looks = []
    for name in _LIKELY:
        try:
            text = line.decode(name).strip()
        except UnicodeDecodeError:
            continue
        if text.isprintable() or "\t" in text:
            looks.append(f"\n  --encoding {name:<13} {text[:80]}")
    hint = f": say which encoding shows line {number} as it should be" + "".join(looks) if looks else ""
    return f"{source}, line {number}, is not {encoding.upper()}{hint}"
