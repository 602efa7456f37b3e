"""An event's certificate design, as it stands in the database: validated before anything is drawn.

Positions and lengths are millimetres from the page's upper left corner, sizes of type are points.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.certificates.errors import DesignError

__all__ = ["LEADING", "PLACEHOLDERS", "SIGNED", "Design", "Frame", "Image", "Page", "Qr", "Rule", "Seal", "Signature", "Text",
           "fill", "parse_design"]

#: What every design may use; an event adds its own with `fields`.
PLACEHOLDERS = ("recipient_name", "event_name", "event_dates", "event_place", "organiser", "issued_on", "serial", "verify_url")

PAGE_SIZES = {"A4": (210.0, 297.0), "A5": (148.0, 210.0), "Letter": (215.9, 279.4)}

Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$", description="#rrggbb")]
Millimetres = Annotated[float, Field(ge=0, le=1000)]
Length = Annotated[float, Field(gt=0, le=1000)]
Point = tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=-20, le=60)]]
Stroke = Annotated[tuple[Point, ...], Field(min_length=2, max_length=200)]
Font = Literal["display", "serif", "italic", "sans"]


LEADING = 1.25  # distance of baselines, in sizes
SIGNED = 1.15  # width of a signer's name at most, in widths of the line above it
_POINT = 25.4 / 72  # millimetres


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Part(_Model):
    def box(self, page: Page) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what it may cover, in millimetres."""
        raise NotImplementedError


class Text(_Part):
    """A line or paragraph. It shrinks to `min_size` to fit `max_width` and the page, then wraps into up to `max_lines` lines."""

    kind: Literal["text"]
    text: str = Field(min_length=1, max_length=500)
    x: Millimetres
    y: Millimetres
    anchor: Literal["left", "centre", "right"] = "centre"
    font: Font = "serif"
    size: float = Field(gt=3, le=200)
    min_size: float = Field(default=8, gt=3, le=200)
    colour: Colour = "#1b2a41"
    max_width: float = Field(default=200, ge=5, le=1000)
    max_lines: int = Field(default=1, ge=1, le=6)
    tracking: float = Field(default=0, ge=0, le=20, description="extra space between letters, points")

    def room(self, page: Page) -> float:
        """How wide the text may be here: max_width, less where the page ends."""
        left, right = self.x - self._overhang, page.millimetres[0] - self.x - self._overhang
        return max(0.0, min(self.max_width, {"left": right, "centre": 2 * min(left, right), "right": left}[self.anchor]))

    @property
    def _overhang(self) -> float:
        """How far a letter may reach out of its own width, in millimetres."""
        return self.size * _POINT / 20

    def box(self, page: Page) -> tuple[float, float, float, float]:
        width, size = self.room(page), self.size * _POINT
        left = self.x - {"left": 0.0, "centre": width / 2, "right": width}[self.anchor] - self._overhang
        more = (self.max_lines - 1) / 2 * LEADING * size
        # Accents and Vietnamese or Thai stacks reach 1.1 above the baseline, descenders 0.35 below.
        return left, self.y - more - 1.1 * size, left + width + 2 * self._overhang, self.y + more + 0.35 * size


class Rule(_Part):
    """A horizontal line."""

    kind: Literal["rule"]
    x: Millimetres
    y: Millimetres
    width: Length
    thickness: float = Field(default=0.3, gt=0, le=5)
    colour: Colour = "#b08d3c"
    diamond: bool = False

    def box(self, page: Page) -> tuple[float, float, float, float]:
        return self.x - self.width / 2, self.y, self.x + self.width / 2, self.y


class Frame(_Part):
    """A border: engraved wave lines between two rules."""

    kind: Literal["frame"]
    margin: Millimetres = 9
    width: float = Field(default=7, ge=2, le=40)
    colour: Colour = "#1b2a41"
    accent: Colour = "#b08d3c"

    def box(self, page: Page) -> tuple[float, float, float, float]:
        # What a frame needs is twice its own depth and some paper between.
        depth = 2 * (self.margin + self.width) + 20
        return 0.0, 0.0, depth, depth


class Seal(_Part):
    """A rosette with an emblem."""

    kind: Literal["seal"]
    x: Millimetres
    y: Millimetres
    radius: Length = 15
    colour: Colour = "#b08d3c"

    def box(self, page: Page) -> tuple[float, float, float, float]:
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


class Signature(_Part):
    """A line to sign on with name and title below; `strokes` are curves through points of a 100 × 40 box above it."""

    kind: Literal["signature"]
    name: str = Field(min_length=1, max_length=120)
    title: str = Field(default="", max_length=120)
    x: Millimetres
    y: Millimetres
    width: Length = 60
    strokes: Annotated[tuple[Stroke, ...], Field(max_length=50)] = ()
    colour: Colour = "#1b2a41"

    def box(self, page: Page) -> tuple[float, float, float, float]:
        # The names below may be a little wider than the line; a stroke reaches 54 of 100 above it.
        wide, high = self.width * SIGNED, self.width * 0.8 * 0.54 if self.strokes else 0.0
        return self.x - wide / 2, self.y - high, self.x + wide / 2, self.y + 11


