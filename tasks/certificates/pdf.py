"""A PDF file, written object by object: the same objects give the same bytes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

__all__ = ["PdfFile", "PdfObject", "mm", "number", "stream", "text_string"]

#: A millimetre in points.
mm = 72 / 25.4
#: The bytes above 127 tell whoever moves the file that it is no text.
_HEADER = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"


class PdfObject:
    """An object of a file: what other objects call it, and its content."""

    __slots__ = ("content", "reference")

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self.content = b"null"


class PdfFile:
    """The file: its objects, numbered as they are asked for."""

    def __init__(self, *, title: str, author: str, subject: str, keywords: str, date: str, language: str) -> None:
        self._objects: list[PdfObject] = []
        self._language = language
        self._info = {"Title": title, "Author": author, "Subject": subject, "Keywords": keywords, "CreationDate": date,
                      "ModDate": date, "Creator": "celery-jobqueue", "Producer": "celery-jobqueue"}

    def add(self, content: bytes | str) -> str:
        """A new object; answers with what other objects call it."""
        return self.fill(self.reserve(), content)

    def reserve(self) -> PdfObject:
        """An object whose content is known later: its name is."""
        made = PdfObject(f"{len(self._objects) + 1} 0 R")
        self._objects.append(made)
        return made

    def fill(self, reserved: PdfObject, content: bytes | str) -> str:
        """Give it its content."""
        reserved.content = content if isinstance(content, bytes) else content.encode("latin-1")
        return reserved.reference

    def finish(self, catalog: Mapping[str, PdfObject], fingerprint: bytes) -> bytes:
        """The bytes of the file. Everything is reached from the catalogue; the fingerprint becomes the file's identifier."""
        entries = "".join(f"/{key} {entry.reference}" for key, entry in catalog.items())
        root = self.add(f"<</Type/Catalog/Lang {text_string(self._language)}{entries}>>")
        info = self.add(f"<<{''.join(f'/{key}{text_string(value)}' for key, value in self._info.items())}>>")
        pieces, offset, table = [_HEADER], len(_HEADER), ["0000000000 65535 f \n"]
        for at, entry in enumerate(self._objects, 1):
            piece = b"%d 0 obj\n%s\nendobj\n" % (at, entry.content)
            pieces.append(piece)
            table.append(f"{offset:010d} 00000 n \n")
            offset += len(piece)
        identifier = fingerprint[:16].hex()
        pieces.append((f"xref\n0 {len(table)}\n{''.join(table)}trailer\n<</Size {len(table)}/Root {root}/Info {info}"
                       f"/ID[<{identifier}><{identifier}>]>>\nstartxref\n{offset}\n%%EOF\n").encode())
        return b"".join(pieces)


def stream(content: bytes, entries: str = "", *, deflate: bool = True) -> bytes:
    """A stream object with these entries in its dictionary."""
    if deflate:
        content, entries = zlib.compress(content), f"{entries}/Filter/FlateDecode"
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (entries.encode("latin-1"), len(content), content)


def text_string(text: str) -> str:
    """A text as PDF writes it outside of pages: as it is, or in UTF-16."""
    if text.isascii() and text.isprintable():
        return "(" + re.sub(r"([()\\])", r"\\\1", text) + ")"
    return f"<FEFF{text.encode('utf-16-be').hex().upper()}>"


def number(value: float) -> str:
    """As short as it can be, to a thousandth."""
    return f"{value:.3f}".rstrip("0").rstrip(".") if value else "0"
