"""Fonts: which file draws which character, and the shape of a run of text.

HarfBuzz shapes; glyphs keep the numbers they have in their font, so nothing here depends on what was rendered before.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import uharfbuzz

from tasks.certificates.errors import DesignError, MissingGlyph

__all__ = ["STYLES", "Face", "Fonts", "Glyph", "event_face"]

_FOLDER = Path(__file__).with_name("fonts")

#: The fonts a design may name without bringing one of its own.
STYLES = {
    "display": "NotoSerifDisplay-Regular", "serif": "NotoSerif-Regular", "italic": "NotoSerif-Italic", "sans": "NotoSans-Regular",
    "bold": "NotoSans-Bold",
}
_FALLBACKS = ("NotoSerif-Regular", "NotoNaskhArabic-Regular", "NotoSerifHebrew-Regular", "NotoSerifDevanagari-Regular",
              "NotoSerifThai-Regular", "NotoSerifBengali-Regular", "NotoSerifTamil-Regular", "NotoSans-Regular")
#: Scripts that are too large for this repository come with packages of fonts: the extra `fonts` in pyproject.toml.
_CJK = {"sc": "pylopdf_fonts_zh_cn", "tc": "pylopdf_fonts_zh_tw", "jp": "pylopdf_fonts_jp", "kr": "pylopdf_fonts_ko"}
_TELLING = (("\u3041", "\u30ff", "jp"), ("\uac00", "\ud7a3", "kr"), ("\u3105", "\u312f", "tc"))
_WORLD = ("Armenian", "Ethiopic", "Georgian", "Gujarati", "Gurmukhi", "Kannada", "Khmer", "Lao", "Malayalam", "Myanmar", "Oriya",
          "Sinhala", "Telugu")
_JOINERS = "\u200c\u200d"
_LARGEST = 30_000_000  # bytes of an event's own font; the largest of Noto's Chinese ones has 12 million


class Glyph(NamedTuple):
    """One glyph of a shaped run; lengths in thousandths of the font size."""

    number: int
    cluster: int  # index of its first character in the run
    advance: float
    x: float
    y: float
    width: float


class Face:
    """One font, read once per process."""

    def __init__(self, name: str, content: uharfbuzz.Blob) -> None:
        self.name = name
        self.face = uharfbuzz.Face(content)
        if not self.face.glyph_count or not {"glyf", "CFF "} & set(self.face.table_tags):
            raise DesignError(f"certificate design: font {name!r} is no TrueType or OpenType font")
        self._font = uharfbuzz.Font(self.face)
        self._scale = 1000 / self.face.upem
        self._known = frozenset(self.face.unicodes)
        self._widths: dict[int, float] = {}

    def has(self, char: str) -> bool:
        """Whether the font can draw this character."""
        return ord(char) in self._known

    def glyph_of(self, char: str) -> int | None:
        """The glyph that draws this character where nothing stands beside it."""
        number: int | None = self._font.get_nominal_glyph(ord(char))
        return number

    def shape(self, text: str, *, rtl: bool) -> tuple[Glyph, ...]:
        """The glyphs of a run of one direction, from left to right."""
        buffer = uharfbuzz.Buffer()
        buffer.add_codepoints([ord(char) for char in text])
        buffer.guess_segment_properties()
        buffer.direction = "rtl" if rtl else "ltr"
        # Readers give a right-to-left ligature's letters back in the wrong order: the one of Allah would spoil half of all names.
        uharfbuzz.shape(self._font, buffer, {"kern": True, "liga": not rtl})
        scale = self._scale
        glyphs = [(info.codepoint, info, position)
                  for info, position in zip(buffer.glyph_infos, buffer.glyph_positions, strict=True)]
        if any(char in text for char in _JOINERS):
            glyphs = self._with_joiners(text, glyphs)
        return tuple(
            Glyph(number, info.cluster, position.x_advance * scale, position.x_offset * scale, position.y_offset * scale,
                  self.width(number))
            for number, info, position in glyphs)

    def _with_joiners(self, text: str, glyphs: list[tuple[int, Any, Any]]) -> list[tuple[int, Any, Any]]:
        """Where HarfBuzz has put a space that takes no room for a joiner, another glyph that shows nothing, or none.

        As a space it would be copied; the font's own glyph for it may show: Noto Naskh's is a bar.
        """
        space = self.glyph_of(" ")
        blank = next((glyph for char in "\u200b\u2060\u00a0\r\0" if (glyph := self.glyph_of(char)) not in (None, space)
                      and self.is_blank(glyph)), None)
        kept = []
        for number, info, position in glyphs:
            joins = number == space and text[info.cluster] in _JOINERS and not position.x_advance
            if (shown := blank if joins else number) is not None:
                kept.append((shown, info, position))
        return kept

    def is_blank(self, glyph: int) -> bool:
        """Whether the glyph shows nothing."""
        extents = self._font.get_glyph_extents(glyph)
        return extents is None or not (extents.width or extents.height)

    def width(self, glyph: int) -> float:
        """How far the pen moves after this glyph, in thousandths of the font size."""
        width = self._widths.get(glyph)
        if width is None:
            width = self._widths[glyph] = round(self._font.get_glyph_h_advance(glyph) * self._scale, 2)
        return width

    @property
    def is_cff(self) -> bool:
        """Whether the outlines are PostScript's."""
        return "CFF " in self.face.table_tags

    @cached_property
    def cids(self) -> list[int] | None:
        """What a PDF calls the glyphs of a CID-keyed font, by glyph; None for all others, where it is the glyph's number."""
        if not self.is_cff:
            return None
        from fontTools.cffLib import CFFFontSet  # 0.1 s, and only Chinese, Japanese and Korean names need it

        fonts: Any = CFFFontSet()
        fonts.decompile(BytesIO(self.face.reference_table("CFF ").data), None)
        top = fonts.topDictIndex[0]
        return [int(name[3:]) if number else 0 for number, name in enumerate(top.charset)] if hasattr(top, "ROS") else None

    @cached_property
    def for_subsets(self) -> uharfbuzz.Face:
        """The same font, prepared for cutting: a subset of a Chinese one takes 0.3 ms with and 4 ms without."""
        return uharfbuzz.subset_preprocess(self.face)

    @cached_property
    def heights(self) -> tuple[int, int]:
        """How far letters reach above the baseline and (negative) below, in thousandths. Readers tell lines apart by it."""
        extents = self._font.get_font_extents("ltr")
        return round(extents.ascender * self._scale), round(extents.descender * self._scale)

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """What every glyph fits into, in thousandths: left, bottom, right, top."""
        head = bytes(self.face.reference_table("head").data)
        left, bottom, right, top = (round(int.from_bytes(head[at:at + 2], signed=True) * self._scale) for at in range(36, 44, 2))
        return left, bottom, right, top


