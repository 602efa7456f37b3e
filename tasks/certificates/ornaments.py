"""Frames, seals, lines and boxes: what looks the same on every certificate of a design, drawn once per process."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from reportlab.lib.units import mm

from tasks.certificates.parts import Box, Frame, Rule, Seal, Signature
from tasks.certificates.pdf import number
from tasks.certificates.pictures import Picture, vector
from tasks.certificates.sheet import rgb

__all__ = ["box", "frame", "rule", "seal", "strokes", "waves"]

Point = tuple[float, float]
_PERIOD = 9.0 * mm  # of the frame's waves, about
_ROUND = 0.5523  # how far a circle's control points are from its corners


@lru_cache(maxsize=256)
def rule(part: Rule, height: float) -> str:
    """A line with a diamond in its middle, perhaps; height is the page's in points, here and below."""
    x, y, half = part.x * mm, height - part.y * mm, part.width * mm / 2
    gap, side = (2.4 * mm, 1.3 * mm) if part.diamond else (0.0, 0.0)
    across, along = (0, 1) if part.vertical else (1, 0)
    lines = [f"{_at(x - a * across, y - a * along)} m {_at(x - b * across, y - b * along)} l S"
             for a, b in ((half, gap), (-gap, -half))]
    diamond = _polygon([(x, y + side), (x + side, y), (x, y - side), (x - side, y)]) if part.diamond else ""
    return _kept(f"{rgb(part.colour)} RG {rgb(part.colour)} rg {number(part.thickness * mm)} w", *lines, diamond)


@lru_cache(maxsize=256)
def box(part: Box, height: float) -> str:
    """A rectangle, its corners round if wanted."""
    left, top, wide, high = part.x * mm, height - part.y * mm, part.width * mm, part.height * mm
    paint = "B" if part.fill and part.colour else "f" if part.fill else "S"
    setting = (f"{rgb(part.fill)} rg " if part.fill else "") + (
        f"{rgb(part.colour)} RG {number(part.thickness * mm)} w" if part.colour else "")
    radius = min(part.radius * mm, wide / 2, high / 2)
    if not radius:
        return _kept(setting, f"{_at(left, top - high)} {number(wide)} {number(high)} re {paint}")
    right, bottom, short = left + wide, top - high, radius * (1 - _ROUND)
    return _kept(
        setting, f"{_at(left + radius, top)} m {_at(right - radius, top)} l",
        f"{_at(right - short, top)} {_at(right, top - short)} {_at(right, top - radius)} c {_at(right, bottom + radius)} l",
        f"{_at(right, bottom + short)} {_at(right - short, bottom)} {_at(right - radius, bottom)} c",
        f"{_at(left + radius, bottom)} l",
        f"{_at(left + short, bottom)} {_at(left, bottom + short)} {_at(left, bottom + radius)} c {_at(left, top - radius)} l",
        f"{_at(left, top - short)} {_at(left + short, top)} {_at(left + radius, top)} c h {paint}")


@lru_cache(maxsize=64)
def frame(part: Frame, width: float, height: float) -> str:
    """The border in its style, less the waves."""
    outer, inner = part.margin * mm, (part.margin + part.width) * mm
    if part.style == "corners":
        return _brackets(part, width, height)
    rules = [(outer, 0.7), (inner, 0.35), (inner + 1.2 * mm, 0.12)] if part.style == "waves" else [(outer, 0.9), (inner, 0.25)]
    drawn = []
    for offset, thickness in rules:
        colour = part.accent if part.style == "lines" and offset == inner else part.colour
        drawn.append(f"{rgb(colour)} RG {number(thickness * mm)} w "
                     f"{_at(offset, offset)} {_at(width - 2 * offset, height - 2 * offset)} re S")
    if part.style == "waves":
        side = inner - outer
        for x in (outer, width - inner):
            for y in (outer, height - inner):
                drawn += [f"{rgb(part.colour)} rg {_at(x, y)} {_at(side, side)} re f", f"{rgb(part.accent)} rg",
                          _star(x + side / 2, y + side / 2, side * 0.4, side * 0.19, 8)]
    return _kept(*drawn)


@lru_cache(maxsize=64)
def waves(part: Frame, width: float, height: float) -> tuple[Picture, str]:
    """One period of engraved waves, and the operators that repeat it (as /Tile) from corner to corner along each side.

    Drawn in full they were half of the file and most of the time.
    """
    deep, outer, inner, steps = part.width * mm, part.margin * mm, (part.margin + part.width) * mm, 12
    tile = [f"{number(0.18 * mm)} w 1 J"]
    for line in range(6):
        points = [(_PERIOD * at / steps, deep / 2 * (1 + 0.72 * math.sin(2 * math.pi * at / steps + line * math.pi / 6)))
                  for at in range(steps + 1)]
        tile.append(f"{rgb(part.accent if line % 2 else part.colour)} RG {_curve(points)} S")
    repeated = []
    for length, turn, x, y in ((width, "1 0 0 1", inner, outer), (width, "1 0 0 1", inner, height - inner),
                               (height, "0 1 -1 0", inner, inner), (height, "0 1 -1 0", width - outer, inner)):
        periods = max(4, round((length - 2 * inner) / _PERIOD))
        stretch = (length - 2 * inner) / (periods * _PERIOD)
        repeated += [f"q {turn} {_at(x, y)} cm {stretch:.5f} 0 0 1 0 0 cm /Tile Do",
                     *[f"1 0 0 1 {number(_PERIOD)} 0 cm /Tile Do"] * (periods - 1), "Q"]
    return vector("\n".join(tile), (-mm, -mm, _PERIOD + mm, deep + mm)), "\n".join(repeated)


