"""From text to placed glyphs: directions, fonts, shrinking and wrapping."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import groupby

from bidi import algorithm

from tasks.certificates.fonts import Face, Glyph, face_for

__all__ = ["Line", "Run", "lay_out", "line_of"]


@dataclass(frozen=True, slots=True)
class Run:
    """Glyphs of one font and direction, as drawn from left to right; `text` is what they say, for copy and search."""

    face: Face
    text: str
    glyphs: tuple[Glyph, ...]

    @property
    def width(self) -> float:
        """In thousandths of the font size."""
        return sum(glyph.advance for glyph in self.glyphs)


@dataclass(frozen=True, slots=True)
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


def line_of(text: str, style: str, size: float, tracking: float = 0.0) -> Line:
    """The text in one line. Raises MissingGlyph."""
    return Line(tuple(_runs(text, style)), size, tracking)


def lay_out(text: str, style: str, size: float, *, max_width: float, min_size: float, max_lines: int = 1,
            tracking: float = 0.0) -> list[Line]:
    """The text in at most `max_lines` lines of at most `max_width` points: shrunk to `min_size` first, then wrapped.

    What still does not fit shrinks below `min_size`: a name is never cut. Raises MissingGlyph.
    """
    whole = line_of(text, style, size, tracking)
    if whole.width <= max_width:
        return [whole]
    fitting = size * max_width / whole.width
    words = text.split()
    if fitting >= min_size or max_lines == 1 or len(words) == 1:
        return [line_of(text, style, fitting * 0.999, tracking * fitting / size)]
    for lines in range(2, max_lines + 1):
        parts = _balanced(words, lines, style)
        widest = max(line_of(part, style, size, tracking).width for part in parts)
        fitting = min(size, size * max_width / widest)
        if fitting >= min_size or lines == max_lines:
            return [line_of(part, style, fitting * 0.999, tracking * fitting / size) for part in parts]
    raise AssertionError("unreachable")


def _balanced(words: list[str], lines: int, style: str) -> list[str]:
    """The words in about equally long lines."""
    lines = min(lines, len(words))
    widths = [line_of(word, style, 10).width for word in words]
    target, current, used = sum(widths) / lines, [words[0]], widths[0]
    parts: list[str] = []
    for word, width, left in zip(words[1:], widths[1:], range(len(words) - 1, 0, -1), strict=True):
        must_break = left == lines - len(parts) - 1
        if len(parts) < lines - 1 and (must_break or used + width / 2 > target):
            parts.append(" ".join(current))
            current, used = [], 0.0
        current.append(word)
        used += width
    return [*parts, " ".join(current)]


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
    return [(entry["ch"], entry["level"]) for entry in storage["chars"]]


def _runs(text: str, style: str) -> list[Run]:
    text = unicodedata.normalize("NFC", text)
    marked = [(char, level, _face(char, index, text, style)) for index, (char, level) in enumerate(_levels(text))]
    runs: list[tuple[int, Run]] = []
    for (level, face), group in groupby(marked, key=lambda entry: (entry[1], entry[2])):
        piece = "".join(char for char, _, _ in group)
        runs.append((level, Run(face, piece, tuple(face.shape(piece, rtl=level % 2 == 1)))))
    # Visual order (rule L2): reverse every sequence at or above each level, from the highest down to 1.
    for threshold in range(max((level for level, _ in runs), default=0), 0, -1):
        reordered: list[tuple[int, Run]] = []
        for above, neighbours in groupby(runs, key=lambda entry: entry[0] >= threshold):
            sequence = list(neighbours)
            reordered += sequence[::-1] if above else sequence
        runs = reordered
    return [run for _, run in runs]


def _face(char: str, index: int, text: str, style: str) -> Face:
    # Marks and joiners belong to the letter before them, spaces to whatever runs on.
    if index and (unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Mc", "Me", "Cf")):
        base = _face(text[index - 1], index - 1, text, style)
        return base if base.has(char) else face_for(char, style)
    return face_for(char, style)
