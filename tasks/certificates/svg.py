"""A strict reader of SVG: shapes, paths and flat colours become PDF operators; anything that could do more is an error.

There is nothing to execute and nothing to fetch: scripts, styles, links, pictures, text, entities and external references
are refused by name instead of being ignored, so that what an organiser sees in a browser is what stands on the certificate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from xml.parsers import expat

from fontTools.misc.transform import Identity, Transform
from fontTools.pens.basePen import BasePen
from fontTools.svgLib.path import parse_path
from PIL import ImageColor

from tasks.certificates.errors import DesignError
from tasks.certificates.pdf import number

__all__ = ["Drawing", "drawing"]

_SVG = "http://www.w3.org/2000/svg"
_MOST_ELEMENTS = 20_000
_DEEPEST = 40
_SHAPES = {"path", "rect", "circle", "ellipse", "line", "polyline", "polygon"}
_SILENT = {"title", "desc", "metadata", "defs"}  # what is defined and then used shows in an attribute that refers to it
_PAINT = {"fill": "#000000", "stroke": "none", "stroke-width": "1", "fill-rule": "nonzero", "stroke-linecap": "butt",
          "stroke-linejoin": "miter", "stroke-miterlimit": "4"}
_CAPS, _JOINS = ("butt", "round", "square"), ("miter", "round", "bevel")
_GEOMETRY = {"d", "x", "y", "width", "height", "rx", "ry", "cx", "cy", "r", "x1", "y1", "x2", "y2", "points", "transform"}
_HARMLESS = {"id", "class", "version", "viewBox", "preserveAspectRatio", "role", "space", "baseProfile", "xmlns"}
_OPAQUE = ("1", "1.0", "100%")
#: Attributes that may stand there when they change nothing; drawing programs write them all.
_UNCHANGED = {"opacity": _OPAQUE, "fill-opacity": _OPAQUE, "stroke-opacity": _OPAQUE, "display": ("inline",),
              "visibility": ("visible",), "overflow": ("visible",),
              **dict.fromkeys(("clip-path", "mask", "filter", "stroke-dasharray", "marker-start", "marker-end"), ("none",))}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


class Drawing(NamedTuple):
    """An SVG as PDF operators, with y growing upwards."""

    width: float
    height: float
    operators: str


def drawing(content: bytes, key: str) -> Drawing:
    """The drawing in this SVG. Raises DesignError naming what it holds that is no shape, path or colour."""
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.characters
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = reader.refuse_document_type
    parser.ProcessingInstructionHandler = reader.refuse_instruction
    try:
        parser.Parse(content, True)
        return reader.finish()
    except _Refused as error:
        raise DesignError(f"certificate design: image {key!r} is an SVG {error}") from None
    except (expat.ExpatError, ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DesignError(f"certificate design: image {key!r} is not a picture that can be read ({error})") from error


class _Refused(Exception):
    """What an SVG holds that is not drawn."""


class _Reader:
    """Takes the elements one after the other; nothing is kept of them but operators."""

    def __init__(self) -> None:
        self._operators: list[str] = []
        self._stack: list[tuple[Mapping[str, str], Transform]] = []
        self._ignored = 0  # elements that are open and draw nothing
        self._count = 0
        self._size: tuple[float, float] | None = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        space, _, tag = name.rpartition(" ")
        self._count += 1
        if self._count > _MOST_ELEMENTS or len(self._stack) + self._ignored >= _DEEPEST:
            raise _Refused(f"with more than {_MOST_ELEMENTS:,} elements, or {_DEEPEST} inside of each other: simplify it")
        if not self._stack and (space not in (_SVG, "") or tag != "svg"):
            raise _Refused(f"that begins with <{tag[:40]}> instead of <svg>")
        # Drawing programs leave notes in name spaces of their own. They draw nothing.
        if self._ignored or (space not in (_SVG, "") and tag.lower() != "script") or tag in _SILENT:
            self._ignored += 1
            if tag.lower() not in ("script", "foreignobject"):
                return
        if tag not in _SHAPES | {"svg", "g"} or (tag == "svg" and self._stack):
            hint = ": convert text to paths" if tag in ("text", "tspan") else ": only shapes, paths and flat colours are drawn"
            raise _Refused(f"with <{tag[:40]}>{hint}")
        self._element(tag, attributes)

    def end(self, _: str) -> None:
        if self._ignored:
            self._ignored -= 1
        else:
            self._stack.pop()

    def characters(self, text: str) -> None:
        if text.strip() and not self._ignored:
            raise _Refused("with text between its elements: only shapes, paths and flat colours are drawn")

    def refuse_document_type(self, *_: Any) -> None:
        raise _Refused("with a document type or entities: save it as plain SVG")

    def refuse_instruction(self, target: str, _: str) -> None:
        raise _Refused(f"with a processing instruction (<?{target[:40]}): save it as plain SVG")

    def finish(self) -> Drawing:
        assert self._size is not None
        return Drawing(*self._size, "\n".join(self._operators))

    def _element(self, tag: str, given: dict[str, str]) -> None:
        attributes = _read(tag, given)
        if tag == "svg":
            matrix, paint = self._root(attributes), dict(_PAINT)
        else:
            paint, matrix = dict(self._stack[-1][0]), self._stack[-1][1].transform(_transform(attributes.get("transform", "")))
        paint |= {name: value for name, value in attributes.items() if name in _PAINT and value != "inherit"}
        self._stack.append((paint, matrix))
        if tag in _SHAPES and (painted := _painted(paint, _scale(matrix))):
            pen = _Pen(matrix)
            parse_path(_outline(tag, attributes), pen)
            if pen.operators:
                setting, painting = painted
                self._operators += ["q", *setting, *pen.operators, painting, "Q"]

    def _root(self, attributes: Mapping[str, str]) -> Transform:
        given = [float(found) for found in re.findall(_NUMBER, attributes.get("viewBox", ""))]
        left, top, width, height = given if len(given) == 4 else (
            0.0, 0.0, _length(attributes.get("width", "0")), _length(attributes.get("height", "0")))
        if not (0 < width < 1e6 and 0 < height < 1e6):
            raise _Refused("without a size: give it a viewBox")
        self._size = (width, height)
        return Transform(1, 0, 0, -1, -left, top + height)


class _Pen(BasePen):  # type: ignore[misc,unused-ignore]
    """Writes a path as operators; quadratic curves arrive as cubic ones."""

    def __init__(self, matrix: Transform) -> None:
        super().__init__(None)
        self._matrix = matrix
        self.operators: list[str] = []

    def _at(self, *points: tuple[float, float]) -> str:
        return " ".join(f"{number(x)} {number(y)}" for x, y in self._matrix.transformPoints(points))

    def _moveTo(self, pt: tuple[float, float]) -> None:  # noqa: N802
        self.operators.append(f"{self._at(pt)} m")

    def _lineTo(self, pt: tuple[float, float]) -> None:  # noqa: N802
        self.operators.append(f"{self._at(pt)} l")

    def _curveToOne(self, pt1: tuple[float, float], pt2: tuple[float, float], pt3: tuple[float, float]) -> None:  # noqa: N802
        self.operators.append(f"{self._at(pt1, pt2, pt3)} c")

    def _closePath(self) -> None:  # noqa: N802
        self.operators.append("h")

    def _endPath(self) -> None:  # noqa: N802
        """An open path stays open."""


def _read(tag: str, given: dict[str, str]) -> dict[str, str]:
    """The attributes that count, those of `style` among them. Refuses handlers, links and whatever paints otherwise."""
    attributes: dict[str, str] = {}
    for full, value in given.items():
        space, _, name = full.rpartition(" ")
        if name.lower().startswith("on") or name.lower() == "href":
            raise _Refused(f"with the attribute {name[:40]!r} of <{tag}>: it may neither run nor refer to anything")
        if space not in ("", "http://www.w3.org/XML/1998/namespace"):
            continue
        if name == "style":
            for entry in filter(str.strip, value.split(";")):
                key, _, content = entry.partition(":")
                attributes[key.strip()] = content.strip()
        else:
            attributes[name] = value.strip()
    for name, value in attributes.items():
        if value in _UNCHANGED.get(name, ()):
            continue
        if name not in _GEOMETRY | _HARMLESS | set(_PAINT) and not name.startswith(("data-", "aria-", "-", "font-", "text-")):
            raise _Refused(f"with the attribute {name[:40]!r} of <{tag}>: only shapes, paths and flat colours are drawn")
        if "url(" in value.lower():
            raise _Refused(f"whose {name} refers to something ({value[:40]}): only flat colours are drawn")
    return attributes


def _painted(paint: Mapping[str, str], scale: float) -> tuple[list[str], str] | None:
    """Operators that set colours and lines, and the one that paints; None when there is nothing to see."""
    fill, stroke = _colour(paint["fill"]), _colour(paint["stroke"])
    width = _length(paint["stroke-width"]) * scale
    if width <= 0:
        stroke = None
    if not fill and not stroke:
        return None
    setting = [f"{fill} rg"] if fill else []
    if stroke:
        cap, join = _CAPS.index(paint["stroke-linecap"]), _JOINS.index(paint["stroke-linejoin"])
        limit = number(float(paint["stroke-miterlimit"]))
        setting += [f"{stroke} RG", f"{number(width)} w", f"{cap} J", f"{join} j", f"{limit} M"]
    star = "*" if fill and paint["fill-rule"] == "evenodd" else ""
    return setting, ("B" if fill and stroke else "f" if fill else "S") + star


def _colour(value: str) -> str | None:
    if value in ("none", "transparent"):
        return None
    try:
        red, green, blue, *alpha = ImageColor.getrgb(value)
    except ValueError:
        raise _Refused(f"with the colour {value[:40]!r}: write it as #rrggbb") from None
    if alpha and alpha[0] != 255:
        raise _Refused(f"with the colour {value[:40]!r}, which can be seen through: only flat colours are drawn")
    return " ".join(number(part / 255) for part in (red, green, blue))


def _length(value: str) -> float:
    found = re.fullmatch(rf"({_NUMBER})(px|pt|mm|cm|in)?", value)
    if not found:
        raise _Refused(f"with the length {value[:40]!r}: write a number")
    return float(found[1]) * {None: 1, "px": 1, "pt": 4 / 3, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96}[found[2]]


def _transform(value: str) -> Transform:
    matrix, rest = Identity, value
    while rest := rest.strip(" ,\t\r\n"):
        found = re.match(r"(matrix|translate|scale|rotate|skewX|skewY)\s*\(([^)]*)\)", rest)
        if not found:
            raise _Refused(f"with the transform {value[:40]!r}")
        name, rest = found[1], rest[found.end():]
        numbers = [float(part) for part in re.findall(_NUMBER, found[2])]
        if name == "rotate":
            angle, x, y = (*numbers, 0.0, 0.0)[:3]
            matrix = matrix.translate(x, y).rotate(math.radians(angle)).translate(-x, -y)
        elif name == "matrix":
            matrix = matrix.transform(Transform(*numbers))
        elif name == "skewX":
            matrix = matrix.skew(math.radians(numbers[0]), 0)
        elif name == "skewY":
            matrix = matrix.skew(0, math.radians(numbers[0]))
        else:
            matrix = getattr(matrix, name)(*numbers[:2])
    return matrix


def _scale(matrix: Transform) -> float:
    return math.sqrt(abs(matrix.xx * matrix.yy - matrix.xy * matrix.yx))


def _outline(tag: str, attributes: Mapping[str, str]) -> str:
    """The shape as the data of a path."""
    if tag == "path":
        return attributes.get("d", "")
    if tag in ("polyline", "polygon"):
        points = attributes.get("points", "").strip()
        return f"M{points}{'Z' if tag == 'polygon' else ''}" if points else ""
    x, y, x1, y1, x2, y2, cx, cy, r, rx, ry, width, height = (_length(attributes.get(name, "0")) for name in (
        "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "rx", "ry", "width", "height"))
    if tag == "line":
        return f"M{x1} {y1}L{x2} {y2}"
    if tag in ("circle", "ellipse"):
        rx, ry = (r, r) if tag == "circle" else (rx, ry)
        return f"M{cx - rx} {cy}A{rx} {ry} 0 1 0 {cx + rx} {cy}A{rx} {ry} 0 1 0 {cx - rx} {cy}Z" if rx > 0 and ry > 0 else ""
    rx, ry = min(rx or ry, width / 2), min(ry or rx, height / 2)
    if not rx:
        return f"M{x} {y}h{width}v{height}h{-width}Z"
    corner, right, bottom = f"A{rx} {ry} 0 0 1", x + width, y + height
    return (f"M{x + rx} {y}H{right - rx}{corner} {right} {y + ry}V{bottom - ry}{corner} {right - rx} {bottom}"
            f"H{x + rx}{corner} {x} {bottom - ry}V{y + ry}{corner} {x + rx} {y}Z")
