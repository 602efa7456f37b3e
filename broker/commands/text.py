"""Words, durations and tables for terminals."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Cell", "Column", "age", "bar", "clean", "count", "cut", "screen_width", "table", "took"]

_UNITS = ((60, 1, "s"), (3600, 60, "m"), (86400, 3600, "h"))


def screen_width() -> int | None:
    """Columns of the terminal, or what the variable COLUMNS says; None in a pipe, where nothing is cut."""
    if os.environ.get("COLUMNS", "").isdecimal() or sys.stdout.isatty():
        return max(40, shutil.get_terminal_size().columns)
    return None


def age(seconds: float | None) -> str:
    """A span of time in its largest unit: 12 s, 3 m, 5 h, 9 d."""
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    for limit, unit, name in _UNITS:
        if seconds < limit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds // 86400)} d"


def took(seconds: float | None) -> str:
    """Like age, finer where it is short: 250 ms, 3.4 s."""
    if seconds is None or seconds >= 60:
        return age(seconds)
    return f"{max(0.0, seconds) * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def count(number: int, exact: bool = True) -> str:
    """12345, or as an estimate of two digits: ≈12k, ≈1.2M."""
    if exact:
        return str(number)
    digits = int(float(f"{number:.2g}"))
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if digits >= unit:
            return f"≈{digits / unit:g}{name}"
    return f"≈{digits}"


def bar(share: float, cells: int = 10) -> str:
    """A progress bar, share from 0 to 1."""
    full = round(min(max(share, 0.0), 1.0) * cells)
    return "█" * full + "░" * (cells - full)


def clean(text: str) -> str:
    """One line without control characters: what a task wrote must not move the cursor of who reads it."""
    flat = " ".join(text.split())
    return flat if flat.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in flat)


def cells(text: str) -> int:
    """Columns the text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """The text, or as much of it as fits, with an ellipsis."""
    start = text[:4 * max(width, 1)]  # enough of it, even with combining marks
    if len(start) == len(text) and cells(text) <= width:
        return text
    taken = used = 0
    for character in start:
        used += cells(character)
        if used > width - 1:
            break
        taken += 1
    return start[:taken] + "…" if width > 0 else ""


@dataclass(frozen=True, slots=True)
class Column:
    """title: its heading. right: numbers stand right. least: cells it may be cut down to, None when it is never cut."""

    title: str
    right: bool = False
    least: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """A text with a way to colour it once it has its width."""

    text: str
    style: Callable[[str], str] | None = None


def table(columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]], width: int | None, *,
          heading: Callable[[str], str] = str) -> list[str]:
    """Aligned lines, headings first, no wider than `width`. A column that is empty in every row is left out."""
    texts = [[Cell(clean(c.text), c.style) if isinstance(c, Cell) else Cell(clean(c)) for c in row] for row in rows]
    kept = [i for i, column in enumerate(columns) if not rows or any(row[i].text for row in texts)]
    widths = {i: max(cells(columns[i].title), *(cells(row[i].text) for row in texts), 0) for i in kept}
    if width is not None:
        _shrink(columns, widths, width - 2 * (len(kept) - 1))
    lines = [_line(columns, widths, [Cell(column.title, heading) for column in columns])]
    return lines + [_line(columns, widths, row) for row in texts]


def _shrink(columns: Sequence[Column], widths: dict[int, int], room: int) -> None:
    """Take from the widest columns first."""
    while sum(widths.values()) > room:
        wide = [i for i in widths if (least := columns[i].least) is not None and widths[i] > least]
        if not wide:
            return
        widths[max(wide, key=lambda i: widths[i])] -= 1


def _line(columns: Sequence[Column], widths: dict[int, int], row: Sequence[Cell]) -> str:
    parts = []
    last = max(widths, default=0)
    for i, width in widths.items():
        text = cut(row[i].text, width)
        space = " " * (width - cells(text))
        shown = row[i].style(text) if row[i].style and text else text  # type: ignore[misc]
        parts.append(space + shown if columns[i].right else shown + (space if i != last else ""))
    return "  ".join(parts).rstrip()
