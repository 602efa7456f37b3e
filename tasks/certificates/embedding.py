"""Fonts inside the PDF: only the glyphs that are used, and what they say when somebody copies them.

Text is written with the numbers that glyphs have in their font, and HarfBuzz cuts the font. Both PostScript and TrueType
outlines work, variable fonts at their default; reportlab's own fonts can do neither, nor a glyph without a character.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import uharfbuzz

from tasks.certificates.fonts import Face
from tasks.certificates.pdf import PdfFile, number, stream

__all__ = ["code_of", "embed"]

_UNUSED = ("GSUB", "GPOS", "GDEF", "BASE", "JSTF", "MATH", "name", "OS/2", "post", "cmap", "VORG", "vhea", "vmtx", "DSIG", "gasp",
           "MVAR", "STAT", "HVAR", "VVAR", "avar", "kern", "meta", "COLR", "CPAL", "SVG ", "fpgm", "prep", "cvt ")
_FLAGS = uharfbuzz.SubsetFlags.NO_HINTING | uharfbuzz.SubsetFlags.NO_LAYOUT_CLOSURE


class _Cut(NamedTuple):
    """A subset, ready to be written."""

    program: bytes
    glyphs: bytes | None  # where each number's outline is, TrueType only
    widths: str
    tag: str


def code_of(face: Face, glyph: int) -> int:
    """What this glyph is called in a page's text."""
    return face.cids[glyph] if face.cids else glyph


def embed(file: PdfFile, face: Face, texts: Mapping[int, str]) -> str:
    """Write the font with these glyphs; answers with the font object's name. texts: what each of them says."""
    cut = _cut(face, tuple(sorted(texts)))
    name = f"{cut.tag}+{face.name}"
    (left, bottom, right, top), (ascent, descent) = face.box, face.heights
    key, kind = ("FontFile3", "CIDFontType0") if face.is_cff else ("FontFile2", "CIDFontType2")
    descriptor = file.add(
        f"<</Type/FontDescriptor/FontName/{name}/Flags 4/FontBBox[{left} {bottom} {right} {top}]/ItalicAngle 0/Ascent {ascent}"
        f"/Descent {descent}/CapHeight 700/StemV 80/{key} {file.add(cut.program)}>>")
    glyphs = f"/CIDToGIDMap {file.add(cut.glyphs)}" if cut.glyphs else ""
    descendant = file.add(
        f"<</Type/Font/Subtype/{kind}/BaseFont/{name}/CIDSystemInfo<</Registry(Adobe)/Ordering(Identity)/Supplement 0>>"
        f"/FontDescriptor {descriptor}/DW 1000/W[{cut.widths}]{glyphs}>>")
    unicode = file.add(_unicode(tuple((code_of(face, glyph), text) for glyph, text in sorted(texts.items()) if text)))
    return file.add(f"<</Type/Font/Subtype/Type0/BaseFont/{name}/Encoding/Identity-H/DescendantFonts[{descendant}]"
                    f"/ToUnicode {unicode}>>")


@lru_cache(maxsize=1024)  # a few kilobytes each: what stands on every certificate of an event is cut once
def _cut(face: Face, glyphs: tuple[int, ...]) -> _Cut:
    wanted: Any = uharfbuzz.SubsetInput()
    wanted.flags = _FLAGS
    if face.is_cff and face.cids is None:
        wanted.flags |= uharfbuzz.SubsetFlags.RETAIN_GIDS  # such fonts have no numbers of their own inside of a PDF
    wanted.glyph_set.update(glyphs)
    wanted.drop_table_tag_set.update(int.from_bytes(tag.encode()) for tag in _UNUSED)
    if face.face.axis_infos:
        wanted.pin_all_axes_to_default(face.for_subsets)
    plan = uharfbuzz.SubsetPlan(face.for_subsets, wanted)
    made = plan.execute()
    if face.is_cff:
        program = stream(bytes(made.reference_table("CFF ").data), "/Subtype/CIDFontType0C")
    else:
        content = bytes(made.blob.data)
        program = stream(content, f"/Length1 {len(content)}")
    moved = None
    if not face.is_cff:
        places = bytearray(2 * (max(glyphs) + 1))
        for old, new in plan.old_to_new_glyph_mapping.items():
            if old <= max(glyphs):
                places[2 * old:2 * old + 2] = new.to_bytes(2)
        moved = stream(bytes(places))
    widths = "".join(f"{code_of(face, glyph)}[{number(face.width(glyph))}]" for glyph in glyphs)
    digest = hashlib.sha256(repr(glyphs).encode()).digest()
    return _Cut(program, moved, widths, "".join(chr(65 + byte % 26) for byte in digest[:6]))


@lru_cache(maxsize=1024)
def _unicode(texts: tuple[tuple[int, str], ...]) -> bytes:
    """The map from a page's numbers back to text."""
    lines = []
    for start in range(0, len(texts), 100):  # the most that one block may have
        block = texts[start:start + 100]
        lines += [f"{len(block)} beginbfchar",
                  *(f"<{code:04X}><{text.encode('utf-16-be').hex().upper()}>" for code, text in block), "endbfchar"]
    return stream("\n".join((
        "/CIDInit/ProcSet findresource begin 12 dict begin begincmap",
        "/CIDSystemInfo<</Registry(Adobe)/Ordering(UCS)/Supplement 0>>def/CMapName/Adobe-Identity-UCS def/CMapType 2 def",
        "1 begincodespacerange<0000><FFFF>endcodespacerange", *lines,
        "endcmap CMapName currentdict/CMap defineresource pop end end")).encode())