@lru_cache
def _shipped(name: str) -> Face:
    return Face(name, uharfbuzz.Blob.from_file_path(str(_FOLDER / f"{name}.ttf")))


@lru_cache
def _packaged(package: str, pattern: str) -> Face | None:
    """The font of an installed package; None when the package is not there."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    for path in sorted(Path(found.submodule_search_locations[0]).glob(pattern)):
        return Face(path.stem.replace("[wght]", ""), uharfbuzz.Blob.from_file_path(str(path)))
    return None


@lru_cache(maxsize=32)
def event_face(content: bytes, key: str) -> Face:
    """An event's own font. Named for its content: two events' fonts may call themselves the same. Raises DesignError."""
    if len(content) > _LARGEST:
        raise DesignError(f"certificate design: font {key!r} has {len(content):,} bytes: at most {_LARGEST:,}")
    try:
        face = Face(f"Own-{hashlib.sha256(content).hexdigest()[:16]}", uharfbuzz.Blob(content))
    except (DesignError, ValueError, RuntimeError) as error:
        raise DesignError(f"certificate design: font {key!r} is no TrueType or OpenType font; unpack WOFF") from error
    if int.from_bytes(bytes(face.face.reference_table("OS/2").data)[8:10]) & 0xF == 2:  # fsType
        raise DesignError(f"certificate design: the maker of font {key!r} forbids to embed it (OS/2 fsType 2): take another one")
    return face


@dataclass(frozen=True)
class Fonts:
    """What a design writes with. region: whose shapes Chinese characters have (sc, tc, jp, kr). own: its fonts by style."""

    region: str = "sc"
    own: tuple[tuple[str, Face], ...] = ()

    @classmethod
    def of(cls, language: str, own: Mapping[str, Face]) -> Fonts:
        """For a design in this language."""
        tags = language.lower().split("-")
        traditional = tags[0] == "zh" and bool({"tw", "hk", "mo", "hant"} & set(tags))
        return cls({"ja": "jp", "ko": "kr"}.get(tags[0], "tc" if traditional else "sc"), tuple(sorted(own.items())))

    def face_for(self, char: str, style: str) -> Face:
        """The face that draws this character in this style, or the first fallback that can.

        Raises MissingGlyph naming the character: an empty box is never drawn.
        """
        for name, face in self.own:
            if name == style:
                return face if face.has(char) else _fallback(char, "serif", self.region)
        return _fallback(char, style, self.region)

    def for_text(self, text: str) -> Fonts:
        """The same for this text: kana are Japanese and Hangul is Korean whatever the design's language."""
        if max(text, default="") < "\u3041":
            return self
        region = next((region for start, end, region in _TELLING if any(start <= char <= end for char in text)), self.region)
        return self if region == self.region else Fonts(region, self.own)


@lru_cache(maxsize=8192)
def _fallback(char: str, style: str, region: str) -> Face:
    for name in (STYLES[style], *_FALLBACKS):
        if (face := _shipped(name)).has(char):
            return face
    look = "*Sans*.otf" if style in ("sans", "bold") else "*Serif*.otf"
    for other in (region, *_CJK):
        if (packaged := _packaged(_CJK[other], look)) is not None and packaged.has(char):
            return packaged
    for script in _WORLD:
        if (packaged := _packaged("manimgx_fonts", f"NotoSans{script}*.ttf")) is not None and packaged.has(char):
            return packaged
    raise MissingGlyph(f"no font has the character {char!r} (U+{ord(char):04X}): leave it out, or {_advice()}")


def _advice() -> str:
    missing = [package for package in (*_CJK.values(), "manimgx_fonts") if importlib.util.find_spec(package) is None]
    if missing:
        return "install the fonts of more scripts where the workers run: pip install " + " ".join(missing).replace("_", "-")
    return "give the design a font of its own that has it"