def _brackets(part: Frame, width: float, height: float) -> str:
    """Two lines around each corner, and a small diamond in it."""
    drawn = []
    for offset, reach, colour, thickness in ((part.margin, 4.5, part.colour, 0.8),
                                             (part.margin + part.width * 0.4, 3.2, part.accent, 0.35)):
        offset *= mm
        arm = part.width * mm * reach
        drawn.append(f"{rgb(colour)} RG {number(thickness * mm)} w")
        for x, across in ((offset, 1), (width - offset, -1)):
            for y, up in ((offset, 1), (height - offset, -1)):
                drawn.append(f"{_at(x + across * arm, y)} m {_at(x, y)} l {_at(x, y + up * arm)} l S")
    inset, side = (part.margin + part.width) * mm, part.width * mm * 0.16
    drawn.append(f"{rgb(part.accent)} rg")
    drawn += [_polygon([(x, y + side), (x + side, y), (x, y - side), (x - side, y)])
              for x in (inset, width - inset) for y in (inset, height - inset)]
    return _kept(*drawn)


@lru_cache(maxsize=256)
def seal(part: Seal, height: float) -> str:
    """A rosette with a star, with two ribbons below if wanted."""
    x, y, radius = part.x * mm, height - part.y * mm, part.radius * mm
    drawn = []
    if part.ribbon:
        for side in (-1, 1):
            low = y - radius * 1.88
            drawn += [f"{rgb(part.ribbon)} rg", _polygon([
                (x + side * radius * 0.06, y), (x + side * radius * 0.62, y - radius * 0.3), (x + side * radius * 0.86, low),
                (x + side * radius * 0.52, low + radius * 0.24), (x + side * radius * 0.26, low)])]
    drawn += [f"{rgb(part.colour)} rg {rgb(part.paper)} RG", _star(x, y, radius, radius * 0.9, 36),
              f"{number(0.35 * mm)} w {_circle(x, y, radius * 0.8)} S {number(0.12 * mm)} w {_circle(x, y, radius * 0.74)} S",
              f"{rgb(part.paper)} rg", _star(x, y, radius * 0.42, radius * 0.18, 5)]
    for step in range(40):
        angle = 2 * math.pi * step / 40
        inner, outer = radius * 0.58, radius * (0.68 if step % 2 else 0.64)
        drawn.append(f"{_at(x + inner * math.cos(angle), y + inner * math.sin(angle))} m "
                     f"{_at(x + outer * math.cos(angle), y + outer * math.sin(angle))} l S")
    return _kept(*drawn)


@lru_cache(maxsize=256)
def strokes(part: Signature, height: float) -> str:
    """The line to sign on, and the hand that signed."""
    x, y, width = part.x * mm, height - part.y * mm, part.width * mm
    scale = width * 0.8 / 100
    drawn = [f"{rgb(part.colour)} RG {number(0.25 * mm)} w {_at(x - width / 2, y)} m {_at(x + width / 2, y)} l S",
             f"1 J {number(0.42 * mm)} w"]
    drawn += [f"{_curve([(x - width * 0.4 + across * scale, y + (34 - down) * scale) for across, down in stroke])} S"
              for stroke in part.strokes]
    return _kept(*drawn)


def _kept(*drawn: str) -> str:
    """Operators that leave colours and lines as they were."""
    return "\n".join(["q", *filter(None, drawn), "Q"])


def _at(x: float, y: float) -> str:
    return f"{number(x)} {number(y)}"


def _polygon(corners: Iterable[Point]) -> str:
    first, *others = corners
    return " ".join([f"{_at(*first)} m", *(f"{_at(*corner)} l" for corner in others), "h f"])


def _star(x: float, y: float, outer: float, inner: float, points: int) -> str:
    return _polygon((x + reach * math.cos(angle), y + reach * math.sin(angle)) for step in range(points * 2)
                    for angle, reach in [(math.pi / 2 + math.pi * step / points, inner if step % 2 else outer)])


def _circle(x: float, y: float, radius: float) -> str:
    bend = radius * _ROUND
    return " ".join((
        f"{_at(x + radius, y)} m",
        f"{_at(x + radius, y + bend)} {_at(x + bend, y + radius)} {_at(x, y + radius)} c",
        f"{_at(x - bend, y + radius)} {_at(x - radius, y + bend)} {_at(x - radius, y)} c",
        f"{_at(x - radius, y - bend)} {_at(x - bend, y - radius)} {_at(x, y - radius)} c",
        f"{_at(x + bend, y - radius)} {_at(x + radius, y - bend)} {_at(x + radius, y)} c h"))


def _curve(points: list[Point]) -> str:
    """A smooth curve through the points (Catmull-Rom, as Bézier segments)."""
    padded, drawn = [points[0], *points, points[-1]], [f"{_at(*points[0])} m"]
    for before, start, end, after in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        first = (start[0] + (end[0] - before[0]) / 6, start[1] + (end[1] - before[1]) / 6)
        second = (end[0] - (after[0] - start[0]) / 6, end[1] - (after[1] - start[1]) / 6)
        drawn.append(f"{_at(*first)} {_at(*second)} {_at(*end)} c")
    return " ".join(drawn)
