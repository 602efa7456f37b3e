"""The page while it is drawn: operators, the fonts and pictures they name, and what each piece means to a screen reader."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

from tasks.certificates.embedding import code_of, embed
from tasks.certificates.fonts import Face, Glyph
from tasks.certificates.layout import Line, Run
from tasks.certificates.pdf import PdfFile, PdfObject, number, stream, text_string
from tasks.certificates.pictures import Picture

__all__ = ["Sheet", "rgb"]


@dataclass
class _Element:
    """One piece of the document as a screen reader tells it."""

    kind: str
    marks: list[int]
    title: str = ""
    alt: str = ""
    text: str = ""


@dataclass
class Sheet:
    """One page, width × height in points, y growing upwards."""

    width: float
    height: float
    operators: list[str] = field(default_factory=list)
    _texts: dict[Face, dict[int, str]] = field(default_factory=dict)  # what the glyphs in use say
    _pictures: dict[Picture, str] = field(default_factory=dict)
    _elements: list[_Element] = field(default_factory=list)
    _marks: int = 0

    @contextmanager
    def meaning(self, kind: str, title: str = "", *, alt: str = "", text: str = "") -> Iterator[None]:
        """What is drawn inside is this: H1, P or Figure; `Artifact` is decoration."""
        if kind == "Artifact":
            self.operators.append("/Artifact BMC")
        else:
            self._elements.append(_Element(kind, [self._marks], title, alt, text))
            self.operators.append(f"/{kind}<</MCID {self._marks}>>BDC")
            self._marks += 1
        yield
        self.operators.append("EMC")

    def line(self, line: Line, x: float, y: float, anchor: str, colour: str) -> None:
        """Write a line of text with its left end, middle or right end at x."""
        x -= {"left": 0.0, "centre": line.width / 2, "right": line.width}[anchor]
        # Readers take wide spaces for the ends of words. In one line, what has no such help beside what has it gets lost.
        plain = [self._say(run) for run in line.runs].count(False) == 0 and not line.tracking
        shown = []
        for run in line.runs:
            piece = (f"/{run.face.name} {number(line.size)} Tf 1 0 0 1 {number(x)} {number(y)} Tm "
                     f"{_shown(run, line.size, line.tracking)}")
            # Right-to-left text they turn round wherever it stands, so what would be said here came out backwards.
            shown.append(piece if plain or run.rtl else _spoken(run.text, piece))
            x += run.width * line.size / 1000 + line.tracking * len(run.glyphs)
        self.operators.append(f"BT {rgb(colour)} rg {' '.join(shown)} ET")

    def _say(self, run: Run) -> bool:
        """Note what the run's glyphs say. False when one after the other they do not say its text."""
        known, exact = self._texts.setdefault(run.face, {}), True
        for glyph, text, alone in _sayings(run):
            exact &= (known.setdefault(glyph, text) == text) and alone
        return exact

    def picture(self, picture: Picture, left: float, bottom: float, width: float, height: float) -> None:
        """Draw a picture into this rectangle, exactly."""
        across, up = (width / picture.width, height / picture.height) if picture.vector else (width, height)
        self.operators.append(f"q {across:.6f} 0 0 {up:.6f} {number(left)} {number(bottom)} cm /{self.name_of(picture)} Do Q")

    def name_of(self, picture: Picture) -> str:
        """What operators call this picture."""
        return self._pictures.setdefault(picture, f"X{len(self._pictures)}")

    def write(self, file: PdfFile) -> dict[str, PdfObject]:
        """Everything into the file; answers with the catalogue's entries."""
        pages, page, tree, parents = (file.reserve() for _ in range(4))
        fonts = "".join(f"/{face.name} {embed(file, face, texts)}" for face, texts in self._texts.items())
        pictures = "".join(f"/{name} {picture.write(file)}" for picture, name in self._pictures.items())
        content = file.add(stream("\n".join(self.operators).encode("latin-1")))
        box = f"0 0 {number(self.width)} {number(self.height)}"
        file.fill(page, f"<</Type/Page/Parent {pages.reference}/MediaBox[{box}]/StructParents 0/Tabs/S/Contents {content}"
                        f"/Resources<</ProcSet[/PDF/Text/ImageB/ImageC]/Font<<{fonts}>>/XObject<<{pictures}>>>>>>")
        file.fill(pages, f"<</Type/Pages/Kids[{page.reference}]/Count 1>>")
        document = file.reserve()
        elements = [file.add(_element(element, document, page)) for element in self._elements]
        file.fill(document, f"<</Type/StructElem/S/Document/P {tree.reference}/K[{' '.join(elements)}]>>")
        owners = [name for element, name in zip(self._elements, elements, strict=True) for _ in element.marks]
        file.fill(parents, f"<</Nums[0[{' '.join(owners)}]]>>")
        file.fill(tree, f"<</Type/StructTreeRoot/K[{document.reference}]/ParentTree {parents.reference}/ParentTreeNextKey 1>>")
        marked, viewer = file.reserve(), file.reserve()
        file.fill(marked, "<</Marked true>>")
        file.fill(viewer, "<</DisplayDocTitle true>>")
        return {"Pages": pages, "StructTreeRoot": tree, "MarkInfo": marked, "ViewerPreferences": viewer}


