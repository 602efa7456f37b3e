"""An event's certificate design, as it stands in the database: validated before anything is drawn.

Positions and lengths are millimetres from the page's upper left corner, sizes of type are points.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.certificates.errors import DesignError

__all__ = ["PLACEHOLDERS", "Design", "Frame", "Image", "Qr", "Rule", "Seal", "Signature", "Text", "parse_design"]

#: What every design may use; an event adds its own with `fields`.
PLACEHOLDERS = ("recipient_name", "event_name", "event_dates", "event_place", "organiser", "issued_on", "serial", "verify_url")

PAGE_SIZES = {"A4": (210.0, 297.0), "A5": (148.0, 210.0), "Letter": (215.9, 279.4)}

Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$", description="#rrggbb")]
Millimetres = Annotated[float, Field(ge=0, le=1000)]
Font = Literal["display", "serif", "italic", "sans"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Text(_Part):
    """A line or paragraph. It shrinks to `min_size` to fit `max_width`, then wraps into up to `max_lines` lines."""

    kind: Literal["text"]
    text: str = Field(min_length=1, max_length=500)
    x: Millimetres
    y: Millimetres
    anchor: Literal["left", "centre", "right"] = "centre"
    font: Font = "serif"
    size: float = Field(gt=3, le=200)
    min_size: float = Field(default=8, gt=3, le=200)
    colour: Colour = "#1b2a41"
    max_width: Millimetres = 200
    max_lines: int = Field(default=1, ge=1, le=6)
    tracking: float = Field(default=0, ge=0, le=20, description="extra space between letters, points")


class Rule(_Part):
    """A horizontal line."""

    kind: Literal["rule"]
    x: Millimetres
    y: Millimetres
    width: Millimetres
    thickness: float = Field(default=0.3, gt=0, le=5)
    colour: Colour = "#b08d3c"
    diamond: bool = False


class Frame(_Part):
    """A border: engraved wave lines between two rules."""

    kind: Literal["frame"]
    margin: Millimetres = 9
    width: Millimetres = 7
    colour: Colour = "#1b2a41"
    accent: Colour = "#b08d3c"


class Seal(_Part):
    """A rosette with an emblem."""

    kind: Literal["seal"]
    x: Millimetres
    y: Millimetres
    radius: Millimetres = 15
    colour: Colour = "#b08d3c"


class Signature(_Part):
    """A line to sign on with name and title; `strokes` draws the signature in a 100 × 40 box as SVG-like path points."""

    kind: Literal["signature"]
    name: str = Field(min_length=1, max_length=120)
    title: str = Field(default="", max_length=120)
    x: Millimetres
    y: Millimetres
    width: Millimetres = 60
    strokes: tuple[tuple[tuple[float, float], ...], ...] = ()
    colour: Colour = "#1b2a41"


class Qr(_Part):
    """A QR code of a text, normally {verify_url}."""

    kind: Literal["qr"]
    text: str = Field(default="{verify_url}", min_length=1, max_length=500)
    x: Millimetres
    y: Millimetres
    size: Millimetres = 20
    colour: Colour = "#1b2a41"


class Image(_Part):
    """A picture that lies in the storage under this key."""

    kind: Literal["image"]
    key: str = Field(min_length=1, max_length=300)
    x: Millimetres
    y: Millimetres
    width: Millimetres
    height: Millimetres


Part = Annotated[Text | Rule | Frame | Seal | Signature | Qr | Image, Field(discriminator="kind")]


class Page(_Part):
    """The sheet."""

    size: Literal["A4", "A5", "Letter"] = "A4"
    orientation: Literal["landscape", "portrait"] = "landscape"
    colour: Colour = "#fffdf6"

    @property
    def millimetres(self) -> tuple[float, float]:
        """Width and height."""
        short, long = PAGE_SIZES[self.size]
        return (long, short) if self.orientation == "landscape" else (short, long)


class Design(_Part):
    """A whole design. `fields` are the event's own placeholders with their values."""

    title: str = Field(default="Certificate", min_length=1, max_length=200)
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")
    page: Page = Page()
    fields: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str] = {}
    verify_url: str = Field(default="", max_length=300)
    parts: tuple[Part, ...] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _only_known_placeholders(self) -> Design:
        known = {*PLACEHOLDERS, *self.fields}
        for number, part in enumerate(self.parts):
            if isinstance(part, (Text, Qr)):
                for name in _names(part.text, f"parts.{number}.text"):
                    if name not in known:
                        raise ValueError(
                            f"parts.{number}.text: unknown placeholder {{{name}}}; there are: {', '.join(sorted(known))}")
        return self


def parse_design(raw: Mapping[str, Any]) -> Design:
    """The design in this JSON object. Raises DesignError naming the first field that is wrong and how to mend it."""
    try:
        return Design.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "design"
        message = first["msg"].removeprefix("Value error, ")
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise DesignError(f"certificate design: {where}: {message}{more}") from error


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its placeholders replaced; values are taken literally, whatever they contain."""
    return "".join(
        literal + (values[name] if name is not None else "")
        for literal, name, _, _ in string.Formatter().parse(text))


def _names(text: str, where: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"{where}: {error}; write {{{{ for a brace") from error
