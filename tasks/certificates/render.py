"""From a design and its values to the bytes of a PDF: the same data gives the same bytes, in any process."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import segno
from reportlab.lib.units import mm

from tasks.certificates import ornaments
from tasks.certificates.design import Design, fill
from tasks.certificates.errors import DesignError
from tasks.certificates.fonts import Fonts, event_face
from tasks.certificates.layout import Line, lay_out, line_of
from tasks.certificates.parts import LEADING, SIGNED, Box, Frame, Image, Qr, Rule, Seal, Signature, Text
from tasks.certificates.pdf import PdfFile, number, stream
from tasks.certificates.pictures import Picture, picture
from tasks.certificates.sheet import Sheet, rgb

__all__ = ["render"]

#: Fetches the bytes of a picture or font by its key; raises DesignError when there is none.
Pictures = Callable[[str], bytes]
_SHIPPED = Path(__file__).with_name("pictures")
#: What a screen reader calls a text: the kind of its element and its name.
_ROLES = {"title": ("H1", ""), "recipient": ("P", "Recipient"), "paragraph": ("P", ""), "decoration": ("Artifact", "")}
_BEFORE_DATES = date(2000, 1, 1)

# HarfBuzz's fonts may be read by one thread at a time only.
_one_at_a_time = threading.Lock()


def no_pictures(key: str) -> bytes:
    """For designs that use none. Raises DesignError."""
    raise DesignError(f"certificate design: image {key!r} is not in the storage")


def render(design: Design, values: Mapping[str, str], *, pictures: Pictures = no_pictures,
           issued_on: date | None = None) -> bytes:
    """The certificate as PDF. `values` holds every placeholder of design.PLACEHOLDERS; issued_on becomes the file's date.

    Raises MissingGlyph for a character no font has, DesignError for a picture or font that is missing or none.
    """
    with _one_at_a_time:
        return _render(design, {**design.fields, **values}, pictures, issued_on or _BEFORE_DATES)


def _render(design: Design, values: Mapping[str, str], pictures: Pictures, issued_on: date) -> bytes:
    width, height = (side * mm for side in design.page.millimetres)
    sheet = Sheet(width, height)
    own = {name: event_face(pictures(key), key) for name, key in design.fonts.items()}
    page = _Page(sheet, values, pictures, design, Fonts.of(design.language, own))
    page.paper()
    for part in design.parts:
        page.draw(part)
    title, subject = fill(design.title, values), f"{values['event_name']} – {values['recipient_name']}"
    file = PdfFile(title=title, author=values["organiser"], subject=subject, keywords=values.get("serial", ""),
                   date=f"D:{issued_on:%Y%m%d}000000+00'00'", language=design.language)
    catalog = sheet.write(file)
    described, facts = file.reserve(), _description(title, subject, design.language, values, issued_on)
    file.fill(described, stream(facts, "/Type/Metadata/Subtype/XML", deflate=False))
    fingerprint = hashlib.sha256("\n".join((title, subject, *sheet.operators)).encode()).digest()
    return file.finish({**catalog, "Metadata": described}, fingerprint)


class _Page:
    """Draws the parts; y grows downwards in a design and upwards in a PDF."""

    def __init__(self, sheet: Sheet, values: Mapping[str, str], pictures: Pictures, design: Design, fonts: Fonts) -> None:
        self._sheet, self._values, self._pictures, self._fonts = sheet, values, pictures, fonts
        self._page = design.page
        self._width, self._height = sheet.width, sheet.height
        self._draw: dict[type, Callable[[Any], None]] = {
            Text: self._text, Signature: self._signature, Qr: self._qr, Image: self._image, Frame: self._frame,
            Seal: self._seal, Rule: self._rule, Box: self._box}

    def draw(self, part: Any) -> None:
        """Draw one part of the design."""
        self._draw[type(part)](part)

    def paper(self) -> None:
        """The sheet itself; a background covers it and keeps its proportions."""
        with self._sheet.meaning("Artifact"):
            self._sheet.operators.append(f"{rgb(self._page.colour)} rg 0 0 {number(self._width)} {number(self._height)} re f")
            if self._page.background:
                shown = self._picture(self._page.background)
                scale = max(self._width / shown.width, self._height / shown.height)
                wide, high = shown.width * scale, shown.height * scale
                self._sheet.picture(shown, (self._width - wide) / 2, (self._height - high) / 2, wide, high)

    def _rule(self, part: Rule) -> None:
        self._decoration(ornaments.rule(part, self._height))

    def _box(self, part: Box) -> None:
        self._decoration(ornaments.box(part, self._height))

    def _frame(self, part: Frame) -> None:
        if part.style == "waves":
            tile, repeated = ornaments.waves(part, self._width, self._height)
            self._decoration(repeated.replace("/Tile", f"/{self._sheet.name_of(tile)}"))
        self._decoration(ornaments.frame(part, self._width, self._height))

    def _seal(self, part: Seal) -> None:
        with self._sheet.meaning("Figure" if part.alt else "Artifact", alt=self._filled(part.alt)):
            self._sheet.operators.append(ornaments.seal(part, self._height))

    def _decoration(self, operators: str) -> None:
        with self._sheet.meaning("Artifact"):
            self._sheet.operators.append(operators)

    def _text(self, part: Text) -> None:
        text = self._filled(part.text)
        if not text or ("{expires_on}" in part.text and not self._values["expires_on"]):
            return  # `valid through {expires_on}` is left out where nothing expires
        lines = lay_out(text, part.font, part.size, max_width=part.room(self._page) * mm, min_size=part.min_size,
                        max_lines=part.max_lines, tracking=part.tracking, fonts=self._fonts)
        role = part.role or ("recipient" if "{recipient_name}" in part.text else "paragraph")
        top = self._y(part.y) + part.rise(len(lines)) * lines[0].size
        with self._sheet.meaning(*_ROLES[role], text=_said(lines, text)):
            for number_, line in enumerate(lines):
                self._sheet.line(line, part.x * mm, top - number_ * line.size * LEADING, part.anchor, part.colour)

    def _signature(self, part: Signature) -> None:
        x, y, width = part.x * mm, self._y(part.y), part.width * mm
        name = self._filled(part.name)
        alt = f"Signature of {name}" if part.strokes or part.image else ""
        with self._sheet.meaning("Figure" if alt else "Artifact", alt=alt):
            if part.image:
                self._fit(self._picture(part.image), x - width * 0.45, y, width * 0.9, part.above * mm)
            self._sheet.operators.append(ornaments.strokes(part, self._height))
        for text, font, size, drop in ((name, part.font, 11.0, 5.0), (self._filled(part.title), part.title_font, 9.0, 9.3)):
            if text:
                line = line_of(text, font, size, fonts=self._fonts.for_text(text))
                if line.width > width * SIGNED:
                    line = line_of(text, font, size * width * SIGNED / line.width, fonts=self._fonts.for_text(text))
                with self._sheet.meaning("P", text=_said([line], text)):
                    self._sheet.line(line, x, y - drop * mm, "centre", part.colour)

    def _qr(self, part: Qr) -> None:
        text = fill(part.text, self._values)
        if not text:
            return
        try:
            # A fixed mask: choosing one costs more than everything else about the code.
            code = segno.make(text, error="m", micro=False, mask=2)
        except segno.DataOverflowError as error:
            raise DesignError(f"certificate design: a QR code cannot hold {len(text)} characters: {error}") from error
        rows = [bytes(row) for row in code.matrix]
        size = len(rows)
        # One path in units of a module, written as operators: drawn as rectangles it took a third of the page's time.
        modules = " ".join(f"{run.start()} {size - 1 - at} {run.end() - run.start()} 1 re"
                           for at, row in enumerate(rows) for run in re.finditer(rb"\x01+", row))
        side, cell = part.size * mm, part.size * mm / size
        with self._sheet.meaning("Figure", alt=self._filled(part.alt) or "QR code"):
            self._sheet.operators.append(f"q {cell:.6f} 0 0 {cell:.6f} {number(part.x * mm - side / 2)} "
                                         f"{number(self._y(part.y) - side / 2)} cm {rgb(part.colour)} rg {modules} f Q")

    def _image(self, part: Image) -> None:
        left, _, _, bottom = part.box(self._page)
        with self._sheet.meaning("Figure" if part.alt else "Artifact", alt=self._filled(part.alt)):
            self._fit(self._picture(part.key), left * mm, self._y(bottom), part.width * mm, part.height * mm)

    def _fit(self, shown: Picture, left: float, bottom: float, width: float, height: float) -> None:
        """In the middle of this rectangle, as large as its proportions allow."""
        scale = min(width / shown.width, height / shown.height)
        wide, high = shown.width * scale, shown.height * scale
        self._sheet.picture(shown, left + (width - wide) / 2, bottom + (height - high) / 2, wide, high)

    def _picture(self, key: str) -> Picture:
        if key.startswith("shipped/"):
            path = _SHIPPED / key.removeprefix("shipped/")
            return picture(path.read_bytes() if path.is_file() else no_pictures(key), key)
        return picture(self._pictures(key), key)

    def _filled(self, text: str) -> str:
        return " ".join(fill(text, self._values).split())

    def _y(self, millimetres: float) -> float:
        return self._height - millimetres * mm


def _said(lines: list[Line], text: str) -> str:
    """The text for a screen reader where the glyphs, from left to right, do not say it; else nothing."""
    return text if any(line.rtl for line in lines) else ""


def _description(title: str, subject: str, language: str, values: Mapping[str, str], issued_on: date) -> bytes:
    """The same facts as XMP, which search engines and archives read."""
    author, serial = values["organiser"], values.get("serial", "")
    when = issued_on.isoformat()
    fields = "".join((
        "<dc:format>application/pdf</dc:format>",
        f"<dc:title><rdf:Alt><rdf:li xml:lang=\"x-default\">{escape(title)}</rdf:li></rdf:Alt></dc:title>",
        f"<dc:creator><rdf:Seq><rdf:li>{escape(author)}</rdf:li></rdf:Seq></dc:creator>",
        f"<dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">{escape(subject)}</rdf:li></rdf:Alt></dc:description>",
        f"<dc:language><rdf:Bag><rdf:li>{language}</rdf:li></rdf:Bag></dc:language>",
        f"<dc:identifier>{escape(serial)}</dc:identifier>" if serial else "",
        f"<xmp:CreateDate>{when}</xmp:CreateDate><xmp:ModifyDate>{when}</xmp:ModifyDate>",
        "<xmp:CreatorTool>celery-jobqueue</xmp:CreatorTool><pdf:Producer>celery-jobqueue</pdf:Producer>"))
    return (
        "<?xpacket begin=\"\N{ZERO WIDTH NO-BREAK SPACE}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>"
        "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">"
        "<rdf:Description rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\""
        f" xmlns:xmp=\"http://ns.adobe.com/xap/1.0/\" xmlns:pdf=\"http://ns.adobe.com/pdf/1.3/\">{fields}"
        "</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end=\"r\"?>").encode()