def rgb(colour: str) -> str:
    """#rrggbb as PDF writes it."""
    return " ".join(number(int(colour[at:at + 2], 16) / 255) for at in (1, 3, 5))


def _element(element: _Element, document: PdfObject, page: PdfObject) -> str:
    more = "".join(f"/{key}{text_string(value)}" for key, value in (
        ("T", element.title), ("Alt", element.alt), ("ActualText", element.text)) if value)
    return (f"<</Type/StructElem/S/{element.kind}/P {document.reference}/Pg {page.reference}"
            f"/K[{' '.join(map(str, element.marks))}]{more}>>")


def _spoken(text: str, operators: str) -> str:
    """What a reader copies from these operators is this text."""
    return f"/Span<</ActualText{text_string(text)}>>BDC {operators} EMC"


@lru_cache(maxsize=4096)
def _shown(run: Run, size: float, tracking: float) -> str:
    """The run's glyphs as operators.

    Readers put right-to-left text into its order by looking where each glyph stands, and points that go back and up confuse
    them: PDFium and Poppler lost whole names. So the letters come first, and the points after them say nothing.
    """
    placed, place = [], 0.0
    for glyph in run.glyphs:
        placed.append((glyph, place + glyph.x))
        place += glyph.advance + tracking * 1000 / size
    if not run.rtl:
        return _row(run.face, placed, size)
    says = [text for _, text, _ in _sayings(run)]
    points = [entry for entry, text in zip(placed, says, strict=True) if _is_point(entry[0], text)]
    letters = [entry for entry in placed if entry not in points]
    shown = _row(run.face, letters, size)
    if points:
        end = letters[-1][1] + letters[-1][0].width if letters else 0.0
        shown += " " + _spoken("", _row(run.face, points, size, end))
    return shown


def _is_point(glyph: Glyph, text: str) -> bool:
    return not glyph.advance and all(map(unicodedata.combining, text))


def _row(face: Face, placed: list[tuple[Glyph, float]], size: float, start: float = 0.0) -> str:
    """Glyphs with their places as one operator, or several where some stand higher than others; the viewer is at start."""
    pieces: list[str] = []
    row: list[str] = []
    codes, pen, rise = "", start, 0.0  # where the viewer is and how high: in thousandths of the size
    for glyph, at in placed:
        if glyph.y != rise:
            row += [f"<{codes}>"] if codes else []
            pieces += [f"[{''.join(row)}]TJ"] if row else []
            pieces.append(f"{number(glyph.y * size / 1000)} Ts")
            codes, row, rise = "", [], glyph.y
        if move := round(at - pen):
            row += [f"<{codes}>", str(-move)] if codes else [str(-move)]
            codes = ""
            pen += move
        codes += f"{code_of(face, glyph.number):04X}"
        pen += glyph.width
    row += [f"<{codes}>"] if codes else []
    return " ".join([*pieces, f"[{''.join(row)}]TJ", *(["0 Ts"] if rise else [])])


@lru_cache(maxsize=4096)
def _sayings(run: Run) -> tuple[tuple[int, str, bool], ...]:
    """Of every glyph: its number, the text it stands for, and whether that is all there is to its letter."""
    starts = sorted({glyph.cluster for glyph in run.glyphs})
    ends = dict(zip(starts, [*starts[1:], len(run.text)], strict=True))
    found: list[tuple[int, str, bool]] = []
    for start, cluster in groupby(run.glyphs, key=lambda glyph: glyph.cluster):
        glyphs, letter = list(cluster), run.text[start:ends[start]]
        if len(glyphs) == 1:
            found.append((glyphs[0].number, letter, True))
            continue
        says = {run.face.glyph_of(char): char for char in letter}
        numbers = {glyph.number for glyph in glyphs}
        rest = "".join(char for char in letter if run.face.glyph_of(char) not in numbers)
        if run.rtl:
            rest = "".join(char for char in rest if not unicodedata.combining(char)) or rest
        for glyph in glyphs:
            text = says.get(glyph.number, "")
            if not text and rest and (glyph.advance or not run.rtl):
                text, rest = rest, ""
            found.append((glyph.number, text or letter[-1], False))
    return tuple(found)
