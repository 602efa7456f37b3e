"""A PDF file, written object by object: the same objects give the same bytes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any

from reportlab import rl_config
from reportlab.pdfbase import pdfdoc

__all__ = ["PdfFile", "PdfObject", "number", "stream", "text_string"]

rl_config.invariant = 1


class PdfObject(pdfdoc.PDFObject):
    """An object whose bytes are ready."""

    __PDFObject__ = True
    reference = ""
    content = b""

    def format(self, document: Any) -> bytes:
        return self.content


class PdfFile:
    """The file; reportlab numbers the objects and writes the table of contents."""

    def __init__(self, *, title: str, author: str, subject: str, keywords: str, date: str, language: str) -> None:
        self._document: Any = pdfdoc.PDFDocument(invariant=1, lang=language, pdfVersion=(1, 7))
        info: Any = self._document.info
        info.title, info.author, info.subject, info.keywords = title, author, subject, keywords
        info.creator, info.producer = "celery-jobqueue", "celery-jobqueue"
        info._dateFormatter = lambda *_: date

    def add(self, content: bytes | str) -> str:
        """A new object; answers with what other objects call it."""
        return self.fill(self.reserve(), content)

    def reserve(self) -> PdfObject:
        """An object whose content is known later: its name is."""
        made = PdfObject()
        made.reference = self._document.Reference(made).format(self._document).decode()
        return made

    def fill(self, reserved: PdfObject, content: bytes | str) -> str:
        """Give it its content."""
        reserved.content = content if isinstance(content, bytes) else content.encode("latin-1")
        return reserved.reference

    def finish(self, catalog: Mapping[str, PdfObject], fingerprint: bytes) -> bytes:
        """The bytes of the file. Everything is reached from the catalogue; the fingerprint becomes the file's identifier."""
        for key, entry in catalog.items():
            setattr(self._document.Catalog, key, entry)
        self._document.updateSignature(fingerprint)
        written: bytes = self._document.GetPDFData(None)
        return written


def stream(content: bytes, entries: str = "", *, deflate: bool = True) -> bytes:
    """A stream object with these entries in its dictionary."""
    if deflate:
        content, entries = zlib.compress(content), f"{entries}/Filter/FlateDecode"
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (entries.encode("latin-1"), len(content), content)


def text_string(text: str) -> str:
    """A text as PDF writes it outside of pages: as it is, or in UTF-16."""
    if text.isascii():
        return "(" + re.sub(r"([()\\])", r"\\\1", text) + ")"
    return f"<FEFF{text.encode('utf-16-be').hex().upper()}>"


def number(value: float) -> str:
    """As short as it can be, to a thousandth."""
    return f"{value:.3f}".rstrip("0").rstrip(".") if value else "0"
