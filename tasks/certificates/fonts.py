"""Fonts: which file draws which character, and the shape of a run of text.

reportlab draws characters, HarfBuzz answers with glyphs. A glyph without a character of its own gets a private one that
depends on nothing but its number, so that the bytes of a PDF do not depend on what the process has rendered before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import uharfbuzz
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont

from tasks.certificates.errors import MissingGlyph

__all__ = ["Face", "Glyph", "face_for", "faces"]

_FOLDER = Path(__file__).with_name("fonts")
_PRIVATE = 0xF0000  # plane 15: nobody's characters

_STYLES = {
    "display": "NotoSerifDisplay-Regular", "serif": "NotoSerif-Regular", "italic": "NotoSerif-Italic", "sans": "NotoSans-Regular",
}
_FALLBACKS = ("NotoSerif-Regular", "NotoNaskhArabic-Regular", "NotoSerifHebrew-Regular", "NotoSerifDevanagari-Regular",
              "NotoSerifThai-Regular", "NotoSerifBengali-Regular", "NotoSerifTamil-Regular", "NotoSans-Regular")


@dataclass(frozen=True, slots=True)
class Glyph:
    """One glyph of a shaped run; lengths in thousandths of the font size. char is what reportlab draws it with."""

    char: str
    advance: float
    x: float
    y: float
    width: float


class Face:
    """One font file, loaded once per process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._font: Any = TTFont(name, str(_FOLDER / f"{name}.ttf"))
        pdfmetrics.registerFont(self._font)
        self._hb_face = uharfbuzz.Face(uharfbuzz.Blob.from_file_path(str(_FOLDER / f"{name}.ttf")))
        self._hb_font = uharfbuzz.Font(self._hb_face)
        self._scale = 1000 / self._hb_face.upem
        self._known = frozenset(self._font.face.charToGlyph)
        characters: dict[int, list[int]] = vars(self._font.face)["glyphToChar"]
        self._chars = {glyph: chars[0] for glyph, chars in characters.items() if chars}

    def has(self, char: str) -> bool:
        """Whether the font can draw this character."""
        return ord(char) in self._known

    def shape(self, text: str, *, rtl: bool) -> list[Glyph]:
        """The glyphs of a run of one direction, from left to right."""
        buffer = uharfbuzz.Buffer()
        buffer.add_str(text)
        buffer.guess_segment_properties()
        buffer.direction = "rtl" if rtl else "ltr"
        uharfbuzz.shape(self._hb_font, buffer, {"kern": True, "liga": True})
        return [
            Glyph(self._char(info.codepoint), position.x_advance * self._scale, position.x_offset * self._scale,
                  position.y_offset * self._scale, self._width(info.codepoint))
            for info, position in zip(buffer.glyph_infos, buffer.glyph_positions, strict=True)
        ]

    def _char(self, glyph: int) -> str:
        code = self._chars.get(glyph)
        if code is None:
            code = _PRIVATE + glyph
            face = self._font.face
            if code not in face.charToGlyph:
                face.charToGlyph[code] = glyph
                face.charWidths[code] = self._hb_font.get_glyph_h_advance(glyph) * self._scale
            self._chars[glyph] = code
        return chr(code)

    def _width(self, glyph: int) -> float:
        return float(self._hb_font.get_glyph_h_advance(glyph) * self._scale)


@lru_cache
def faces() -> dict[str, Face]:
    """All faces by file name, loaded at the first use in a process (about 0.2 s)."""
    return {name: Face(name) for name in dict.fromkeys((*_STYLES.values(), *_FALLBACKS))}


@lru_cache(maxsize=4096)
def face_for(char: str, style: str) -> Face:
    """The face that draws this character in this style, or the first fallback that can.

    Raises MissingGlyph naming the character: an empty box is never drawn.
    """
    for name in (_STYLES[style], *_FALLBACKS):
        if faces()[name].has(char):
            return faces()[name]
    raise MissingGlyph(
        f"no font has the character {char!r} (U+{ord(char):04X}): leave it out, or add a font for its script")
