"""From a design and its values to the bytes of a PDF: the same data gives the same bytes, in any process."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any

import segno
from reportlab import rl_config
from reportlab.lib.colors import HexColor
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from tasks.certificates.design import LEADING, SIGNED, Design, Frame, Image, Page, Qr, Rule, Seal, Signature, Text, fill
from tasks.certificates.errors import DesignError
from tasks.certificates.fonts import faces
from tasks.certificates.layout import Line, Run, lay_out, line_of

__all__ = ["render"]

#: Fetches the bytes of a picture by its key; raises DesignError when there is none.
Pictures = Callable[[str], bytes]
_MAX_PIXELS = 40_000_000
_PERIOD = 9.0 * mm  # of the frame's waves, about

_ornaments: dict[tuple[Any, float, float], str] = {}
# reportlab's fonts serve one document at a time.
_one_at_a_time = threading.Lock()

rl_config.useA85 = 0  # ASCII85 costs a fifth of the size and 15 ms a page
rl_config.invariant = 1


def no_pictures(key: str) -> bytes:
    """For designs that use none. Raises DesignError."""
    raise DesignError(f"certificate design: image {key!r} is not in the storage")


def render(design: Design, values: Mapping[str, str], *, pictures: Pictures = no_pictures) -> bytes:
    """The certificate as PDF. `values` holds every placeholder of design.PLACEHOLDERS.

    Raises MissingGlyph for a character no font has, DesignError for a picture that is missing or none.
    """
    with _one_at_a_time:
        return _render(design, values, pictures)


def _render(design: Design, values: Mapping[str, str], pictures: Pictures) -> bytes:
    faces()
    width, height = (side * mm for side in design.page.millimetres)
    values = {**design.fields, **values}
    output = BytesIO()
    # An embedded font as the first one, else the PDF refers to Helvetica, which is not embedded.
    options: dict[str, Any] = {"initialFontName": "NotoSans-Regular", "lang": design.language, "invariant": 1}
    canvas = Canvas(output, pagesize=(width, height), pageCompression=1, **options)
    canvas.setTitle(fill(design.title, values))
    canvas.setSubject(f"{values['event_name']} – {values['recipient_name']}")
    canvas.setAuthor(values["organiser"])
    canvas.setCreator("celery-jobqueue")
    canvas.setFillColor(HexColor(design.page.colour))
    canvas.rect(0, 0, width, height, stroke=0, fill=1)
    page = _Sheet(canvas, design.page, values, pictures)
    for part in design.parts:
        page.draw(part)
    canvas.showPage()
    canvas.save()
    return output.getvalue()


class _Sheet:
    """Draws the parts; y grows downwards in a design and upwards in a PDF."""

    def __init__(self, canvas: Any, page: Page, values: Mapping[str, str], pictures: Pictures) -> None:
        self._canvas = canvas
        self._page = page
        self._width, self._height = (side * mm for side in page.millimetres)
        self._values = values
        self._pictures = pictures

    def draw(self, part: Any) -> None:
        draw: dict[type, Callable[[Any], None]] = {
            Text: self._text, Signature: self._signature, Qr: self._qr, Image: self._image, Frame: self._frame,
            Seal: self._ornament, Rule: self._ornament}
        draw[type(part)](part)

    def _ornament(self, part: Seal | Rule) -> None:
        """What looks the same on every certificate is drawn once per process."""
        key = (part, self._width, self._height)
        if key not in _ornaments:
            before = len(self._canvas._code)
            self._canvas.saveState()
            if isinstance(part, Seal):
                self._seal(part)
            else:
                self._rule(part)
            self._canvas.restoreState()
            operators = "\n".join(self._canvas._code[before:])
            del self._canvas._code[before:]
            if len(_ornaments) >= 256:
                _ornaments.clear()
            _ornaments[key] = operators
        self._canvas._code.append(_ornaments[key])

    def _text(self, part: Text) -> None:
        text = re.sub(r"[\t\n\v\f\r]+", " ", fill(part.text, self._values)).strip()
        if not text:
            return
        lines = lay_out(text, part.font, part.size, max_width=part.room(self._page) * mm, min_size=part.min_size,
                        max_lines=part.max_lines, tracking=part.tracking)
        # The design gives the baseline of the only or middle line.
        top = self._y(part.y) + (len(lines) - 1) / 2 * lines[0].size * LEADING
        for number, line in enumerate(lines):
            self._line(line, part.x * mm, top - number * line.size * LEADING, part.anchor, part.colour)

    def _line(self, line: Line, x: float, y: float, anchor: str, colour: str) -> None:
        x -= {"left": 0.0, "centre": line.width / 2, "right": line.width}[anchor]
        self._canvas.setFillColor(HexColor(colour))
        for run in line.runs:
            self._run(run, x, y, line)
            x += run.width * line.size / 1000 + line.tracking * len(run.glyphs)

    def _run(self, run: Run, x: float, y: float, line: Line) -> None:
        # What a reader copies is the text, not the glyphs' private characters.
        hexed = run.text.encode("utf-16-be").hex().upper()
        text = self._canvas.beginText()
        text._code.append(f"/Span <</ActualText <FEFF{hexed}>>> BDC")
        text.setFont(run.face.name, line.size)
        scale = line.size / 1000
        piece, start, expected = "", x, x
        for glyph in run.glyphs:
            at = x + glyph.x * scale
            if glyph.y or abs(at - expected) > 0.01:
                self._piece(text, piece, start, y)
                piece, start = "", at
            if glyph.y:
                self._piece(text, glyph.char, at, y + glyph.y * scale)
                start = expected = x + glyph.advance * scale
            else:
                piece += glyph.char
                expected = at + glyph.width * scale
            x += glyph.advance * scale + line.tracking
        self._piece(text, piece, start, y)
        text._code.append("EMC")
        self._canvas.drawText(text)

    @staticmethod
    def _piece(text: Any, piece: str, x: float, y: float) -> None:
        if piece:
            text.setTextOrigin(round(x, 3), round(y, 3))
            text.textOut(piece)

    def _rule(self, part: Rule) -> None:
        canvas, x, y = self._canvas, part.x * mm, self._y(part.y)
        half = part.width * mm / 2
        canvas.setStrokeColor(HexColor(part.colour))
        canvas.setFillColor(HexColor(part.colour))
        canvas.setLineWidth(part.thickness * mm)
        gap = 2.4 * mm if part.diamond else 0.0
        canvas.line(x - half, y, x - gap, y)
        canvas.line(x + gap, y, x + half, y)
        if part.diamond:
            side = 1.3 * mm
            self._polygon([(x, y + side), (x + side, y), (x, y - side), (x - side, y)], fill_it=True)

    def _frame(self, part: Frame) -> None:
        canvas, tile = self._canvas, f"waves-{part.width!r}-{part.colour[1:]}-{part.accent[1:]}"
        outer, inner = part.margin * mm, (part.margin + part.width) * mm
        if not canvas.hasForm(tile):
            self._waves(part, tile)
        # A whole number of waves along each side, from corner to corner.
        for length, angle, x, y in ((self._width, 0, inner, outer), (self._width, 0, inner, self._height - inner),
                                    (self._height, 90, inner, inner), (self._height, 90, self._width - outer, inner)):
            periods = max(4, round((length - 2 * inner) / _PERIOD))
            canvas.saveState()
            canvas.translate(x, y)
            canvas.rotate(angle)
            canvas.scale((length - 2 * inner) / (periods * _PERIOD), 1)
            canvas.doForm(tile)
            canvas._code += [f"1 0 0 1 {_PERIOD:.4f} 0 cm", canvas._code[-1]] * (periods - 1)
            canvas.restoreState()
        canvas.setStrokeColor(HexColor(part.colour))
        for offset, thickness in ((outer, 0.7), (inner, 0.35), (inner + 1.2 * mm, 0.12)):
            canvas.setLineWidth(thickness * mm)
            canvas.rect(offset, offset, self._width - 2 * offset, self._height - 2 * offset, stroke=1, fill=0)
        side = inner - outer
        for x in (outer, self._width - inner):
            for y in (outer, self._height - inner):
                canvas.setFillColor(HexColor(part.colour))
                canvas.rect(x, y, side, side, stroke=0, fill=1)
                canvas.setFillColor(HexColor(part.accent))
                self._star(x + side / 2, y + side / 2, side * 0.4, side * 0.19, 8)

    def _waves(self, part: Frame, name: str) -> None:
        """One period of the engraved waves, to be repeated: drawn in full they were 60 of 78 ms and half of the file."""
        canvas, middle, steps = self._canvas, part.width * mm / 2, 12
        canvas.beginForm(name, -mm, -mm, _PERIOD + mm, part.width * mm + mm)
        canvas.setLineWidth(0.18 * mm)
        canvas.setLineCap(1)
        for number in range(6):
            canvas.setStrokeColor(HexColor(part.accent if number % 2 else part.colour))
            path = canvas.beginPath()
            for step in range(steps + 1):
                height = middle * 0.72 * math.sin(2 * math.pi * step / steps + number * math.pi / 6)
                (path.lineTo if step else path.moveTo)(_PERIOD * step / steps, middle + height)
            canvas.drawPath(path, stroke=1, fill=0)
        canvas.endForm()

    def _seal(self, part: Seal) -> None:
        canvas, x, y, radius = self._canvas, part.x * mm, self._y(part.y), part.radius * mm
        paper = HexColor("#ffffff")
        canvas.setFillColor(HexColor(part.colour))
        self._star(x, y, radius, radius * 0.9, 36)
        canvas.setStrokeColor(paper)
        canvas.setLineWidth(0.35 * mm)
        canvas.circle(x, y, radius * 0.8, stroke=1, fill=0)
        canvas.setLineWidth(0.12 * mm)
        canvas.circle(x, y, radius * 0.74, stroke=1, fill=0)
        canvas.setFillColor(paper)
        self._star(x, y, radius * 0.42, radius * 0.18, 5)
        for step in range(40):
            angle = 2 * math.pi * step / 40
            inner, outer = radius * 0.58, radius * (0.68 if step % 2 else 0.64)
            canvas.line(x + inner * math.cos(angle), y + inner * math.sin(angle),
                        x + outer * math.cos(angle), y + outer * math.sin(angle))

    def _star(self, x: float, y: float, outer: float, inner: float, points: int) -> None:
        corners = []
        for step in range(points * 2):
            angle = math.pi / 2 + math.pi * step / points
            reach = outer if step % 2 == 0 else inner
            corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        self._polygon(corners, fill_it=True)

    def _polygon(self, corners: list[tuple[float, float]], *, fill_it: bool) -> None:
        path = self._canvas.beginPath()
        path.moveTo(*corners[0])
        for corner in corners[1:]:
            path.lineTo(*corner)
        path.close()
        self._canvas.drawPath(path, stroke=0 if fill_it else 1, fill=1 if fill_it else 0)

    def _signature(self, part: Signature) -> None:
        canvas, x, y, width = self._canvas, part.x * mm, self._y(part.y), part.width * mm
        canvas.setStrokeColor(HexColor(part.colour))
        canvas.setLineWidth(0.25 * mm)
        canvas.line(x - width / 2, y, x + width / 2, y)
        canvas.setLineCap(1)
        canvas.setLineWidth(0.42 * mm)
        scale = width * 0.8 / 100
        for stroke in part.strokes:
            path = canvas.beginPath()
            points = [(x - width * 0.4 + px * scale, y + (34 - py) * scale) for px, py in stroke]
            path.moveTo(*points[0])
            for start, control, control2, end in _through(points):
                del start
                path.curveTo(*control, *control2, *end)
            canvas.drawPath(path, stroke=1, fill=0)
        canvas.setLineCap(0)
        for text, font, size, drop in ((part.name, "serif", 11.0, 5.0), (part.title, "italic", 9.0, 9.3)):
            if text:
                filled = fill(text, self._values)
                line = line_of(filled, font, size)
                if line.width > width * SIGNED:
                    line = line_of(filled, font, size * width * SIGNED / line.width)
                self._line(line, x, y - drop * mm, "centre", part.colour)

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
        modules = [f"{run.start()} {size - 1 - number} {run.end() - run.start()} 1 re"
                   for number, row in enumerate(rows) for run in re.finditer(rb"\x01+", row)]
        canvas, cell = self._canvas, part.size * mm / size
        canvas.saveState()
        canvas.translate(part.x * mm - part.size * mm / 2, self._y(part.y) - part.size * mm / 2)
        canvas.scale(cell, cell)
        canvas.setFillColor(HexColor(part.colour))
        canvas._code.append(" ".join([*modules, "f"]))
        canvas.restoreState()

    def _image(self, part: Image) -> None:
        reader = _picture(self._pictures(part.key), part.key)
        self._canvas.drawImage(reader, part.x * mm, self._y(part.y + part.height), part.width * mm, part.height * mm,
                               mask="auto", preserveAspectRatio=True, anchor="c")

    def _y(self, millimetres: float) -> float:
        return self._height - millimetres * mm


@lru_cache(maxsize=32)
def _picture(content: bytes, key: str) -> ImageReader:
    from PIL import Image as Pillow

    try:
        with Pillow.open(BytesIO(content)) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                raise DesignError(
                    f"certificate design: image {key!r} has {opened.width} × {opened.height} pixels: at most 40 million")
            opened.load()
            return ImageReader(opened.copy())
    except DesignError:
        raise
    except Exception as error:
        raise DesignError(f"certificate design: image {key!r} is not a picture that can be read ({error})") from error


Point = tuple[float, float]


def _through(points: list[Point]) -> list[tuple[Point, Point, Point, Point]]:
    """Bézier segments of a smooth curve through the points (Catmull-Rom)."""
    padded = [points[0], *points, points[-1]]
    segments = []
    for before, start, end, after in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        control = (start[0] + (end[0] - before[0]) / 6, start[1] + (end[1] - before[1]) / 6)
        control2 = (end[0] - (after[0] - start[0]) / 6, end[1] - (after[1] - start[1]) / 6)
        segments.append((start, control, control2, end))
    return segments


