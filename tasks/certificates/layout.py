"""From text to placed glyphs: directions, fonts, shrinking and wrapping."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from bidi import algorithm

from tasks.certificates.fonts import Face, Fonts, Glyph

__all__ = ["Line", "Run", "lay_out", "line_of"]

_ORDINARY = Fonts()
_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # Thai, Lao, Burmese, Khmer


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Glyphs of one font and direction, as drawn from left to right; `text` is what they say, for copy and search.

    width: in thousandths of the font size.
    """

    face: Face
    text: str
    glyphs: tuple[Glyph, ...]
    rtl: bool
    width: float


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One line in one size (points)."""

    runs: tuple[Run, ...]
    size: float
    tracking: float = 0.0

    @property
    def width(self) -> float:
        """In points."""
        letters = sum(len(run.glyphs) for run in self.runs)
        return sum(run.width for run in self.runs) * self.size / 1000 + self.tracking * max(0, letters - 1)

    @property
    def rtl(self) -> bool:
        """Whether some of it runs from right to left."""
        return any(run.rtl for run in self.runs)


@lru_cache(maxsize=2048)  # most of a certificate is what the last one said too
def line_of(text: str, style: str, size: float, tracking: float = 0.0, fonts: Fonts = _ORDINARY) -> Line:
    """The text in one line. Raises MissingGlyph."""
    return Line(_runs(unicodedata.normalize("NFC", text), style, fonts), size, tracking)


def lay_out(text: str, style: str, size: float, *, max_width: float, min_size: float, max_lines: int = 1,
            tracking: float = 0.0, fonts: Fonts = _ORDINARY) -> list[Line]:
    """The text in at most `max_lines` lines of at most `max_width` points: shrunk to `min_size` first, then wrapped.

    What still does not fit shrinks below `min_size`: a name is never cut. Raises MissingGlyph.
    """
    fonts = fonts.for_text(text)
    whole = line_of(text, style, size, tracking, fonts)
    if whole.width <= max_width:
        return [whole]
    fitting = size * max_width / whole.width
    if fitting >= min_size or max_lines == 1:
        return [line_of(text, style, fitting * 0.999, tracking * fitting / size, fonts)]
    # Letters beside each other join, so a piece is measured with its neighbours only once the lines are known.
    pieces = [(piece, line_of(piece.rstrip(), style, size, tracking, fonts).width) for piece in _pieces(text)]
    if any(width > max_width * size / min_size and _SPACELESS.search(piece) for piece, width in pieces):
        pieces = [(letter, line_of(letter.rstrip() or " ", style, size, tracking, fonts).width)
                  for piece, _ in pieces for letter in (_letters(piece) if _SPACELESS.search(piece) else [piece])]
    space = line_of(" ", style, size, tracking, fonts).width
    lines: list[Line] = []
    for count in range(2, max_lines + 1):
        parts = _balanced([(piece, width, space if piece[-1:].isspace() else 0.0) for piece, width in pieces], count)
        widest = max(line_of(part, style, size, tracking, fonts).width for part in parts)
        fitting = min(size, size * max_width / widest)
        lines = [line_of(part, style, fitting * 0.999, tracking * fitting / size, fonts) for part in parts]
        if fitting >= min_size:
            break
    return lines


def _pieces(text: str) -> list[str]:
    """What must stay together, each with the space that follows it: words, and single characters of Chinese and Japanese."""
    pieces: list[str] = []
    for word in text.split():
        wide = any(unicodedata.east_asian_width(char) in "WF" and not "\uac00" <= char <= "\ud7a3" for char in word)
        pieces += _breakable(word) if wide else [word]
        pieces[-1] += " "
    return pieces


def _breakable(word: str) -> list[str]:
    """The word where the Unicode line breaking algorithm may break it."""
    from uniseg.linebreak import line_break_units  # 0.3 s, and only Chinese and Japanese text needs it

    return [str(unit) for unit in line_break_units(word)]


def _letters(word: str) -> list[str]:
    """The word letter by letter, each with its marks: without a dictionary nobody knows where Thai words end."""
    from uniseg.graphemecluster import grapheme_clusters

    letters = [str(letter) for letter in grapheme_clusters(word.rstrip())]
    return [*letters[:-1], letters[-1] + " "] if word[-1:].isspace() else letters


def _balanced(pieces: list[tuple[str, float, float]], lines: int) -> list[str]:
    """The pieces (text, width, width of the space behind) in about equally long lines."""
    lines = min(lines, len(pieces))
    target = sum(width + space for _, width, space in pieces) / lines
    parts: list[str] = []
    current, used = "", 0.0
    for number, (piece, width, space) in enumerate(pieces):
        left = len(pieces) - number
        must_break = left == lines - len(parts) - 1
        if current and len(parts) < lines - 1 and (must_break or used + width / 2 > target):
            parts.append(current.rstrip())
            current, used = "", 0.0
        current += piece
        used += width + space
    return [*parts, current.rstrip()]


def _levels(text: str) -> list[tuple[str, int]]:
    """Each character with its embedding level by the Unicode bidirectional algorithm."""
    if all(unicodedata.bidirectional(char) not in ("R", "AL", "AN") for char in text):
        return [(char, 0) for char in text]
    storage = algorithm.get_empty_storage()
    storage["base_level"] = algorithm.get_base_level(text)
    storage["base_dir"] = ("L", "R")[storage["base_level"]]
    algorithm.get_embedding_levels(text, storage)
    algorithm.explicit_embed_and_overrides(storage)
    algorithm.resolve_weak_types(storage)
    algorithm.resolve_neutral_types(storage, False)
    algorithm.resolve_implicit_levels(storage, False)
    levels, level = iter(storage["chars"]), storage["base_level"]
    found = []
    for char in text:
        # The algorithm drops what has no direction; Persian and Indic spelling needs the joiners.
        if unicodedata.bidirectional(char) != "BN":
            level = next(levels)["level"]
        found.append((char, level))
    return found


def _runs(text: str, style: str, fonts: Fonts) -> tuple[Run, ...]:
    marked = [(char, level, _face(char, index, text, style, fonts)) for index, (char, level) in enumerate(_levels(text))]
    runs: list[tuple[int, Run]] = []
    for (level, face), group in groupby(marked, key=lambda entry: (entry[1], entry[2])):
        piece = "".join(char for char, _, _ in group)
        rtl = level % 2 == 1
        glyphs = face.shape(piece, rtl=rtl)
        runs.append((level, Run(face, piece, glyphs, rtl, sum(glyph.advance for glyph in glyphs))))
    # Visual order (rule L2): reverse every sequence at or above each level, from the highest down to 1.
    for threshold in range(max((level for level, _ in runs), default=0), 0, -1):
        reordered: list[tuple[int, Run]] = []
        for above, neighbours in groupby(runs, key=lambda entry: entry[0] >= threshold):
            sequence = list(neighbours)
            reordered += sequence[::-1] if above else sequence
        runs = reordered
    return tuple(run for _, run in runs)


def _face(char: str, index: int, text: str, style: str, fonts: Fonts) -> Face:
    # Marks, joiners and spaces belong to the letter before them.
    if index and (unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Mc", "Me", "Cf", "Zs")):
        base = _face(text[index - 1], index - 1, text, style, fonts)
        return base if base.has(char) else fonts.face_for(char, style)
    return fonts.face_for(char, style)