class Qr(_Part):
    """A QR code of a text, normally {verify_url}."""

    kind: Literal["qr"]
    text: str = Field(default="{verify_url}", min_length=1, max_length=500)
    x: Millimetres
    y: Millimetres
    size: float = Field(default=20, ge=8, le=200)
    colour: Colour = "#1b2a41"

    def box(self, page: Page) -> tuple[float, float, float, float]:
        return self.x - self.size / 2, self.y - self.size / 2, self.x + self.size / 2, self.y + self.size / 2


class Image(_Part):
    """A picture that lies in the storage under this key."""

    kind: Literal["image"]
    key: str = Field(min_length=1, max_length=300)
    x: Millimetres
    y: Millimetres
    width: Length
    height: Length

    def box(self, page: Page) -> tuple[float, float, float, float]:
        return self.x, self.y, self.x + self.width, self.y + self.height


Part = Annotated[Text | Rule | Frame | Seal | Signature | Qr | Image, Field(discriminator="kind")]


class Page(_Model):
    """The sheet."""

    size: Literal["A4", "A5", "Letter"] = "A4"
    orientation: Literal["landscape", "portrait"] = "landscape"
    colour: Colour = "#fffdf6"

    @property
    def millimetres(self) -> tuple[float, float]:
        """Width and height."""
        short, long = PAGE_SIZES[self.size]
        return (long, short) if self.orientation == "landscape" else (short, long)


class Design(_Model):
    """A whole design. `fields` are the event's own placeholders with their values."""

    title: str = Field(default="Certificate", min_length=1, max_length=200)
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")
    page: Page = Page()
    fields: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Annotated[str, Field(max_length=500)]],
                      Field(max_length=50)] = {}
    verify_url: str = Field(default="", max_length=300, pattern=r"^(https?://\S+)?$")
    parts: tuple[Part, ...] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _consistent(self) -> Design:
        for name in self.fields:
            if name in PLACEHOLDERS:
                raise ValueError(f"fields.{name}: this name is built in; choose another one")
        self._check_placeholders("title", self.title)
        self._check_placeholders("verify_url", self.verify_url, without="verify_url")
        for number, part in enumerate(self.parts):
            for field in ("text",) if isinstance(part, (Text, Qr)) else ("name", "title") if isinstance(part, Signature) else ():
                self._check_placeholders(f"parts.{number}.{field}", getattr(part, field))
            self._check_inside(f"parts.{number}", part)
        return self

    def _check_placeholders(self, where: str, text: str, without: str = "") -> None:
        known = {*PLACEHOLDERS, *self.fields} - {without}
        try:
            found = [entry for entry in string.Formatter().parse(text) if entry[1] is not None]
        except ValueError as error:
            raise ValueError(f"{where}: {error}; write {{{{ or }}}} for a brace") from error
        for _, name, form, conversion in found:
            if name not in known:
                raise ValueError(f"{where}: unknown placeholder {{{name}}}; there are: {', '.join(sorted(known))}")
            if form or conversion:
                raise ValueError(f"{where}: write {{{name}}} without a format or conversion")

    def _check_inside(self, where: str, part: _Part) -> None:
        width, height = self.page.millimetres
        if isinstance(part, Text) and part.x <= width and (room := part.room(self.page)) < 5:
            raise ValueError(f"{where}.x: leaves {room:.1f} mm for the text, 5 are the least: move it, or change its anchor")
        left, top, right, bottom = part.box(self.page)
        for beyond, side in ((-left, "left"), (-top, "top"), (right - width, "right"), (bottom - height, "bottom")):
            if beyond > 0.01:
                raise ValueError(f"{where}: reaches {beyond:.1f} mm beyond the {side} of the page ({width:g} × {height:g} mm)")


def parse_design(raw: Mapping[str, Any]) -> Design:
    """The design in this JSON object. Raises DesignError naming the first field that is wrong and how to mend it."""
    try:
        return Design.model_validate(raw)
    except ValidationError as error:
        every = error.errors(include_url=False)
        # An item that is wrong is missing from its list afterwards, which pydantic counts as a second error.
        inside = {entry["loc"][:depth] for entry in every for depth in range(len(entry["loc"]))}
        found = [entry for entry in every if entry["type"] != "too_short" or entry["loc"] not in inside]
        first = found[0]
        steps = [str(step) for step in first["loc"] if step != "[key]"]
        if steps[:1] == ["parts"] and len(steps) > 3:
            del steps[2]  # pydantic names the kind of the part here, which is no field
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "union_tag_not_found":
            message = "kind is missing: say what to draw"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise DesignError(": ".join(filter(None, ("certificate design", ".".join(steps), message))) + more) from error


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its placeholders replaced; values are taken literally, whatever they contain."""
    return "".join(
        literal + (values[name] if name is not None else "")
        for literal, name, _, _ in string.Formatter().parse(text))
